"""Response normalisation across channels in one pass over memory, for CPUs.

Rows are the places of a channels-last batch: (B·H·W, C), so a place's channels lie side by
side and stay in the first cache. What the definition writes as five passes over 74 MB (a
batch of 64 after the first layer) is one read and one write.
"""

from __future__ import annotations

import ctypes
import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba.core import types
from numba.extending import intrinsic
from torch import Tensor

from trainer.numba_ext import kernel

_ROWS_WORTH_A_THREAD = 256
DTYPES = (torch.float32, torch.bfloat16)


def _wide(_typing: Any, stored: Any) -> Any:
    """A float32, or a bfloat16 as uint16 -> float32."""

    def lower(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        from llvmlite import ir

        if stored != types.uint16:
            return arguments[0]
        i32 = ir.IntType(32)
        bits = builder.shl(builder.zext(arguments[0], i32), ir.Constant(i32, 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(stored), lower


def _like(_typing: Any, _value: Any, stored: Any) -> Any:
    """A float32 -> what it is stored as: of the second's type. To bfloat16 it is rounded to
    nearest, ties to even; NaN stays NaN."""

    def lower(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        from llvmlite import ir

        if stored != types.uint16:
            return arguments[0]
        i16, i32 = ir.IntType(16), ir.IntType(32)
        bits = builder.bitcast(arguments[0], i32)
        high = builder.lshr(bits, ir.Constant(i32, 16))
        odd = builder.and_(high, ir.Constant(i32, 1))
        moved = builder.add(builder.add(bits, ir.Constant(i32, 0x7FFF)), odd)
        rounded = builder.trunc(builder.lshr(moved, ir.Constant(i32, 16)), i16)
        sound = builder.fcmp_ordered("ord", arguments[0], arguments[0])
        return builder.select(sound, rounded, ir.Constant(i16, 0x7FC0))

    return stored(types.float32, stored), lower


wide: Any = intrinsic(_wide)
like: Any = intrinsic(_like)


@kernel
def _read(rows: Any, r: Any, values: Any) -> Any:
    # Not given as rows[r]: a part counts its owners, and two threads would fight over that.
    for c in range(values.shape[0]):
        values[c] = wide(rows[r, c])


@kernel
def _write(values: Any, rows: Any, r: Any) -> Any:
    for c in range(values.shape[0]):
        rows[r, c] = like(values[c], rows[r, c])


@kernel
def _squares(a: Any, padded: Any, low: Any) -> Any:
    for c in range(a.shape[0]):
        padded[c + low] = a[c] * a[c]


@kernel
def _window_sums(padded: Any, size: Any, sums: Any) -> Any:
    """padded (C + size - 1,) -> sums (C,): of ``size`` neighbours each, in a fixed order."""
    if size == 5:  # the usual one, in one loop: less time, the same bits
        for c in range(sums.shape[0]):
            three = padded[c] + padded[c + 1] + padded[c + 2]
            sums[c] = three + padded[c + 3] + padded[c + 4]
        return
    for c in range(sums.shape[0]):
        sums[c] = padded[c]
    for w in range(1, size):
        for c in range(sums.shape[0]):
            sums[c] += padded[c + w]


@kernel
def _powers(sums: Any, alpha: Any, beta: Any, k: Any, power: Any) -> Any:
    """Σ a² -> d = k + α Σ a² in its place, and d^-β; two square roots for the usual β."""
    for c in range(sums.shape[0]):
        sums[c] = k + alpha * sums[c]
    if beta == np.float32(0.75):
        for c in range(sums.shape[0]):
            r = np.float32(1) / np.sqrt(sums[c])
            power[c] = r * np.sqrt(r)
    else:
        for c in range(sums.shape[0]):
            power[c] = sums[c] ** -beta


@kernel
def _forward(
    x: Any, y: Any, size: Any, alpha: Any, beta: Any, k: Any, first: Any, last: Any
) -> Any:
    channels = x.shape[1]
    padded = np.zeros(channels + size - 1, np.float32)
    a, sums = np.empty(channels, np.float32), np.empty(channels, np.float32)
    power = np.empty(channels, np.float32)
    for r in range(first, last):
        _read(x, r, a)
        _squares(a, padded, size // 2)
        _window_sums(padded, size, sums)
        _powers(sums, alpha, beta, k, power)
        for c in range(channels):
            a[c] *= power[c]
        _write(a, y, r)


@kernel
def _backward(
    x: Any, g: Any, dx: Any, size: Any, alpha: Any, beta: Any, k: Any, first: Any, last: Any
) -> Any:
    channels = x.shape[1]
    padded = np.zeros(channels + size - 1, np.float32)
    # The windows that a channel is in reach as far to the other side.
    spread = np.zeros(channels + size - 1, np.float32)
    a, scaled = np.empty(channels, np.float32), np.empty(channels, np.float32)
    sums, power = np.empty(channels, np.float32), np.empty(channels, np.float32)
    high, factor = (size - 1) // 2, np.float32(2) * alpha * beta
    for r in range(first, last):
        _read(x, r, a)
        _read(g, r, scaled)
        _squares(a, padded, size // 2)
        _window_sums(padded, size, sums)
        _powers(sums, alpha, beta, k, power)
        for c in range(channels):
            scaled[c] *= power[c]
        for c in range(channels):
            spread[c + high] = scaled[c] * a[c] / sums[c]
        _window_sums(spread, size, sums)
        for c in range(channels):
            scaled[c] -= factor * a[c] * sums[c]
        _write(scaled, dx, r)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="lrn")


@functools.cache
def _openmp() -> Any:
    """GNU's OpenMP library as PyTorch has loaded it; None: there is none, or no list of what is
    loaded."""
    try:
        loaded = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = sorted({line.split()[-1] for line in loaded if "libgomp" in line})
    own = [path for path in paths if "torch" in path]
    return ctypes.CDLL((own or paths)[0]) if paths else None


def in_parts(run: Any, rows: int, least: int = _ROWS_WORTH_A_THREAD) -> None:
    """``run(first, last)`` over all rows, by as many threads as PyTorch would use, ``least``
    rows or more in each.

    By PyTorch's own threads where that can be had: after each of its operations they wait for
    the next one for some milliseconds without sleeping, and others would have to share the CPUs
    with them. Not by numba's: of its thread layers not all bear being called from two threads,
    and the loader calls from another.
    """
    threads = max(1, min(torch.get_num_threads(), rows // least))
    ends = [rows * part // threads for part in range(threads + 1)]
    if threads == 1:
        run(0, rows)
        return
    library = _openmp()
    if library is None:
        others = [_pool(threads - 1).submit(run, ends[t], ends[t + 1]) for t in range(1, threads)]
        run(0, ends[1])
        for other in others:
            other.result()
        return
    errors: list[BaseException] = []

    def share(_: Any) -> None:
        try:  # there may be fewer threads than parts
            for part in range(library.omp_get_thread_num(), threads, library.omp_get_num_threads()):
                run(ends[part], ends[part + 1])
        except BaseException as error:  # noqa: BLE001  none can pass through the library
            errors.append(error)

    library.GOMP_parallel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(share), None, threads, 0)
    if errors:
        raise errors[0]


def fits(x: Tensor) -> bool:
    """Whether the kernels take this batch: on the CPU, channels last, of a dtype they know."""
    return (
        x.device.type == "cpu"
        and x.dtype in DTYPES
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() > 0
    )


def channel_rows(x: Tensor) -> Any:
    """A channels-last batch -> its memory as (B·H·W, C); bfloat16 as uint16."""
    rows = x.detach().permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    return (rows.view(torch.uint16) if x.dtype == torch.bfloat16 else rows).numpy()


def _numbers(alpha: float, beta: float, k: float) -> tuple[Any, Any, Any]:
    return np.float32(alpha), np.float32(beta), np.float32(k)


def forward(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """(B, C, H, W) that ``fits`` -> the same normalised; float32 arithmetic throughout."""
    y = torch.empty_like(x)
    source, target, numbers = channel_rows(x), channel_rows(y), _numbers(alpha, beta, k)
    in_parts(lambda a, b: _forward(source, target, size, *numbers, a, b), len(source))
    return y


def backward(x: Tensor, gradient: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """The gradient of ``forward``'s input from that of its output."""
    gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
    result = torch.empty_like(x)
    source, given, target = channel_rows(x), channel_rows(gradient), channel_rows(result)
    numbers = _numbers(alpha, beta, k)
    in_parts(lambda a, b: _backward(source, given, target, size, *numbers, a, b), len(source))
    return result
