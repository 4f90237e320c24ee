"""What follows a convolution, in one pass each way, for CPUs: bias, ReLU, LRN, max pooling.

Batches lie channels last. One image is the unit of work, so no two threads share sums. A row of
places is float32 in the caches, two zeros before and behind the channels of each place: sums
over neighbours, powers and maxima are loops over the whole row. The functions are those of
``blocks_triton``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.network.lrn_cpu import channel_rows, in_parts, like, wide
from trainer.numba_ext import kernel

_PAD = 2  # neighbours of LRN on each side
_LARGE = np.float32(1e37)  # for what is smaller, all squares on the way stay normal
# Loops with more arrays than a few are left scalar: the compiler must tell all of them apart. So
# are those whose index might be negative, for all that it knows.


@kernel
def _read(z: Any, r: Any, bias: Any, relu: Any, a: Any) -> None:
    """A row of places of ``z``, from row ``r`` on, with their bias -> ``a`` (W, C + 4)."""
    for w in range(a.shape[0]):
        if relu:
            for c in range(z.shape[1]):
                v = wide(z[r + w, c]) + wide(bias[c])
                a[w, c + _PAD] = np.float32(0) if v <= 0 else v  # what is not a number stays so
        else:
            for c in range(z.shape[1]):
                a[w, c + _PAD] = wide(z[r + w, c]) + wide(bias[c])


@kernel
def _quarter_root(d: Any) -> Any:
    """A float32 of normal size, d -> d^-1/4 to three units in the last place, in multiplications:
    roots and quotients take several times as long.

    Bits of a float32 are about its logarithm; Newton's steps do the rest.
    """
    x = np.int32(np.int32(0x4F584800) - (np.float32(d).view(np.int32) >> 2)).view(np.float32)
    for _ in range(3):
        square = x * x
        x *= np.float32(1.25) - np.float32(0.25) * d * (square * square)
    # Infinity gives 0, what is not a number stays so.
    return x if d <= _LARGE else (np.float32(0) if d == d else d)


@kernel
def _root_of(a: Any, i: Any, alpha: Any, k: Any) -> Any:
    """d^-1/4 of the place in the middle of five."""
    three = a[i] * a[i] + a[i + 1] * a[i + 1] + a[i + 2] * a[i + 2]
    return _quarter_root(k + alpha * (three + a[i + 3] * a[i + 3] + a[i + 4] * a[i + 4]))


@kernel
def _normalise(a: Any, alpha: Any, k: Any, line: Any) -> None:
    for i in range(a.shape[0] - 4):
        root = _root_of(a, i, alpha, k)
        line[i + 2] = a[i + 2] * (root * root * root)


@kernel
def _larger(a: Any, b: Any) -> Any:
    """The larger one; what is not a number is."""
    return b if (b > a) | (b != b) else a


@kernel
def _pool_row(
    top: Any, middle: Any, low: Any, best: Any, peak: Any, y: Any, cells: Any, r: Any
) -> None:
    """Three rows of keys -> a row of windows of ``y`` and ``cells``, from row ``r`` on."""
    for w in range(best.shape[0]):
        for c in range(best.shape[1]):
            best[w, c] = _larger(_larger(top[w, c], middle[w, c]), low[w, c])
    for o in range((best.shape[0] - 1) // 2):
        w = 2 * o
        for c in range(peak.shape[0]):
            v = _larger(best[w, c + _PAD], best[w + 1, c + _PAD])
            v = _larger(v, best[w + 2, c + _PAD])
            peak[c] = v
            y[r + o, c] = like(np.float32(0) if v <= 0 else v, y[r + o, c])
        for c in range(peak.shape[0]):
            cells[r + o, c] = 9
        # Backwards, so that the first one of equal values stays.
        _find(low, w, 6, peak, cells, r + o)
        _find(middle, w, 3, peak, cells, r + o)
        _find(top, w, 0, peak, cells, r + o)
        for c in range(peak.shape[0]):
            cells[r + o, c] = np.uint8(9) if peak[c] <= 0 else cells[r + o, c]


@kernel
def _find(line: Any, w: Any, first: Any, peak: Any, cells: Any, r: Any) -> None:
    """Notes which of three places has a window's largest value."""
    for c in range(peak.shape[0]):
        cell = cells[r, c]
        cell = np.uint8(first + 2) if line[w + 2, c + _PAD] == peak[c] else cell
        cell = np.uint8(first + 1) if line[w + 1, c + _PAD] == peak[c] else cell
        cells[r, c] = np.uint8(first) if line[w, c + _PAD] == peak[c] else cell


@kernel
def _pool_forward(
    z: Any, bias: Any, y: Any, cells: Any, sides: Any, settings: Any, first: Any, last: Any
) -> None:
    high, across, rows, columns = sides
    alpha, k, relu_first, lrn = settings
    channels, pitch = z.shape[1], z.shape[1] + 2 * _PAD
    lines, a = np.zeros((3, across, pitch), np.float32), np.zeros((across, pitch), np.float32)
    best, peak = np.empty((across, pitch), np.float32), np.empty(channels, np.float32)
    for image in range(first, last):
        for h in range(2 * rows + 1):
            r, line = (image * high + h) * across, lines[h % 3]
            if lrn:
                _read(z, r, bias, relu_first, a)
                _normalise(a.reshape(a.size), alpha, k, line.reshape(a.size))
            else:
                _read(z, r, bias, True, line)
            if h % 2 == 0 and h > 0:
                to = (image * rows + h // 2 - 1) * columns
                _pool_row(lines[(h - 2) % 3], lines[(h - 1) % 3], line, best, peak, y, cells, to)


@kernel
def _send(gradient: Any, cells: Any, r: Any, dy: Any, columns: Any, line: Any) -> None:
    """Adds what a row of windows sends to the row ``dy`` of its three."""
    for o in range(columns):
        for dx in range(3):
            number, w = np.uint8(3 * dy + dx), 2 * o + dx
            for c in range(cells.shape[1]):
                g = wide(gradient[r + o, c])
                line[w, c + _PAD] += g if cells[r + o, c] == number else np.float32(0)


@kernel
def _through_lrn(a: Any, alpha: Any, k: Any, relu_first: Any, line: Any, t: Any) -> None:
    """The gradients of LRN's outputs, in ``line``, -> those of its inputs ``a``."""
    for i in range(a.shape[0] - 4):
        root = _root_of(a, i, alpha, k)
        square = root * root
        scaled = line[i + 2] * (root * square)
        line[i + 2] = scaled
        t[i + 2] = scaled * a[i + 2] * (square * square)
    factor = np.float32(1.5) * alpha  # 2 alpha beta
    for i in range(a.shape[0] - 4):
        spread = t[i] + t[i + 1] + t[i + 2] + t[i + 3] + t[i + 4]
        line[i + 2] -= factor * a[i + 2] * spread
    if relu_first:
        for i in range(a.shape[0]):
            line[i] = line[i] if a[i] > 0 else np.float32(0)


@kernel
def _write(line: Any, dz: Any, r: Any, total: Any) -> None:
    """``line`` -> a row of places of ``dz``, from row ``r`` on; and added to ``total``."""
    for w in range(line.shape[0]):
        for c in range(dz.shape[1]):
            dz[r + w, c] = like(line[w, c + _PAD], dz[r + w, c])
        for c in range(dz.shape[1]):
            total[c] += line[w, c + _PAD]


@kernel
def _pool_backward(
    z: Any, bias: Any, gradient: Any, cells: Any, dz: Any, sums: Any, sides: Any, settings: Any,
    first: Any, last: Any,
) -> None:  # fmt: skip
    high, across, rows, columns = sides
    alpha, k, relu_first, lrn = settings
    channels, pitch = dz.shape[1], dz.shape[1] + 2 * _PAD
    line, a = np.zeros((across, pitch), np.float32), np.zeros((across, pitch), np.float32)
    t, total = np.zeros(across * pitch, np.float32), np.empty(channels, np.float32)
    for image in range(first, last):
        total[:] = 0
        for h in range(high):
            line[:] = 0
            # Row h is row 0 or 1 of the window that begins at or above it, and 2 of the last one.
            if h // 2 < rows:
                _send(gradient, cells, (image * rows + h // 2) * columns, h % 2, columns, line)
            if h % 2 == 0 and 0 < h // 2 <= rows:
                _send(gradient, cells, (image * rows + h // 2 - 1) * columns, 2, columns, line)
            r = (image * high + h) * across
            if lrn:
                _read(z, r, bias, relu_first, a)
                _through_lrn(a.reshape(a.size), alpha, k, relu_first, line.reshape(a.size), t)
            _write(line, dz, r, total)
        for c in range(channels):
            sums[image, c] = total[c]


@kernel
def _relu_forward(z: Any, bias: Any, first: Any, last: Any) -> None:
    for r in range(first, last):
        for c in range(z.shape[1]):
            v = wide(z[r, c]) + wide(bias[c])
            z[r, c] = like(np.float32(0) if v <= 0 else v, z[r, c])


@kernel
def _relu_backward(
    y: Any, gradient: Any, dz: Any, sums: Any, places: Any, first: Any, last: Any
) -> None:
    total, g = np.empty(y.shape[1], np.float32), np.empty(y.shape[1], np.float32)
    for image in range(first, last):
        total[:] = 0
        for r in range(image * places, (image + 1) * places):
            for c in range(g.shape[0]):
                g[c] = wide(gradient[r, c])
            for c in range(g.shape[0]):
                g[c] = g[c] if wide(y[r, c]) > 0 else np.float32(0)
            for c in range(g.shape[0]):
                total[c] += g[c]
            for c in range(g.shape[0]):
                dz[r, c] = like(g[c], dz[r, c])
        for c in range(y.shape[1]):
            sums[image, c] = total[c]


def _bias_of(bias: Tensor, z: Tensor) -> Any:
    """(C,) in the dtype of ``z``, bfloat16 as uint16."""
    row = bias.detach().to(z.dtype).contiguous()
    return (row.view(torch.uint16) if z.dtype == torch.bfloat16 else row).numpy()


def _settings(alpha: float, k: float, first: bool) -> tuple[Any, ...]:
    return np.float32(alpha), np.float32(k), first, alpha != 0


def pool_forward(
    z: Tensor, bias: Tensor, alpha: float, k: float, first: bool
) -> tuple[Tensor, Tensor]:
    """As ``blocks_triton.pool_forward``."""
    images, channels, height, width = z.shape
    rows, columns = (height - 3) // 2 + 1, (width - 3) // 2 + 1
    y = torch.empty((images, channels, rows, columns), dtype=z.dtype,
                    memory_format=torch.channels_last)  # fmt: skip
    cells = torch.empty_like(y, dtype=torch.uint8)
    arrays = (channel_rows(z), _bias_of(bias, z), channel_rows(y), channel_rows(cells))
    sides, settings = (height, width, rows, columns), _settings(alpha, k, first)
    in_parts(lambda a, b: _pool_forward(*arrays, sides, settings, a, b), images, 1)
    return y, cells


def pool_backward(
    z: Tensor | None, bias: Tensor, gradient: Tensor, cells: Tensor, sides: tuple[int, int],
    alpha: float, k: float, first: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As ``blocks_triton.pool_backward``."""
    images, channels, rows, columns = cells.shape
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    dz = torch.empty((images, channels, *sides), dtype=gradient.dtype,
                     memory_format=torch.channels_last)  # fmt: skip
    sums = torch.empty(images, channels)
    given = gradient if z is None else z
    arrays = (channel_rows(given), _bias_of(bias, given), channel_rows(gradient),
              channel_rows(cells), channel_rows(dz), sums.numpy())  # fmt: skip
    settings = _settings(alpha, k, first)
    in_parts(lambda a, b: _pool_backward(*arrays, (*sides, rows, columns), settings, a, b),
             images, 1)  # fmt: skip
    return dz, sums.sum(0)


def relu_forward_(z: Tensor, bias: Tensor) -> None:
    """As ``blocks_triton.relu_forward_``."""
    rows, values = channel_rows(z), _bias_of(bias, z)
    in_parts(lambda a, b: _relu_forward(rows, values, a, b), len(rows))


def relu_backward(y: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """As ``blocks_triton.relu_backward``."""
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    dz, sums = torch.empty_like(y), torch.empty(y.shape[:2])
    arrays = (channel_rows(y), channel_rows(gradient), channel_rows(dz), sums.numpy())
    places = y.shape[2] * y.shape[3]
    in_parts(lambda a, b: _relu_backward(*arrays, places, a, b), len(y), 1)
    return dz, sums.sum(0)
