"""The second half of the pipeline on the device, in torch: uint8 crops -> network input.

The same arithmetic as the numba kernel that does it on a machine without a GPU
(``ops._write_float``), and tested against the same plain NumPy definition.
"""

from __future__ import annotations

import torch


def normalise(
    crops: torch.Tensor,
    y: torch.Tensor,
    x: torch.Tensor,
    mirror: torch.Tensor,
    shift: torch.Tensor,
    mean: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """uint8 crops (B, S, S, 3) -> float32 (B, 3, S, S), channels-last, all on one device.

    Crop b was cut at (y[b], x[b]) and, where mirror[b] is true, already mirrored; y, x
    int64 (B,), mirror bool (B,). ``mean`` float32 (H, W, 3) is subtracted at the crop's own
    place, mirrored with it; ``shift`` float32 (B, 3) is the picture's colour shift. ``out``
    float32 (B, S, S, 3) is the memory to use. Levels of 0-255.
    """
    steps = torch.arange(crops.shape[1], device=crops.device)
    rows = y[:, None] + steps
    columns = x[:, None] + torch.where(mirror[:, None], steps.flip(0), steps)
    local_mean = mean[rows[:, :, None], columns[:, None, :]]
    result = torch.sub(crops, local_mean, out=out).add_(shift[:, None, None, :])
    return result.permute(0, 3, 1, 2)
