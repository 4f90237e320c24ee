"""The CPU kernels: a batch's samples in the file -> their views, in one pass.

A sample is read and decoded into memory that stays in its thread's cache; its windows are cut,
flipped in the copy, and either left as uint8 or resampled where they must be, normalised and
written in the dtype and layout asked for. ``tests/kit/views.py`` defines the result in NumPy.

Everything that a batch needs is found through one address (see ``JOB``), so the compiled code
is kept on disk and serves every loader, whatever its data, seed and epoch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from imagenet_prep.core.compiled import kept
from imagenet_prep.jpeg import core as jpeg
from imagenet_prep.jpeg.cpu import draw
from trainer.numba_ext import (
    as_bytes,
    bfloat16_bits,
    colour_covariance,
    copy_row,
    float16_bits,
    kernel,
    mirror_row,
    numba,
    pointer_to,
    read_file,
    scatter,
)

# Status of a sample: OTHER is a JPEG that the decoder does not read; before the kernels run,
# GIVEN says that its pixels are given.
STATUS_OK, STATUS_CORRUPT, STATUS_SIZE, STATUS_SHORT, STATUS_OTHER, STATUS_GIVEN = range(6)
REASONS = {
    STATUS_CORRUPT: "its JPEG data are damaged",
    STATUS_SIZE: "its JPEG header is damaged or gives another size than the file's index",
    STATUS_SHORT: "the file ends before it or cannot be read",
}
FORMS = {"uint8": 0, "float32": 1, "bfloat16": 2, "float16": 3}
LEAST_DEVIATION = 1e-4
"""Below so many levels the colours of an image do not differ."""
# The job of a loader, int64, in this order. Addresses of: extents (samples, 4) int64: offset and
# bytes in the file, FFCV's mode (0 JPEG, 1 raw), number of the file; files int64: their
# descriptors; means (2, side, side, 3) float32, the second one mirrored; gain (3 out) float32;
# per thread: room uint8 (the decoder's), image uint8, packed uint8 (a JPEG's bytes), work float32,
# spans int64; per position in the batch: status int32, windows (V, 5) int32 (y, x, height, width,
# mirror), normals (3,) float64, shifts (3,) float32; the function pread; given: images
# (B, side, side, 3) that need no decoding, or 0. Then numbers and switches; own_colour: the colour
# shift comes from each image's own covariance.
JOB = (
    "extents", "files", "means", "gain", "room", "image", "packed", "work", "spans", "status",
    "windows", "normals", "shifts", "pread", "given", "room_bytes", "side", "out", "taps",
    "samples", "views", "most_packed", "form", "layout", "own_colour", "centre", "resample",
)  # fmt: skip
_JOB_LENGTH = len(JOB)
(_EXTENTS, _FILES, _MEANS, _GAIN, _ROOM, _IMAGE, _PACKED, _WORK, _SPANS, _STATUS, _WINDOWS,
 _NORMALS, _SHIFTS, _PREAD, _GIVEN, _ROOM_BYTES, _SIDE, _OUT, _TAPS, _SAMPLES, _VIEWS,
 _MOST_PACKED, _FORM, _LAYOUT, _OWN_COLOUR, _CENTRE, _RESAMPLE) = range(_JOB_LENGTH)  # fmt: skip


def taps(side_px: int, out_px: int) -> int:
    """The most input pixels that an output pixel is made of."""
    return int(np.ceil(2 * max(side_px / out_px, 1.0))) + 2


def work_length(side_px: int, out_px: int) -> int:
    """Floats of work space per thread: a shift row, an output row, the same in its dtype, sums,
    two sets of weights."""
    return 9 * out_px + 3 * side_px + 2 * out_px * taps(side_px, out_px)


@kernel
def _work(job: Any, thread: Any) -> Any:
    size = job[_OUT]
    return job[_WORK] + 4 * thread * (9 * size + 3 * job[_SIDE] + 2 * size * job[_TAPS])


@kernel
def _pixels(job: Any, position: Any, index: Any, window: Any, thread: Any) -> Any:
    """-> (status, the address that pixel (0, 0) of the image has, or would have).

    ``window``: y, x, height and width of what is needed; the rest may stay as it was.
    """
    side = job[_SIDE]
    if job[_GIVEN] != 0:
        return STATUS_OK, job[_GIVEN] + position * 3 * side * side
    y, _x, height, _width = window
    extents = numba.carray(pointer_to(job[_EXTENTS]), (job[_SAMPLES], 4), np.int64)
    at, size, number = extents[index, 0], extents[index, 1], extents[index, 3]
    file = numba.carray(pointer_to(job[_FILES]), (number + 1,), np.int64)[number]
    out = job[_IMAGE] + thread * 3 * side * (side + 1)
    if extents[index, 2] != 0:
        skipped = 3 * side * y
        if read_file(job[_PREAD], file, out, 3 * side * height, at + skipped):
            return STATUS_OK, out - skipped
        return STATUS_SHORT, out
    packed = job[_PACKED] + thread * job[_MOST_PACKED]
    if not read_file(job[_PREAD], file, packed, size, at):
        return STATUS_SHORT, out
    data, image = as_bytes(packed, size)[0], as_bytes(out, 3 * side * side)[0]
    room = as_bytes(job[_ROOM] + thread * job[_ROOM_BYTES], job[_ROOM_BYTES])[0]
    status = draw(data, room, (side, side, 3), window, image)
    if status == jpeg.OK:
        return STATUS_OK, out
    if status == jpeg.CORRUPT or status == jpeg.TRUNCATED:
        return STATUS_CORRUPT, out
    return STATUS_SIZE if status == jpeg.NOT_JPEG or status == jpeg.TOO_LARGE else STATUS_OTHER, out


@kernel
def _own_shift(a: Any, b: Any, c: Any, pixels: Any, count: Any) -> Any:
    """Normals times lighting -> L @ normals with L L^T the covariance of an image's pixels.

    A tutorial adds V (alpha sqrt(lambda)) with the eigenvectors V and eigenvalues lambda of the
    covariance. Both are distributed alike, and L, Cholesky's factor, needs no eigenvectors.
    """
    xx, xy, xz, yy, yz, zz = colour_covariance(pixels, count)
    p = q = r = s = t = 0.0
    if xx > LEAST_DEVIATION**2:
        p = np.sqrt(xx)
        q, r = xy / p, xz / p
    if yy - q * q > LEAST_DEVIATION**2:
        s = np.sqrt(yy - q * q)
        t = (yz - q * r) / s
    u = np.sqrt(max(zz - r * r - t * t, 0.0))
    return np.float32(p * a), np.float32(q * a + s * b), np.float32(r * a + t * b + u * c)


@kernel
def _write_bytes(job: Any, place: Any, pixels: Any, out: Any, thread: Any) -> None:
    """The window of the image at ``pixels``, mirrored in the copy, into uint8 at ``out``."""
    y, x, height, width, mirror = place
    side = job[_SIDE]
    turned = job[_IMAGE] + 3 * side * (thread * (side + 1) + side)
    for r in range(height):
        source = pixels + 3 * ((y + r) * side + x)
        target = turned if job[_LAYOUT] != 0 else out + 3 * r * width
        if mirror:
            mirror_row(source, target, width)
        else:
            copy_row(as_bytes(source, 3 * width), as_bytes(target, 3 * width))
        if job[_LAYOUT] == 2:
            scatter(turned, out, r, width, 1)
        elif job[_LAYOUT] == 1:
            row, planes = as_bytes(turned, 3 * width), as_bytes(out, 3 * height * width)
            for channel in range(3):
                for i in range(width):
                    planes[0, (channel * height + r) * width + i] = row[0, 3 * i + channel]


@kernel
def _stored(form: Any, line: Any, bits: Any, values: Any, halves: Any, small: Any, k: Any) -> Any:
    """Writes ``line[i]`` for every i into the place ``k[0] + k[1] i`` of the row's dtype."""
    start, step, first, stride, count = k
    for i in range(count):
        source, target = first + stride * i, start + step * i
        if form == 1:
            values[target] = line[source]
        elif form == 2:
            halves[target] = bfloat16_bits(bits[source])
        elif form == 3:
            halves[target] = float16_bits(bits[source], line[source])
        else:
            small[0, target] = np.uint8(min(max(np.rint(line[source]), 0.0), 255.0))


@kernel
def _emit(job: Any, line_address: Any, out: Any, r: Any, thread: Any) -> None:
    """A finished row of float32 (3 out,) -> row ``r`` of the view at ``out``, as asked for."""
    size, form = job[_OUT], job[_FORM]
    if job[_LAYOUT] == 2:
        item = 1 if form == 0 else (4 if form == 1 else 2)
        row = _work(job, thread) + 24 * size
        _store_row(job, line_address, row, 0)
        scatter(row, out, r, size, item)
    else:
        _store_row(job, line_address, out, r)


@kernel
def _store_row(job: Any, line_address: Any, out: Any, r: Any) -> None:
    """A row of float32 -> the same in its dtype, as row ``r`` of rows or planes at ``out``."""
    size, form = job[_OUT], job[_FORM]
    line = numba.carray(pointer_to(line_address), (3 * size,), np.float32)
    bits = numba.carray(pointer_to(line_address), (3 * size,), np.uint32)
    total = 3 * size * size
    values = numba.carray(pointer_to(out), (total,), np.float32)
    halves = numba.carray(pointer_to(out), (total,), np.uint16)
    small = as_bytes(out, total)
    if job[_LAYOUT] != 1:
        _stored(form, line, bits, values, halves, small, (3 * size * r, 1, 0, 1, 3 * size))
        return
    for channel in range(3):
        start = (channel * size + r) * size
        _stored(form, line, bits, values, halves, small, (start, 1, channel, 3, size))


@kernel
def _direct(job: Any) -> Any:
    """Whether finished rows are what is asked for: written at once where they belong."""
    return job[_FORM] == 1 and job[_LAYOUT] == 0


@kernel
def _subtract_row(row: Any, mean: Any, shift: Any, gain: Any, out: Any) -> None:
    for i in range(len(out)):
        out[i] = (np.float32(row[0, i]) - mean[i] + shift[i]) * gain[i]


@kernel
def _write_floats(job: Any, place: Any, shifts: Any, pixels: Any, out: Any, thread: Any) -> None:
    """The window of (image - mean) plus the colour shift, times the gain, to ``out``."""
    side, size = job[_SIDE], job[_OUT]
    length = 3 * size
    y, x, height, width, mirror = place
    work = _work(job, thread)
    shift = numba.carray(pointer_to(work), (length,), np.float32)
    gain = numba.carray(pointer_to(job[_GAIN]), (length,), np.float32)
    for i in range(width):
        shift[3 * i], shift[3 * i + 1], shift[3 * i + 2] = shifts
    turned = job[_IMAGE] + 3 * side * (thread * (side + 1) + side)
    # The mean image and the mirrored one: both are read from left to right.
    means = numba.carray(pointer_to(job[_MEANS]), (2, side, 3 * side), np.float32)
    which, mean_y, mean_x = (1, y, side - width - x) if mirror else (0, y, x)
    if job[_CENTRE] != 0:
        which, mean_y, mean_x = 0, (side - height) // 2, (side - width) // 2
    direct = _direct(job)
    for r in range(height):
        source = pixels + 3 * ((y + r) * side + x)
        if mirror:
            mirror_row(source, turned, width)
            source = turned
        target = out + 4 * length * r if direct else work + 4 * length
        line = numba.carray(pointer_to(target), (length,), np.float32)
        mean = means[which, mean_y + r, 3 * mean_x : 3 * mean_x + length]
        _subtract_row(as_bytes(source, length), mean, shift, gain, line)
        if not direct:
            _emit(job, target, out, r, thread)


@kernel
def _triangle(length: Any, out: Any, spans: Any, weights: Any) -> None:
    """The rows of the triangle filter's matrix (out, length) without their zeros.

    spans (out, 2): the first input pixel and the count; weights (out, taps) float32.
    """
    scale = length / out
    support: Any = max(scale, 1.0)
    for i in range(out):
        centre = (i + 0.5) * scale
        first: Any = max(np.int64(centre - support + 0.5), 0)
        count: Any = min(np.int64(centre + support + 0.5), length) - first
        total = 0.0
        for j in range(count):
            total += max(1 - abs(first + j + 0.5 - centre) / support, 0.0)
        for j in range(count):
            weight = max(1 - abs(first + j + 0.5 - centre) / support, 0.0)
            weights[i, j] = np.float32(weight / total)
        spans[i, 0], spans[i, 1] = first, count


@kernel
def _add_row(row: Any, mean: Any, weight: Any, sums: Any) -> None:
    for i in range(len(sums)):
        sums[i] += weight * (np.float32(row[0, i]) - mean[i])


@kernel
def _write_resampled(job: Any, place: Any, shift: Any, pixels: Any, out: Any, thread: Any) -> None:
    """As ``_write_floats``, the window resampled by a triangle filter, rows first."""
    side, size, most = job[_SIDE], job[_OUT], job[_TAPS]
    y, x, height, width, mirror = place
    red, green, blue = shift
    work = _work(job, thread)
    sums = numba.carray(pointer_to(work + 36 * size), (3 * side,), np.float32)[: 3 * width]
    taps_address = work + 36 * size + 12 * side
    weights = numba.carray(pointer_to(taps_address), (2, size, most), np.float32)
    spans = numba.carray(pointer_to(job[_SPANS] + 32 * thread * size), (2, size, 2), np.int64)
    gain = numba.carray(pointer_to(job[_GAIN]), (3,), np.float32)
    _triangle(height, size, spans[0], weights[0])
    _triangle(width, size, spans[1], weights[1])
    means = numba.carray(pointer_to(job[_MEANS]), (2, side, 3 * side), np.float32)
    which, mean_y, mean_x = 0, y, x
    if job[_CENTRE] != 0:
        mean_y, mean_x = (side - height) // 2, (side - width) // 2
        if mirror:  # the row is turned when it is done, and the mean must not be: so it is now
            which, mean_x = 1, side - width - mean_x
    direct = _direct(job)
    for i in range(size):
        sums[:] = np.float32(0)
        for j in range(spans[0, i, 1]):
            r = spans[0, i, 0] + j
            row = as_bytes(pixels + 3 * ((y + r) * side + x), 3 * width)
            _add_row(row, means[which, mean_y + r, 3 * mean_x :], weights[0, i, j], sums)
        target = out + 12 * size * i if direct else work + 12 * size
        line = numba.carray(pointer_to(target), (3 * size,), np.float32)
        for o in range(size):
            a, b, c = red, green, blue
            for j in range(spans[1, o, 1]):
                k = 3 * (spans[1, o, 0] + j)
                weight = weights[1, o, j]
                a += weight * sums[k]
                b += weight * sums[k + 1]
                c += weight * sums[k + 2]
            p = 3 * (size - 1 - o) if mirror else 3 * o
            line[p], line[p + 1], line[p + 2] = a * gain[0], b * gain[1], c * gain[2]
        if not direct:
            _emit(job, target, out, i, thread)


@kernel
def _sample(job_address: Any, position: Any, index: Any, out_address: Any, thread: Any) -> None:
    """Makes the views of one sample of a batch, or writes into ``status`` why it could not."""
    job = numba.carray(pointer_to(job_address), (_JOB_LENGTH,), np.int64)
    statuses = numba.carray(pointer_to(job[_STATUS]), (position + 1,), np.int32)
    if job[_GIVEN] != 0 and statuses[position] != STATUS_GIVEN:
        return
    views, size, side = job[_VIEWS], job[_OUT], job[_SIDE]
    windows = numba.carray(pointer_to(job[_WINDOWS] + 20 * views * position), (views, 5), np.int32)
    needed = (np.int64(0), np.int64(0), side, side)
    if views == 1 and job[_OWN_COLOUR] == 0:
        w = windows[0]
        needed = (np.int64(w[0]), np.int64(w[1]), np.int64(w[2]), np.int64(w[3]))
    status, pixels = _pixels(job, position, index, needed, thread)
    statuses[position] = status
    if status != STATUS_OK:
        return
    shifts = numba.carray(pointer_to(job[_SHIFTS] + 12 * position), (3,), np.float32)
    if job[_OWN_COLOUR] != 0:
        n = numba.carray(pointer_to(job[_NORMALS] + 24 * position), (3,), np.float64)
        shifts[0], shifts[1], shifts[2] = _own_shift(n[0], n[1], n[2], pixels, side * side)
    shift = shifts[0], shifts[1], shifts[2]
    item = 1 if job[_FORM] == 0 else (4 if job[_FORM] == 1 else 2)
    elements = 3 * size * size
    if job[_LAYOUT] == 2:
        elements = 48 * ((size + 3) // 4) ** 2
    for view in range(views):
        y, x = np.int64(windows[view, 0]), np.int64(windows[view, 1])
        height, width = np.int64(windows[view, 2]), np.int64(windows[view, 3])
        place = y, x, height, width, windows[view, 4] != 0
        out = out_address + (position * views + view) * item * elements
        if job[_RESAMPLE] != 0:
            _write_resampled(job, place, shift, pixels, out, thread)
        elif job[_FORM] == 0:
            _write_bytes(job, place, pixels, out, thread)
        else:
            _write_floats(job, place, shift, pixels, out, thread)


# Two functions, not two compilations of one: numba's cache does not tell them apart.
@kernel
def batch_serial(job: Any, indices: Any, out_address: Any) -> None:
    """Makes the samples ``indices`` (B,) at ``out_address``, one after the other."""
    for i in range(len(indices)):
        _sample(job, np.int64(i), np.int64(indices[i]), out_address, 0)


def _batch_threads(job: Any, indices: Any, out_address: Any) -> None:
    for i in numba.prange(len(indices)):
        thread = np.int64(numba.get_thread_id())
        _sample(job, np.int64(i), np.int64(indices[i]), out_address, thread)


batch_parallel: Any = kept(
    numba.njit(nogil=True, error_model="numpy", parallel=True)(_batch_threads)
)
