"""The second half of the pipeline on the device, in torch: uint8 crops -> network input.

The same arithmetic as the numba kernel that does it on a machine without a GPU
(``ops._write_floats``), and tested against the same plain NumPy definition.
"""

from __future__ import annotations

import torch
from torch import Tensor


def normalise(
    crops: Tensor,
    placed: Tensor,
    shift: Tensor,
    mean: Tensor,
    gain: Tensor,
    *,
    centre: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """uint8 crops (B, S, S, 3) -> (B, 3, S, S), channels-last, all on one device.

    Several views of each picture, (B, V, S, S, 3), become (B, V, 3, S, S). ``placed`` int64
    (B, V, 3) says where each was cut, y and x, and whether it is mirrored already; ``mean``
    float32 (H, W, 3) is subtracted at that place, mirrored with the crop, or from its
    ``centre``, never mirrored; ``shift`` float32 (B, 3) is the picture's colour shift and
    ``gain`` float32 (3,) multiplies the result. The arithmetic is float32; ``out``, of the
    shape of ``crops``, is the memory to use and decides the dtype (float32 without it).
    """
    size = crops.shape[-2]
    views = crops.reshape(-1, size, size, 3)
    steps = torch.arange(size, device=crops.device)
    if centre:
        top, left = ((side - size) // 2 for side in mean.shape[:2])
        local = mean[top : top + size, left : left + size]
    else:
        y, x, mirror = placed.reshape(-1, 3).unbind(1)
        rows = y[:, None] + steps
        columns = x[:, None] + torch.where(mirror[:, None] != 0, steps.flip(0), steps)
        local = mean[rows[:, :, None], columns[:, None, :]]
    shifts = shift.repeat_interleave(len(views) // max(len(shift), 1), dim=0)
    result = (views - local + shifts[:, None, None, :]) * gain
    whole = result.reshape(crops.shape)
    if out is not None:
        whole = out.copy_(whole)
    return whole.movedim(-1, -3)
