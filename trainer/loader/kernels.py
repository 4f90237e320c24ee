"""The numba kernels: a batch's samples in the file -> their views, in one pass.

A sample is read and decoded into a scratch that stays in its thread's cache; its windows
are cut, mirrored in the copy, and either left as uint8 or resampled where they must be,
normalised and written in the dtype and layout that the network takes. What is done is
defined in ``draws``, in plain NumPy.

Everything that a batch needs is found through one address (see ``JOB``): compiled code of
this kind is kept on disk and serves every loader, whatever its data, seed and epoch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.numba_ext import (
    as_bytes,
    below,
    bfloat16_bits,
    call_imdecode,
    call_pread,
    colour_covariance,
    float16_bits,
    kernel,
    move_four_bytes,
    normals,
    numba,
    pointer_to,
    sample_key,
    unit,
    word,
)

# What a sample can be, besides decoded.
STATUS_OK, STATUS_CORRUPT, STATUS_SIZE, STATUS_SHORT = 0, 1, 2, 3
FAULTS = {
    STATUS_CORRUPT: "its JPEG data are damaged",
    STATUS_SIZE: "its JPEG header is damaged or gives another size than the file's index",
    STATUS_SHORT: "the file ends before it or cannot be read",
}
FORMS = {"uint8": 0, "float32": 1, "bfloat16": 2, "float16": 3}
LEAST_DEVIATION = 1e-4  # as in draws
COLOURS = {"off": 0, "deviation": 1, "variance": 1, "image": 2}
# The job of a loader, int64, in this order. Addresses of: control (seed, epoch) uint64;
# extents (samples, 4) int64: offset and bytes in the file, FFCV's mode (0 JPEG, 1 raw), number
# of the file; files int64: their descriptors; means (2, side, side, 3) float32, the second one
# mirrored; numbers (14,) float64: the colour basis, scale, log ratio, how much of a picture's
# own deviation; gain (3 side') float32; places (V, 3) int64; per thread: picture uint8, packed
# uint8 (a JPEG's bytes), work float32, spans int64; per position in the batch: status int32,
# placed (V, 3) int64 (y, x, mirror of each view), shifts (3,) float32; FFCV's imdecode and the C
# library's pread. Then numbers and switches.
JOB = (
    "control", "extents", "files", "means", "numbers", "gain", "places", "picture", "packed",
    "work", "spans", "status", "placed", "shifts", "imdecode", "pread", "side", "crop", "out",
    "taps", "samples", "views", "most_packed", "resized", "drawn", "mirror", "form", "planes",
    "colour", "centre", "resample",
)  # fmt: skip
_JOB_LENGTH = len(JOB)
(_CONTROL, _EXTENTS, _FILES, _MEANS, _NUMBERS, _GAIN, _PLACES, _PICTURE, _PACKED, _WORK,
 _SPANS, _STATUS, _PLACED, _SHIFTS, _IMDECODE, _PREAD, _SIDE, _CROP, _OUT, _TAPS, _SAMPLES, _VIEWS,
 _MOST_PACKED, _RESIZED, _DRAWN, _MIRROR, _FORM, _PLANES, _COLOUR, _CENTRE, _RESAMPLE) = range(
    _JOB_LENGTH
)  # fmt: skip
NUMBERS = 14
_DRAW_Y, _DRAW_X, _DRAW_MIRROR, _DRAW_SHARE, _DRAW_RATIO = 0, 1, 2, 8, 9


def taps(side_px: int, out_px: int) -> int:
    """The most input pixels that an output pixel is made of."""
    return int(np.ceil(2 * max(side_px / out_px, 1.0))) + 2


def work_length(side_px: int, out_px: int) -> int:
    """Floats of work space per thread: a shift row, an output row, sums, two sets of weights."""
    return 6 * out_px + 3 * side_px + 2 * out_px * taps(side_px, out_px)


@kernel
def jpeg_size(data: Any) -> Any:
    """JPEG bytes uint8 (1, N) -> (height, width) as its frame header says; (0, 0) without one.

    TurboJPEG scales a picture to the size it is asked for: only the header tells that a
    damaged length would leave a part of the buffer as it was.
    """
    position: Any = 2
    size = data.shape[1]
    if size < 4 or data[0, 0] != 0xFF or data[0, 1] != 0xD8:
        return 0, 0
    while position + 9 <= size and data[0, position] == 0xFF:
        marker = data[0, position + 1]
        if marker == 0xFF:  # A fill byte before a marker.
            position += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
            height = np.int64(data[0, position + 5]) << 8 | np.int64(data[0, position + 6])
            width = np.int64(data[0, position + 7]) << 8 | np.int64(data[0, position + 8])
            return height, width
        position += 2 + (np.int64(data[0, position + 2]) << 8 | np.int64(data[0, position + 3]))
    return 0, 0


@kernel
def _read(job: Any, file: Any, out: Any, count: Any, at: Any) -> Any:
    """Reads ``count`` bytes of an open file from ``at`` on to the address ``out``; False if they
    are not there. Not through a map of the file: one that is cut short under us would end
    the process."""
    done: Any = 0
    while done < count:
        found = call_pread(job[_PREAD], file, out + done, count - done, at + done)
        if found <= 0:
            return False
        done += found
    return True


@kernel
def _pixels(job: Any, index: Any, first: Any, last: Any, thread: Any) -> Any:
    """-> (status, the address that pixel (0, 0) of the picture has, or would have).

    Of a raw picture only the rows from ``first`` to before ``last`` are read.
    """
    side = job[_SIDE]
    extents = numba.carray(pointer_to(job[_EXTENTS]), (job[_SAMPLES], 4), np.int64)
    at, size, number = extents[index, 0], extents[index, 1], extents[index, 3]
    file = numba.carray(pointer_to(job[_FILES]), (number + 1,), np.int64)[number]
    out = job[_PICTURE] + thread * 3 * side * (side + 1)
    if extents[index, 2] != 0:
        skipped = 3 * side * first
        if _read(job, file, out, 3 * side * (last - first), at + skipped):
            return STATUS_OK, out - skipped
        return STATUS_SHORT, out
    packed = job[_PACKED] + thread * job[_MOST_PACKED]
    if not _read(job, file, packed, size, at):
        return STATUS_SHORT, out
    height, width = jpeg_size(as_bytes(packed, size))
    if height != side or width != side:
        return STATUS_SIZE, out
    if call_imdecode(job[_IMDECODE], packed, size, side, side, out) != 0:
        return STATUS_CORRUPT, out
    return STATUS_OK, out


@kernel
def _rounded(length: Any, most: Any) -> Any:
    return min(max(np.int64(np.floor(length + 0.5)), 1), most)


@kernel
def _numbers(job: Any) -> Any:
    return numba.carray(pointer_to(job[_NUMBERS]), (NUMBERS,), np.float64)


@kernel
def _place(job: Any, key: Any, view: Any) -> Any:
    """-> (y, x, height, width, mirror) of a view's window, as ``draws`` defines them."""
    side, height, width = job[_SIDE], job[_CROP], job[_CROP]
    if job[_DRAWN] == 0:
        places = numba.carray(pointer_to(job[_PLACES]), (job[_VIEWS], 3), np.int64)
        return places[view, 0], places[view, 1], height, width, places[view, 2] != 0
    if job[_RESIZED] != 0:
        numbers = _numbers(job)
        share = numbers[9] + (numbers[10] - numbers[9]) * unit(word(key, _DRAW_SHARE))
        low = max(numbers[11], np.log(share))
        high = min(numbers[12], -np.log(share))
        ratio = np.exp(low + (high - low) * unit(word(key, _DRAW_RATIO)))
        height = _rounded(side * np.sqrt(share / ratio), side)
        width = _rounded(side * np.sqrt(share * ratio), side)
    y = below(word(key, _DRAW_Y), side - height + 1)
    x = below(word(key, _DRAW_X), side - width + 1)
    mirror = job[_MIRROR] != 0 and word(key, _DRAW_MIRROR) >> np.uint64(63) != 0
    return y, x, height, width, mirror


@kernel
def _shift(job: Any, key: Any, pixels: Any) -> Any:
    """The picture's colour shift in levels: three float32."""
    if job[_COLOUR] == 0 or job[_DRAWN] == 0:
        return np.float32(0), np.float32(0), np.float32(0)
    m = _numbers(job)
    a, b, c = normals(key)
    if job[_COLOUR] == 2:
        xx, xy, xz, yy, yz, zz = colour_covariance(pixels, job[_SIDE] * job[_SIDE])
        # Cholesky's factor of the covariance, column by column: see ``draws.picture_basis``.
        p = q = r = s = t = 0.0
        if xx > LEAST_DEVIATION**2:
            p = np.sqrt(xx)
            q, r = xy / p, xz / p
        if yy - q * q > LEAST_DEVIATION**2:
            s = np.sqrt(yy - q * q)
            t = (yz - q * r) / s
        u = np.sqrt(max(zz - r * r - t * t, 0.0))
        a, b, c = a * m[13], b * m[13], c * m[13]
        return (
            np.float32(p * a), np.float32(q * a + s * b), np.float32(r * a + t * b + u * c)
        )  # fmt: skip
    return (
        np.float32(m[0] * a + m[1] * b + m[2] * c),
        np.float32(m[3] * a + m[4] * b + m[5] * c),
        np.float32(m[6] * a + m[7] * b + m[8] * c),
    )


@kernel
def _copy_row(row: Any, out: Any) -> None:
    for i in range(out.shape[1]):
        out[0, i] = row[0, i]


@kernel
def _mirror_row(source: Any, out: Any, count: Any) -> None:
    """``count`` pixels at the address ``source`` -> the same from right to left at ``out``.

    Four bytes are moved at a time, the fourth of them overwritten by the next pixel; only
    the pixels at the two ends go by threes, so that nothing outside the row is touched.
    """
    row, turned = as_bytes(source, 3 * count), as_bytes(out, 3 * count)
    for i in range(1, count - 1):
        move_four_bytes(out + 3 * i, source + 3 * (count - 1 - i))
    for channel in range(3):
        turned[0, channel] = row[0, 3 * (count - 1) + channel]
        turned[0, 3 * (count - 1) + channel] = row[0, channel]


@kernel
def _write_bytes(job: Any, place: Any, pixels: Any, out: Any, thread: Any) -> None:
    """The window of the picture at ``pixels``, mirrored in the copy, into uint8 at ``out``."""
    y, x, height, width, mirror = place
    side = job[_SIDE]
    turned = job[_PICTURE] + 3 * side * (thread * (side + 1) + side)
    for r in range(height):
        source = pixels + 3 * ((y + r) * side + x)
        target = turned if job[_PLANES] != 0 else out + 3 * r * width
        if mirror:
            _mirror_row(source, target, width)
        else:
            _copy_row(as_bytes(source, 3 * width), as_bytes(target, 3 * width))
        if job[_PLANES] != 0:
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
def _emit(job: Any, line_address: Any, out: Any, r: Any) -> None:
    """A finished row of float32 (3 out,) -> row ``r`` of the view at ``out``, as asked for."""
    size, form = job[_OUT], job[_FORM]
    line = numba.carray(pointer_to(line_address), (3 * size,), np.float32)
    bits = numba.carray(pointer_to(line_address), (3 * size,), np.uint32)
    total = 3 * size * size
    values = numba.carray(pointer_to(out), (total,), np.float32)
    halves = numba.carray(pointer_to(out), (total,), np.uint16)
    small = as_bytes(out, total)
    if job[_PLANES] == 0:
        _stored(form, line, bits, values, halves, small, (3 * size * r, 1, 0, 1, 3 * size))
        return
    for channel in range(3):
        start = (channel * size + r) * size
        _stored(form, line, bits, values, halves, small, (start, 1, channel, 3, size))


@kernel
def _direct(job: Any) -> Any:
    """Whether finished rows are what is asked for: written at once where they belong."""
    return job[_FORM] == 1 and job[_PLANES] == 0


@kernel
def _subtract_row(row: Any, mean: Any, shift: Any, gain: Any, out: Any) -> None:
    for i in range(len(out)):
        out[i] = (np.float32(row[0, i]) - mean[i] + shift[i]) * gain[i]


@kernel
def _write_floats(job: Any, place: Any, shifts: Any, pixels: Any, out: Any, thread: Any) -> None:
    """The window of (picture - mean) plus the colour shift, times the gain, to ``out``."""
    side, size = job[_SIDE], job[_OUT]
    length = 3 * size
    y, x, height, width, mirror = place
    work = job[_WORK] + 4 * thread * (6 * size + 3 * side + 2 * size * job[_TAPS])
    shift = numba.carray(pointer_to(work), (length,), np.float32)
    gain = numba.carray(pointer_to(job[_GAIN]), (length,), np.float32)
    for i in range(width):
        shift[3 * i], shift[3 * i + 1], shift[3 * i + 2] = shifts
    turned = job[_PICTURE] + 3 * side * (thread * (side + 1) + side)
    # The mean image and the mirrored one: both are read from left to right.
    means = numba.carray(pointer_to(job[_MEANS]), (2, side, 3 * side), np.float32)
    which, mean_y, mean_x = (1, y, side - width - x) if mirror else (0, y, x)
    if job[_CENTRE] != 0:
        which, mean_y, mean_x = 0, (side - height) // 2, (side - width) // 2
    direct = _direct(job)
    for r in range(height):
        source = pixels + 3 * ((y + r) * side + x)
        if mirror:
            _mirror_row(source, turned, width)
            source = turned
        target = out + 4 * length * r if direct else work + 4 * length
        line = numba.carray(pointer_to(target), (length,), np.float32)
        mean = means[which, mean_y + r, 3 * mean_x : 3 * mean_x + length]
        _subtract_row(as_bytes(source, length), mean, shift, gain, line)
        if not direct:
            _emit(job, target, out, r)


@kernel
def _triangle(length: Any, out: Any, spans: Any, weights: Any) -> None:
    """The rows of ``draws.resampling(length, out)`` without their zeros.

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
    work = job[_WORK] + 4 * thread * (6 * size + 3 * side + 2 * size * most)
    sums = numba.carray(pointer_to(work + 24 * size), (3 * side,), np.float32)[: 3 * width]
    taps_address = work + 24 * size + 12 * side
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
            _emit(job, target, out, i)


@kernel
def _sample(job_address: Any, position: Any, index: Any, out_address: Any, thread: Any) -> None:
    """Makes the views of one sample of a batch, or writes into ``status`` why it could not."""
    job = numba.carray(pointer_to(job_address), (_JOB_LENGTH,), np.int64)
    control = numba.carray(pointer_to(job[_CONTROL]), (2,), np.uint64)
    statuses = numba.carray(pointer_to(job[_STATUS]), (position + 1,), np.int32)
    views, size, side = job[_VIEWS], job[_OUT], job[_SIDE]
    key = sample_key(control[0], control[1], index)
    first, last = np.int64(0), side
    if views == 1 and job[_COLOUR] != 2:
        place = _place(job, key, 0)
        first, last = place[0], place[0] + place[2]
    status, pixels = _pixels(job, index, first, last, thread)
    statuses[position] = status
    if status != STATUS_OK:
        return
    shift = _shift(job, key, pixels)
    shifts = numba.carray(pointer_to(job[_SHIFTS] + 12 * position), (3,), np.float32)
    shifts[0], shifts[1], shifts[2] = shift
    placed = numba.carray(pointer_to(job[_PLACED] + 24 * views * position), (views, 3), np.int64)
    item = 1 if job[_FORM] == 0 else (4 if job[_FORM] == 1 else 2)
    for view in range(views):
        place = _place(job, key, view)
        placed[view, 0], placed[view, 1], placed[view, 2] = place[0], place[1], place[4]
        out = out_address + (position * views + view) * 3 * size * size * item
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


batch_parallel: Any = numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)(
    _batch_threads
)
