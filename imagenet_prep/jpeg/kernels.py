"""The CUDA kernels around ``core``, made by factories for each variant; see ``cuda``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda as _cuda

from imagenet_prep.core.compiled import kept
from imagenet_prep.jpeg import core
from imagenet_prep.jpeg.core import HUFFMAN, OK, QUANT, RAW, STRIDE, TURNED, i32, i64, u32, u64

cuda: Any = _cuda
F = Any
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
DTYPES = ("uint8", "float32", "float16", "bfloat16")
LAYOUTS = ("channels_last", "channels_first", "space_to_depth")
HUFFMAN_THREADS, IDCT_THREADS = 128, 256
BAND = 4
"""Rows of a view that a block of threads makes: those of a space-to-depth cell."""
SLOTS = IDCT_THREADS // 8
_PITCH = 72  # of a block in shared memory, its rows 9 apart: no bank conflicts
_WORK = SLOTS * _PITCH
f32, f64 = np.float32, np.float64


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function for kernels."""
    compiled: Callable[..., Any] = cuda.jit(device=True)(function)
    return compiled


def global_kernel(function: Callable[..., Any]) -> Any:
    """A kernel that is kept on disk."""
    return kept(cuda.jit(function))


if SIMULATED:

    def _simulated_bits(v: F) -> F:
        return f32(v).view(np.uint32)

    raw_bits: F = _simulated_bits
    times: F = np.multiply
    times64: F = np.multiply
    rounded: F = np.rint
else:
    from numba.cuda import libdevice as _libdevice
    from numba.cuda.core import config as _config

    # The kernels of a small batch have few blocks; a warning for each launch helps nobody.
    _config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

    libdevice: Any = _libdevice
    # Products that are rounded before anything is added to them, as on a CPU.
    times, times64, rounded = libdevice.fmul_rn, libdevice.dmul_rn, libdevice.rintf

    @on_device
    def raw_bits(v: F) -> F:
        """The bits of a float32."""
        return u32(libdevice.float_as_int(v))


_core = core.make(on_device)
decode_row, column, idct8, packed = _core.decode_row, _core.column, _core.idct8, _core.packed
place, pixel, job_status, view_status = (
    _core.place,
    _core.pixel,
    _core.job_status,
    _core.view_status,
)


@on_device
def bfloat16_bits(v: F) -> F:
    """A float32 that is not NaN -> the bits of the nearest bfloat16, ties to even."""
    b = raw_bits(v)
    odd = u32(u32(b >> u32(16)) & u32(1))
    return np.int16(np.uint16(u32(b + u32(0x7FFF) + odd) >> u32(16)))


def huffman_kernel(single: int, source: int) -> F:
    """``single``: one set of Huffman tables for all images, copied into shared memory."""
    length = 4 * STRIDE if single else 1

    @global_kernel
    def huffman(
        words: F, jobs: F, begins: F, positions: F, predictors: F, luts: F, coefs: F,
        status: F, rows: F, blocks: F, quants: F,
    ) -> None:  # fmt: skip
        _ = source
        own = cuda.shared.array(length, np.uint16)
        zigzag = cuda.shared.array(64, np.int32)
        turned = cuda.const.array_like(TURNED)
        me, step = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
        if single:
            for j in range(me, length, step):
                own[j] = luts[j]
        for j in range(me, 64, step):
            zigzag[j] = turned[j]
        cuda.syncthreads()
        t = i32(cuda.blockIdx.x * step + me)
        image = i32(u32(t) // u32(rows))
        r = i32(t - image * rows)
        if image >= jobs.shape[0]:
            return
        job = jobs[image]
        huffmans = i32(luts.shape[0] // (4 * STRIDE))
        n_bytes = i64(words.shape[0]) * i64(4)
        bad = job_status(job, begins[image], n_bytes, positions.shape[0], blocks, huffmans, quants)
        if bad != OK:
            if r == 0:
                status[image] = job[7] if job[0] == -1 and job[7] > 0 else bad
            return
        side = i32(16) if job[0] == 2 else i32(8)
        if job[0] == RAW or r >= i32(u32(i32(job[2] + side - 1)) // u32(side)):
            return
        here = i32(i32(image * blocks) * i32(64))
        if single:
            found = decode_row(
                words, begins[image], job, r, positions, predictors, own, i32(0), zigzag, coefs,
                here,
            )  # fmt: skip
        else:
            first = i32(job[HUFFMAN] * i32(4 * STRIDE))
            found = decode_row(
                words, begins[image], job, r, positions, predictors, luts, first, zigzag, coefs,
                here,
            )  # fmt: skip
        if found != OK:
            status[image] = found

    return huffman


def idct_kernel(source: int) -> F:
    @global_kernel
    def idct(coefs: F, jobs: F, quants: F, planes: F, status: F, blocks: F) -> None:
        _ = source
        work = cuda.shared.array(_WORK, np.int32)
        me = i32(cuda.threadIdx.x)
        lane, slot = i32(me & i32(7)), i32(me >> i32(3))
        groups = i32(u32(i32(blocks + SLOTS - 1)) // u32(SLOTS))
        image = i32(u32(cuda.blockIdx.x) // u32(groups))
        inside = i32(i32(cuda.blockIdx.x - image * groups) * i32(SLOTS) + slot)
        job = jobs[image]
        component, first, wide = i32(-1), i32(0), i32(1)
        p = i64(i32(image * blocks) + inside) * i64(16) + i64(lane * i32(2))
        if inside < blocks and status[image] == OK and job[0] != RAW:
            component, first, wide = place(job, inside)
        if component >= 0:
            q = i32(i32(job[QUANT]) * i32(48) + component * i32(16) + lane * i32(2))
            r0, r1, r2, r3, r4, r5, r6, r7 = column(
                coefs[u64(p)], coefs[u64(p + 1)], quants[u32(q)], quants[u32(q + 1)]
            )
            w = i32(slot * i32(_PITCH) + lane)
            work[w], work[w + 9], work[w + 18], work[w + 27] = r0, r1, r2, r3
            work[w + 36], work[w + 45], work[w + 54], work[w + 63] = r4, r5, r6, r7
        if inside < blocks:  # for the next batch, also behind damage
            coefs[u64(p)], coefs[u64(p + 1)] = i64(0), i64(0)
        cuda.syncthreads()
        if component >= 0:
            w = i32(slot * i32(_PITCH) + lane * i32(9))
            r0, r1, r2, r3, r4, r5, r6, r7 = idct8(
                work[w], work[w + 1], work[w + 2], work[w + 3],
                work[w + 4], work[w + 5], work[w + 6], work[w + 7], i32(18),
            )  # fmt: skip
            k = i32(inside - first)
            by = i32(u32(k) // u32(wide))
            at = i64(image) * i64(blocks * i32(8))
            at += i64(i32(first * i32(8)) + i32(by * i32(8) + lane) * wide + i32(k - by * wide))
            low, high = packed(r0, r1, r2, r3), packed(r4, r5, r6, r7)
            planes[u64(at)] = u64(u64(low) | u64(u64(high) << u64(32)))

    return idct


def weigh_kernel(source: int) -> F:
    @global_kernel
    def weigh(views: F, size: F, taps: F, spans: F, weights: F) -> None:
        """The triangle filter that resamples each view: for each axis and each place of the
        output the first source pixel and the count, and the weights."""
        _ = source
        t = i32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
        line = i32(u32(t) // u32(size))
        o = i32(t - line * size)
        view, axis = i32(line >> i32(1)), i32(line & i32(1))
        if view >= views.shape[0]:
            return
        length = i32(views[view, 2 + axis])
        if length < 1 or length > 65535:
            length = i32(1)
        scale = f64(length) / f64(size)
        support = max(scale, f64(1.0))
        centre = times64(f64(o) + 0.5, scale)
        first = i32(max(i32(centre - support + 0.5), i32(0)))
        count = i32(min(i32(centre + support + 0.5), length) - first)
        count = i32(min(count, taps))
        total = f64(0.0)
        for j in range(count):
            total += max(1.0 - abs(f64(first + j) + 0.5 - centre) / support, 0.0)
        for j in range(count):
            weight = max(1.0 - abs(f64(first + j) + 0.5 - centre) / support, 0.0)
            weights[line, o, j] = f32(weight / total)
        spans[line, o, 0], spans[line, o, 1] = first, count

    return weigh


@on_device
def stored(out: F, at: F, v: F, form: F) -> None:
    """Writes a float32 in the dtype ``form`` of DTYPES."""
    if form == 3:
        out[u64(at)] = bfloat16_bits(v)
    elif form == 0:
        out[u64(at)] = np.uint8(min(max(rounded(v), f32(0)), f32(255)))
    else:
        out[u64(at)] = v


@on_device
def less_mean(
    data: F, origin: F, job: F, view: F, mean: F, centre: F, y: F, x: F
) -> F:  # fmt: skip
    """Pixel (y, x) of an image, less the mean at its place; of a ``centre`` mean, less what lies
    at its place in the view."""
    r, g, b = pixel(data, origin, i32(job[0]), i32(job[1]), i32(job[2]), y, x)
    my, mx = y, x
    if mean.shape[0] == 1 and mean.shape[1] == 1:
        my, mx = i32(0), i32(0)
    elif centre != 0:
        my = i32(i32(i32(mean.shape[0] - view[2]) >> i32(1)) + i32(y - view[0]))
        mx = i32(x - view[1])
        if view[4] != 0:
            mx = i32(view[3] - i32(1) - mx)
        mx = i32(i32(i32(mean.shape[1] - view[3]) >> i32(1)) + mx)
    m = mean[u32(my), u32(mx)]
    return f32(r) - m[0], f32(g) - m[1], f32(b) - m[2]


@on_device
def resampled(
    data: F, origin: F, job: F, view: F, mean: F, centre: F, spans: F, weights: F, v: F,
    y: F, x: F, shift: F,
) -> F:  # fmt: skip
    """Place (y, x) of the resampled view: over columns, of sums over rows, in the CPU's order."""
    rows, columns = i32(2 * v), i32(2 * v + 1)
    r, g, b = shift[0], shift[1], shift[2]
    for j in range(spans[columns, x, 1]):
        sx = i32(view[1] + spans[columns, x, 0] + j)
        red, green, blue = f32(0), f32(0), f32(0)
        for i in range(spans[rows, y, 1]):
            sy = i32(view[0] + spans[rows, y, 0] + i)
            pr, pg, pb = less_mean(data, origin, job, view, mean, centre, sy, sx)
            weight = weights[rows, y, i]
            red += times(weight, pr)
            green += times(weight, pg)
            blue += times(weight, pb)
        weight = weights[columns, x, j]
        r += times(weight, red)
        g += times(weight, green)
        b += times(weight, blue)
    return r, g, b


def view_kernel(form: int, layout: int, resized: int, source: int) -> F:
    """``form`` and ``layout`` count DTYPES and LAYOUTS. A block of threads makes BAND rows."""

    @global_kernel
    def view(
        data: F, planes: F, jobs: F, begins: F, views: F, each: F, mean: F, centre: F, shift: F,
        gain: F, spans: F, weights: F, out: F, status: F, size: F, blocks: F, limits: F,
    ) -> None:  # fmt: skip
        _ = source
        bands = i32(i32(size + BAND - 1) >> i32(2))
        v = i32(u32(cuda.blockIdx.x) // u32(bands))
        band = i32(cuda.blockIdx.x - v * bands)
        image = i32(u32(v) // u32(each))
        job, window = jobs[image], views[v]
        good = status[image] == OK
        n_bytes = i64(data.shape[0])
        good = (
            good
            and job_status(job, begins[image], n_bytes, limits[0], blocks, limits[1], limits[2])
            == OK
        )
        if good and view_status(job, window, size, resized, mean, centre) != OK:
            good = False
            if cuda.threadIdx.x == 0:
                status[image] = i32(core.BAD_VIEW)
        is_raw = job[0] == RAW
        origin = begins[image] if is_raw else i64(image) * i64(blocks * i32(64))
        p = i32(cuda.threadIdx.x)
        wide = i32(bands * BAND) if layout == 2 else size
        end = i32(wide * i32(BAND))
        while p < end:
            if layout == 2:  # cell after cell, a cell's rows one after the other
                dy = i32(i32(p >> i32(2)) & i32(3))
                x = i32(i32(i32(p >> i32(4)) << i32(2)) + i32(p & i32(3)))
                at = i64(i32(v * bands) + band) * i64(wide * i32(12)) + i64(p * i32(3))
            else:
                dy = i32(u32(p) // u32(wide))
                x = i32(p - dy * wide)
                at = i64(v) * i64(i32(3) * size * size)
                at += i64(i32(i32(band * i32(BAND) + dy) * size + x)) * i64(1 if layout else 3)
            y = i32(band * i32(BAND) + dy)
            stride = i64(size * size) if layout == 1 else i64(1)
            if y < size and (layout == 2 or x < size):
                red, green, blue = f32(0), f32(0), f32(0)
                if good and x < size:
                    sx = i32(size - i32(1) - x) if window[4] != 0 else x
                    pixels = data if is_raw else planes
                    if resized:
                        red, green, blue = resampled(
                            pixels, origin, job, window, mean, centre, spans, weights, v, y, sx,
                            shift[image],
                        )  # fmt: skip
                    elif form == 0:
                        r, g, b = pixel(
                            pixels, origin, i32(job[0]), i32(job[1]), i32(job[2]),
                            i32(window[0] + y), i32(window[1] + sx),
                        )  # fmt: skip
                        red, green, blue = f32(r), f32(g), f32(b)
                    else:
                        red, green, blue = less_mean(
                            pixels, origin, job, window, mean, centre, i32(window[0] + y),
                            i32(window[1] + sx),
                        )  # fmt: skip
                        red += shift[image, 0]
                        green += shift[image, 1]
                        blue += shift[image, 2]
                    if form != 0:
                        red, green, blue = red * gain[0], green * gain[1], blue * gain[2]
                stored(out, at, red, form)
                stored(out, at + stride, green, form)
                stored(out, at + 2 * stride, blue, form)
            elif layout == 2:
                for k in range(3):
                    stored(out, at + k, f32(0), form)
            p = i32(p + cuda.blockDim.x)

    return view
