"""JPEGs and raw images on a CUDA device -> batches of views, in four kernels around ``core``.

    clear     zeroes the coefficients and the statuses
    huffman   one thread for each MCU row: coefficients
    idct      eight threads for each block: a column each, then a row each: planes
    view      upsampling, colour, crop, mirror, mean, shift, gain, dtype and layout

Needs numba-cuda (``pip install numba-cuda[cu13]``). With NUMBA_ENABLE_CUDASIM=1 the kernels run in
its simulator. A batch of arrays is described by ``Batch``; nothing in it makes a kernel read or
write outside of its arrays. Kernels never wait for the host, nor the host for them: what is
wrong with an image is written into ``Batch.status``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import cuda as _cuda
from numpy.typing import NDArray

from imagenet_prep.jpeg import core
from imagenet_prep.jpeg.core import HUFFMAN, OK, QUANT, RAW, STRIDE, TURNED, i32, i64, u32, u64
from imagenet_prep.jpeg.index import Index, lookup_tables, turned_quants

cuda: Any = _cuda
F = Any
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
DTYPES = ("uint8", "float32", "float16", "bfloat16")
LAYOUTS = ("channels_last", "channels_first", "space_to_depth")
HUFFMAN_THREADS, IDCT_THREADS = 128, 256
BAND = 4
"""Rows of a view that a block of threads makes: those of a space-to-depth cell."""
_SLOTS = IDCT_THREADS // 8
_PITCH = 72  # of a block in shared memory, its rows 9 apart: no bank conflicts
_WORK = _SLOTS * _PITCH
f32, f64 = np.float32, np.float64


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function for kernels."""
    compiled: Callable[..., Any] = cuda.jit(device=True)(function)
    return compiled


def global_kernel(function: Callable[..., Any]) -> Any:
    """A kernel that is cached on disk. ``source`` in it makes any change of this package a new
    one: numba looks only at the kernel's own file."""
    return cuda.jit(cache=True)(function)


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


def _clear(source: int) -> F:
    @global_kernel
    def clear(coefs: F, status: F) -> None:
        _ = source
        step = i64(cuda.gridDim.x) * i64(cuda.blockDim.x)
        first = i64(cuda.blockIdx.x) * i64(cuda.blockDim.x) + i64(cuda.threadIdx.x)
        i = first
        while i < coefs.shape[0]:
            coefs[u64(i)] = i64(0)
            i += step
        i = first
        while i < status.shape[0]:
            status[u64(i)] = i32(0)
            i += step

    return clear


def _huffman(single: int, source: int) -> F:
    """``single``: one set of Huffman tables for all images, copied into shared memory."""
    length = 4 * STRIDE if single else 1

    @global_kernel
    def huffman(
        words: F, jobs: F, begins: F, positions: F, predictors: F, luts: F, turned: F, coefs: F,
        status: F, rows: F, blocks: F, quants: F,
    ) -> None:  # fmt: skip
        _ = source
        own = cuda.shared.array(length, np.uint16)
        zigzag = cuda.shared.array(64, np.int32)
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


def _idct(source: int) -> F:
    @global_kernel
    def idct(coefs: F, jobs: F, quants: F, planes: F, status: F, blocks: F) -> None:
        _ = source
        work = cuda.shared.array(_WORK, np.int32)
        me = i32(cuda.threadIdx.x)
        lane, slot = i32(me & i32(7)), i32(me >> i32(3))
        groups = i32(u32(i32(blocks + _SLOTS - 1)) // u32(_SLOTS))
        image = i32(u32(cuda.blockIdx.x) // u32(groups))
        inside = i32(i32(cuda.blockIdx.x - image * groups) * i32(_SLOTS) + slot)
        job = jobs[image]
        component, first, wide = i32(-1), i32(0), i32(1)
        if inside < blocks and status[image] == OK and job[0] != RAW:
            component, first, wide = place(job, inside)
        if component >= 0:
            p = i64(i32(image * blocks) + inside) * i64(16) + i64(lane * i32(2))
            q = i32(i32(job[QUANT]) * i32(48) + component * i32(16) + lane * i32(2))
            r0, r1, r2, r3, r4, r5, r6, r7 = column(
                coefs[u64(p)], coefs[u64(p + 1)], quants[u32(q)], quants[u32(q + 1)]
            )
            w = i32(slot * i32(_PITCH) + lane)
            work[w], work[w + 9], work[w + 18], work[w + 27] = r0, r1, r2, r3
            work[w + 36], work[w + 45], work[w + 54], work[w + 63] = r4, r5, r6, r7
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


def _weigh(source: int) -> F:
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


def _view(form: int, layout: int, resized: int, source: int) -> F:
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


_kernels: dict[tuple[Any, ...], F] = {}


def kernel(make: Callable[..., F], *variant: int) -> F:
    """The kernel of a factory above for a variant; made once in a process, cached on disk."""
    key = (make, *variant)
    if key not in _kernels:
        _kernels[key] = make(*variant, core.SOURCE)
    return _kernels[key]


def as_array(tensor: Any) -> Any:
    """A contiguous CUDA tensor of torch -> the same memory for kernels (bfloat16 as int16)."""
    if str(tensor.dtype) == "torch.bfloat16":
        import torch

        tensor = tensor.view(torch.int16)
    return cuda.as_cuda_array(tensor, sync=False)


def as_stream(stream: Any) -> Any:
    """A CUDA stream of torch -> the same stream for kernels."""
    return cuda.external_stream(stream.cuda_stream)


class Tables(NamedTuple):
    """What all batches of an index share, on the device; see ``tables``."""

    luts: Any
    quants: Any
    turned: Any
    sets: tuple[int, int]


def tables(index: Index, upload: Callable[[NDArray[Any]], Any] = cuda.to_device) -> Tables:
    """The index's Huffman and quantisation tables, brought to the device by ``upload``."""
    luts = lookup_tables(index)
    if luts is None:
        raise ValueError("an index with Huffman tables that are not valid")
    empty = np.zeros(4 * STRIDE, np.uint16)
    quants = turned_quants(index) if len(index.quants) else np.zeros(48, np.int64)
    sets = (max(len(index.specs), 1), max(len(index.quants), 1))
    return Tables(upload(luts if len(luts) else empty), upload(quants), upload(TURNED), sets)


class Batch(NamedTuple):
    """n images on the device. ``jobs``, ``positions`` and ``predictors`` are those of
    ``Index.jobs``.

    words uint32 (W,): the bytes of the images as they are in the file; begins int64 (n,): the
    byte in ``words`` where each starts, of any alignment; jobs int32 (n, JOB); positions int32
    (R,); predictors int16 (R, 3); status int32 (n,), which the kernels write.
    """

    words: Any
    begins: Any
    jobs: Any
    positions: Any
    predictors: Any
    status: Any


class Views(NamedTuple):
    """What is made of each image, on the device.

    windows int32 (n · each, 5): y, x, height, width, mirror, views of one image together;
    mean float32 (H, W, 3), or (1, 1, 3) for one value per channel; shift float32 (n, 3); gain
    float32 (3,). A view is (window - mean + shift) · gain. ``centre``: the mean's centre is
    subtracted wherever the window lies, never mirrored. Zeros and ones for what is not wanted;
    uint8 views that are not ``resized`` are the image's pixels as they are.
    """

    windows: Any
    each: int
    mean: Any
    centre: bool
    shift: Any
    gain: Any


class Decoder:
    """Working memory for batches of up to ``images`` images, and the launches.

    ``index`` gives the sizes (the largest image decides). 192 bytes a block: 295 kB for an image
    of 256 px with 4:2:0. ``allocate(count, dtype)`` -> a one-dimensional device array. Batches
    on several streams need a Decoder each. All calls return at once.
    """

    def __init__(
        self,
        index: Index,
        shared: Tables,
        images: int,
        allocate: Callable[[int, Any], Any] = cuda.device_array,
    ) -> None:
        self.images, self.blocks, self.rows = images, index.blocks(), index.most_rows()
        if images * self.blocks * 64 >= 1 << 31:
            raise ValueError(f"{images} images of {self.blocks} blocks are more than 2^31 pixels")
        self.shared = shared
        self._allocate = allocate
        self._coefs64 = allocate(images * self.blocks * 16, np.int64)
        self._coefs = self._coefs64.view(np.int16)
        self._planes64 = allocate(images * self.blocks * 8, np.uint64)
        self._planes = self._planes64.view(np.uint8)
        self._side = index.most_side()
        # What resampling needs; without it, arrays of the same kinds.
        self._filters = self._allocated(1, 1, 1)

    def decode(self, batch: Batch, stream: Any = 0) -> None:
        """Starts the decoding of a batch; statuses are complete when the stream has come here."""
        count = len(batch.jobs)
        rows, blocks = i32(self.rows), i32(self.blocks)
        coefs = self._coefs64[: count * self.blocks * 16]
        grid = min(-(-len(coefs) // 256), 1 << 14)
        kernel(_clear)[grid, 256, stream](coefs, batch.status)
        luts, quants, turned, sets = self.shared
        grid = -(-count * self.rows // HUFFMAN_THREADS)
        kernel(_huffman, int(sets[0] == 1))[grid, HUFFMAN_THREADS, stream](
            batch.words, batch.jobs, batch.begins, batch.positions, batch.predictors, luts, turned,
            self._coefs, batch.status, rows, blocks, i32(sets[1]),
        )  # fmt: skip
        grid = -(-self.blocks // _SLOTS) * count
        kernel(_idct)[grid, IDCT_THREADS, stream](
            self._coefs64, batch.jobs, quants, self._planes64, batch.status, blocks
        )

    def view(
        self,
        batch: Batch,
        views: Views,
        out: Any,
        size: int,
        dtype: str,
        layout: str,
        *,
        resized: bool = False,
        stream: Any = 0,
    ) -> None:
        """Starts making views of ``size`` pixels of a decoded batch, into ``out``.

        ``out``: one-dimensional, of ``elements(...)``; bfloat16 as int16. channels_last is (n ·
        each, S, S, 3), channels_first (n · each, 3, S, S), space_to_depth (n · each, C, C, 48)
        with C = ceil(S / 4), where element (dy · 4 + dx) · 3 + c of cell (i, j) is channel c of
        pixel (4 i + dy, 4 j + dx), and zeros beyond the view. With ``resized``, windows of any
        size are resampled by a triangle filter. A view of an image with a status is zeros.
        """
        count = len(views.windows)
        if resized:
            self._weigh(views.windows, size, stream)
        form, order = DTYPES.index(dtype), LAYOUTS.index(layout)
        threads = min(-(-4 * size // 96) * 32, 512)
        limits = (len(batch.positions), *self.shared.sets)
        kernel(_view, form, order, int(resized))[-(-size // BAND) * count, threads, stream](
            batch.words.view(np.uint8), self._planes, batch.jobs, batch.begins, views.windows,
            i32(views.each), views.mean, i32(views.centre), views.shift, views.gain, *self._filters,
            out, batch.status, i32(size), i32(self.blocks), limits,
        )  # fmt: skip

    def _allocated(self, lines: int, size: int, taps: int) -> tuple[Any, Any]:
        spans = self._allocate(lines * size * 2, np.int32).reshape(lines, size, 2)
        return spans, self._allocate(lines * size * taps, np.float32).reshape(lines, size, taps)

    def _weigh(self, windows: Any, size: int, stream: Any) -> None:
        """Starts the computation of the filters that resample ``windows``."""
        lines, taps = 2 * len(windows), int(np.ceil(2 * max(self._side / size, 1.0))) + 2
        spans, weights = self._filters
        if len(spans) < lines or spans.shape[1] != size or weights.shape[2] != taps:
            self._filters = spans, weights = self._allocated(lines, size, taps)
        grid = -(-lines * size // 128)
        kernel(_weigh)[grid, 128, stream](windows, i32(size), i32(taps), spans, weights)


def elements(size: int, layout: str) -> int:
    """Elements of one view of ``size`` pixels in ``out``."""
    return 48 * (-(-size // BAND)) ** 2 if layout == "space_to_depth" else 3 * size * size
