"""The weight gradient of a convolution in bfloat16, for CPUs with AVX512-BF16 and no AMX.

oneDNN's takes a fifth more time than its forward pass. Here two images side by side are one
image of pairs, which the processor multiplies and adds in one instruction, so a filter's offset
only moves addresses: nothing is padded, and places outside the image cost nothing. Sums are
float32 and always in the same order, whatever the number of threads.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numba.core import types
from numba.extending import intrinsic
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from trainer.network.lrn_cpu import channel_rows, in_parts
from trainer.numba_ext import kernel, numba

# A tile: the gradients of so many channels of one tensor times so many of the other, in 24
# vector registers. Of the first, vectors are loaded; of the second, single pairs are spread.
_LOADED, _SPREAD = 64, 6
_STEP_L, _STEP_S, _TILE = 4 * _LOADED, 4 * _SPREAD, 4 * _LOADED * _SPREAD  # bytes
_GROUP = 16  # tiles whose sums stay in the second cache


def _assembly() -> str:
    """Adds a tile's products over rows of places; operands: both addresses, the number of
    places; the sums' address, places in a row, bytes to a next row's place of each."""
    tile = [(s, v) for s in range(_SPREAD) for v in range(_LOADED // 16)]
    register = {(s, v): 8 + 4 * s + v for s, v in tile}
    lines = [f"vmovups {256 * s + 64 * v}($3), %zmm{register[s, v]}" for s, v in tile]
    lines += ["movq $4, %rsi", "1:"]
    lines += [f"vmovups {64 * v}($0), %zmm{v}" for v in range(_LOADED // 16)]
    for s, v in tile:
        if v == 0:
            lines.append(f"vbroadcastss {4 * s}($1), %zmm{4 + s % 4}")
        lines.append(f"vdpbf16ps %zmm{v}, %zmm{4 + s % 4}, %zmm{register[s, v]}")
    # The next tile of the second operand lies behind this one: it is fetched meanwhile.
    lines += ["prefetcht0 4096($1)", "decq %rsi"]
    # At the end of a row other steps, without a branch that would often be guessed wrongly.
    lines += [f"movl $${_STEP_L}, %edi", "cmoveq $5, %rdi", "leaq ($0,%rdi), $0"]
    lines += [f"movl $${_STEP_S}, %edi", "cmoveq $6, %rdi", "leaq ($1,%rdi), $1"]
    lines += ["cmoveq $4, %rsi", "decq $2", "jne 1b"]
    lines += [f"vmovups %zmm{register[s, v]}, {256 * s + 64 * v}($3)" for s, v in tile]
    return "\n".join(lines)


def _multiply(
    _typing: Any, _sums: Any, _loaded: Any, _spread: Any, _places: Any, _columns: Any,
    _next_loaded: Any, _next_spread: Any,
) -> Any:  # fmt: skip
    """Addresses of a tile's sums and of its first pairs, as ``_assembly`` has them."""

    def lower(context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        from llvmlite import binding, ir

        binding.initialize_native_asmparser()
        sums, loaded, spread, places, columns, next_loaded, next_spread = arguments
        i64 = ir.IntType(64)
        changed = ir.LiteralStructType([i64] * 3)
        clobbered = ["rsi", "rdi", "memory", "dirflag", "fpsr", "flags"]
        clobbered += [f"zmm{number}" for number in range(32)]
        constraints = "=&r,=&r,=&r,r,r,r,r,0,1,2," + ",".join(f"~{{{c}}}" for c in clobbered)
        assembly = ir.InlineAsm(
            ir.FunctionType(changed, [i64] * 7), _assembly(), constraints, side_effect=True
        )
        given = [sums, columns, next_loaded, next_spread, loaded, spread, places]
        builder.call(assembly, given)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), lower


multiply: Any = intrinsic(_multiply)


@kernel
def _pack(rows: Any, images: Any, packed: Any, first: Any, last: Any) -> None:
    """Bits of bfloat16 (images · places, channels) -> pairs as uint32 (pairs, tiles, places,
    channels of a tile): an even image's in the lower half, the next one's in the upper. Zeros
    where there is no such image or channel."""
    places, width = packed.shape[2], packed.shape[3]
    for pair in range(first, last):
        even = 2 * pair * places
        both = 2 * pair + 1 < images
        for tile in range(packed.shape[1]):
            low = tile * width
            count = min(width, rows.shape[1] - low)
            for place in range(places):
                a, b = even + place, even + places + place
                if both:
                    for c in range(count):
                        high = np.uint32(rows[b, low + c]) << np.uint32(16)
                        packed[pair, tile, place, c] = np.uint32(rows[a, low + c]) | high
                else:
                    for c in range(count):
                        packed[pair, tile, place, c] = rows[a, low + c]
                for c in range(count, width):
                    packed[pair, tile, place, c] = 0


@kernel
def _tile_sums(loaded: Any, spread: Any, sums: Any, tap: Any, shape: Any) -> None:
    """One tile, one offset of the filter, one pair of images. ``shape``: whether the input is
    the first operand, filter's side, padding, height and width of both."""
    input_loaded, side, padding, high_l, wide_l, high_s, wide_s = shape
    dy, dx = tap // side - padding, tap % side - padding
    # Place (r, c) of the output meets (r + dy, c + dx) of the input.
    in_high, in_wide, high, wide = high_s, wide_s, high_l, wide_l
    if input_loaded:
        in_high, in_wide, high, wide = high_l, wide_l, high_s, wide_s
    top, left = max(0, -dy), max(0, -dx)
    rows, columns = min(high, in_high - dy) - top, min(wide, in_wide - dx) - left
    if rows <= 0 or columns <= 0:
        return
    inside, outside = (top + dy) * in_wide + left + dx, top * wide + left
    place_l, place_s = (inside, outside) if input_loaded else (outside, inside)
    multiply(
        sums, loaded + place_l * _STEP_L, spread + place_s * _STEP_S, rows * columns, columns,
        (wide_l - columns + 1) * _STEP_L, (wide_s - columns + 1) * _STEP_S,
    )  # fmt: skip


@kernel
def _sums(
    loaded: Any, spread: Any, sums: Any, counts: Any, shape: Any, first: Any, last: Any
) -> None:
    """Addresses of the packed operands and of the sums (tiles, tiles, taps, channels, channels).
    ``counts``: pairs, tiles of both, tiles of the second that are taken together."""
    pairs, tiles_l, tiles_s, group = counts
    _, side, _, high_l, wide_l, high_s, wide_s = shape
    bytes_l, bytes_s = high_l * wide_l * _STEP_L, high_s * wide_s * _STEP_S
    groups = (tiles_s + group - 1) // group
    for item in range(first, last):
        a, begin = item // groups, item % groups * group
        for pair in range(pairs):
            one = loaded + (pair * tiles_l + a) * bytes_l
            for b in range(begin, min(tiles_s, begin + group)):
                other = spread + (pair * tiles_s + b) * bytes_s
                to = sums + (a * tiles_s + b) * side * side * _TILE
                for tap in range(side * side):
                    _tile_sums(one, other, to + tap * _TILE, tap, shape)


def _packed(x: Tensor, width: int) -> Tensor:
    """A batch (B, C, H, W), channels last -> int32 (pairs, tiles, H · W, width)."""
    images, channels, height, wide = x.shape
    pairs = -(-images // 2)
    shape = (pairs, -(-channels // width), height * wide, width)
    result = torch.empty(shape, dtype=torch.int32)
    rows, target = channel_rows(x), result.numpy().view(np.uint32)
    in_parts(lambda a, b: _pack(rows, images, target, a, b), pairs, 1)
    return result


def weight_gradient(x: Tensor, gradient: Tensor, side: int, padding: int) -> Tensor:
    """Inputs (B, C, H, W) and gradients (B, O, h, w) of the sums of a convolution with stride 1,
    bfloat16, channels last -> (O, C, side, side) float32; C or O is a multiple of 64."""
    input_loaded = x.shape[1] % _LOADED == 0
    one, other = (x, gradient) if input_loaded else (gradient, x)
    loaded, spread = _packed(one, _LOADED), _packed(other, _SPREAD)
    pairs, tiles_l, tiles_s = *loaded.shape[:2], spread.shape[1]
    sums = torch.zeros(tiles_l, tiles_s, side * side, _SPREAD, _LOADED)
    group = max(1, min(_GROUP, tiles_l * tiles_s // torch.get_num_threads()))
    counts = (pairs, tiles_l, tiles_s, group)
    shape = (input_loaded, side, padding, *one.shape[2:], *other.shape[2:])
    arrays = (loaded.data_ptr(), spread.data_ptr(), sums.data_ptr())
    in_parts(lambda a, b: _sums(*arrays, counts, shape, a, b), tiles_l * -(-tiles_s // group), 1)
    # Output channels, taps, input channels: what channels-last weights lie like.
    order = (1, 3, 2, 0, 4) if input_loaded else (0, 4, 2, 1, 3)
    inputs = (tiles_l * _LOADED) if input_loaded else (tiles_s * _SPREAD)
    wide = sums.permute(order).reshape(-1, side, side, inputs)
    return wide[: gradient.shape[1], :, :, : x.shape[1]].permute(0, 3, 1, 2)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return functional.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight = ctx.saved_tensors
        inputs, weights, biases, _ = ctx.needs_input_grad
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        dx, dw, db = None, None, None
        if inputs:
            padding = [ctx.padding] * 2
            dx = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1,
                [True, False, False],
            )[0]  # fmt: skip
        if weights:
            found = weight_gradient(x, gradient, weight.shape[2], ctx.padding)
            dw = torch.empty_like(weight).copy_(found)
        if biases:
            db = gradient.sum((0, 2, 3))
        return dx, dw, db, None


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """``functional.conv2d`` with stride 1, differentiable once; what ``fits``."""
    convolved: Tensor = _Convolve.apply(x, weight, bias, padding)
    return convolved


def fits(x: Tensor, layer: torch.nn.Conv2d) -> bool:
    """Whether ``convolve`` takes this batch and layer, and pays."""
    height, width = layer.kernel_size
    return (
        x.device.type == "cpu"
        and x.dtype == layer.weight.dtype == torch.bfloat16
        and layer.weight.requires_grad
        and torch.is_grad_enabled()
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
        and height == width > 1
        and not isinstance(layer.padding, str)
        and layer.padding[0] == layer.padding[1]
        and layer.padding_mode == "zeros"
        and any(channels % _LOADED == 0 for channels in layer.weight.shape[:2])
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and multiplies_pairs()
    )


@functools.cache
def multiplies_pairs() -> bool:
    """Whether this processor, and what numba compiles for, have the instruction; False with AMX,
    on which oneDNN is faster."""
    from llvmlite import binding

    config = numba.config
    own = config.CPU_NAME is None and config.CPU_FEATURES is None
    has = binding.get_host_cpu_features()
    return own and bool(has.get("avx512bf16")) and not torch.cpu.get_capabilities().get("amx_bf16")
