"""Response normalisation across channels in one pass over memory, for CUDA.

A tile of places × channels reads its neighbours' channels at shifted addresses, which the
first cache holds: memory is read and written once, in half precision where the batch is,
while everything is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

jit: Callable[[Any], Any] = triton.jit
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Places × channels of a tile, wider along what lies side by side in memory.
_TILE_CHANNELS_LAST, _TILE_CHANNELS_FIRST = (32, 32), (128, 8)


@jit
def _tile(
    places: tl.tensor, in_image: tl.tensor, per_image: tl.tensor, per_place: tl.tensor,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,  # noqa: N803
) -> tl.tensor:  # fmt: skip
    """Of this program: where its places begin and whether they exist, (ROWS, 1), and its
    channels, (1, CHANNELS)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = (row // in_image) * per_image + (row % in_image) * per_place
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    return start[:, None], (row < places)[:, None], channel[None, :]


@jit
def _read(
    x: tl.tensor, start: tl.tensor, here: tl.tensor, channel: tl.tensor, channels: tl.tensor,
    per_channel: tl.tensor, SHIFT: tl.constexpr,  # noqa: N803
) -> tl.tensor:  # fmt: skip
    """The channels SHIFT further on in float32; 0 outside."""
    shifted = channel + SHIFT
    inside = here & (shifted >= 0) & (shifted < channels)
    return tl.load(x + start + shifted * per_channel, mask=inside, other=0.0).to(tl.float32)


@jit
def _divisor(
    x: tl.tensor, start: tl.tensor, here: tl.tensor, channel: tl.tensor, channels: tl.tensor,
    per_channel: tl.tensor, alpha: tl.tensor, k: tl.tensor,
    SHIFT: tl.constexpr, SIZE: tl.constexpr,  # noqa: N803
) -> tl.tensor:  # fmt: skip
    """d = k + α Σ a² over the windows of the channels SHIFT further on."""
    first = _read(x, start, here, channel, channels, per_channel, SHIFT - SIZE // 2)
    total = first * first
    for w in tl.static_range(1, SIZE):
        a = _read(x, start, here, channel, channels, per_channel, SHIFT + w - SIZE // 2)
        total += a * a
    return k + alpha * total


@jit
def _powers(d: tl.tensor, beta: tl.tensor, ROOTS: tl.constexpr) -> tl.tensor:  # noqa: N803
    """d^-β and 1/d; two roots for β = 0.75."""
    if ROOTS:
        r = tl.rsqrt(d)
        power, inverse = r * tl.sqrt(r), r * r
    else:
        power, inverse = tl.exp2(-beta * tl.log2(d)), 1.0 / d
    return power, inverse


@jit
def _forward(
    x: tl.tensor, y: tl.tensor, places: tl.tensor, channels: tl.tensor, in_image: tl.tensor,
    per_image: tl.tensor, per_place: tl.tensor, per_channel: tl.tensor,
    alpha: tl.tensor, beta: tl.tensor, k: tl.tensor,
    SIZE: tl.constexpr, ROOTS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,  # noqa: N803
) -> None:  # fmt: skip
    start, here, c = _tile(places, in_image, per_image, per_place, ROWS, CHANNELS)
    d = _divisor(x, start, here, c, channels, per_channel, alpha, k, 0, SIZE)
    power, _ = _powers(d, beta, ROOTS)
    b = _read(x, start, here, c, channels, per_channel, 0) * power
    tl.store(y + start + c * per_channel, b.to(y.dtype.element_ty), mask=here & (c < channels))


@jit
def _backward(
    x: tl.tensor, g: tl.tensor, dx: tl.tensor, places: tl.tensor, channels: tl.tensor,
    in_image: tl.tensor, per_image: tl.tensor, per_place: tl.tensor, per_channel: tl.tensor,
    alpha: tl.tensor, beta: tl.tensor, k: tl.tensor,
    SIZE: tl.constexpr, ROOTS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,  # noqa: N803
) -> None:  # fmt: skip
    start, here, c = _tile(places, in_image, per_image, per_place, ROWS, CHANNELS)
    # da_j = g_j d_j^-β - 2αβ a_j Σ g_i a_i d_i^-(β+1) over all i whose windows have j in them.
    # What windows share is read by equal expressions, which the compiler makes one load.
    own = tl.zeros((ROWS, CHANNELS), tl.float32)
    spread = tl.zeros((ROWS, CHANNELS), tl.float32)
    for v in tl.static_range(0, SIZE):
        d = _divisor(x, start, here, c, channels, per_channel, alpha, k, v - (SIZE - 1) // 2, SIZE)
        power, inverse = _powers(d, beta, ROOTS)
        scaled = _read(g, start, here, c, channels, per_channel, v - (SIZE - 1) // 2) * power
        a = _read(x, start, here, c, channels, per_channel, v - (SIZE - 1) // 2)
        spread += scaled * a * inverse
        if v == (SIZE - 1) // 2:
            own = scaled
    a = _read(x, start, here, c, channels, per_channel, 0)
    result = own - 2.0 * alpha * beta * a * spread
    tl.store(
        dx + start + c * per_channel, result.to(dx.dtype.element_ty), mask=here & (c < channels)
    )


def fits(x: Tensor) -> bool:
    """Whether the kernels take this batch: 4 dimensions without gaps, of a dtype they know."""
    return (
        x.dim() == 4
        and x.dtype in DTYPES
        and x.numel() > 0
        and (
            x.is_contiguous(memory_format=torch.channels_last)
            or x.is_contiguous(memory_format=torch.contiguous_format)
        )
    )


def _launch(kernel: Any, tensors: tuple[Tensor, ...], size: int, *numbers: float) -> None:
    """Runs a kernel over tensors that lie in memory as the first does; α, β, k follow."""
    images, channels, height, width = tensors[0].shape
    last = tensors[0].is_contiguous(memory_format=torch.channels_last)
    per_place, per_channel = (channels, 1) if last else (1, height * width)
    rows, columns = _TILE_CHANNELS_LAST if last else _TILE_CHANNELS_FIRST
    places = images * height * width
    grid = (triton.cdiv(places, rows), triton.cdiv(channels, columns))
    kernel[grid](
        *tensors, places, channels, height * width, channels * height * width, per_place,
        per_channel, *numbers, SIZE=size, ROOTS=numbers[1] == 0.75, ROWS=rows, CHANNELS=columns,
        enable_fp_fusion=True,
    )  # fmt: skip


def forward(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """(B, C, H, W) that ``fits`` -> the same normalised; float32 arithmetic throughout."""
    y = torch.empty_like(x)
    _launch(_forward, (x, y), size, alpha, beta, k)
    return y


def backward(x: Tensor, gradient: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """The gradient of ``forward``'s input from that of its output."""
    result = torch.empty_like(x)
    if gradient.dtype != x.dtype or gradient.stride() != x.stride():
        gradient = torch.empty_like(x).copy_(gradient)
    _launch(_backward, (x, gradient, result), size, alpha, beta, k)
    return result
