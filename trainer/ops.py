"""The numba kernels: JPEG bytes of a batch's samples -> network input, in one pass.

A sample is decoded into a scratch that stays in its thread's cache; its window is cut,
mirrored in the copy, and either left as uint8 for a device or resampled where it must be
and normalised. What is done is defined in ``draws``, in plain NumPy; the constants are
repeated here because numba's cache on disk looks at this file only.

Everything that a batch needs is found through one address (see ``JOB``): compiled code of
this kind is kept on disk and serves every loader, whatever its data, seed and epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba as _numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

# Numba is partly typed: what it exports, it does not say so.
numba: Any = _numba
F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """``numba.njit``, cached on disk, without fastmath: the same pixels on every machine."""
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def _pointer(_typing: Any, _address: Any) -> Any:
    signature = types.voidptr(types.intp)

    def lower(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(sig.return_type))

    return signature, lower


def _imdecode(
    _typing: Any, _function: Any, _source: Any, _size: Any, _height: Any, _width: Any, _out: Any
) -> Any:
    """Calls FFCV's C ``imdecode`` by address and returns its status, which FFCV drops.

    A C function that numba knows as a ctypes object cannot be cached on disk; called by
    its address, it can. The status is TurboJPEG's: 0, or -1 for an error and also for a
    warning (a premature end, damaged data), after which the buffer may hold old pixels.
    """
    word = types.intp
    signature = types.int32(word, word, word, word, word, word)

    def lower(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        from llvmlite import ir

        i8, i32, i64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
        pointer = i8.as_pointer()
        callee, source, size, height, width, out = arguments
        height, width = builder.trunc(height, i32), builder.trunc(width, i32)
        zero, one, no = ir.Constant(i32, 0), ir.Constant(i32, 1), ir.Constant(i8, 0)
        kinds = [pointer, i64, i32, i32, pointer, *[i32] * 6, i8, i8]
        values = [
            builder.inttoptr(source, pointer), size, height, width,
            builder.inttoptr(out, pointer), height, width, zero, zero, one, one, no, no,
        ]  # fmt: skip
        kind = ir.FunctionType(i32, kinds)
        return builder.call(builder.inttoptr(callee, kind.as_pointer()), values)

    return signature, lower


def _move(_typing: Any, _out: Any, _source: Any) -> Any:
    """Moves four bytes from the address ``source`` to the address ``out``."""
    signature = types.void(types.intp, types.intp)

    def lower(context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        from llvmlite import ir

        pointer = ir.IntType(32).as_pointer()
        out, source = (builder.inttoptr(address, pointer) for address in arguments)
        builder.store(builder.load(source, align=1), out, align=1)
        return context.get_dummy_value()

    return signature, lower


pointer_to: Any = intrinsic(_pointer)
move_four_bytes: Any = intrinsic(_move)
call_imdecode: Any = intrinsic(_imdecode)

# What a sample can be, besides decoded.
STATUS_OK, STATUS_CORRUPT, STATUS_SIZE = 0, 1, 2
FAULTS = {
    STATUS_CORRUPT: "its JPEG data are damaged",
    STATUS_SIZE: "its JPEG header is damaged or gives another size than the file's index",
}
# The job of a loader, int64, in this order. Addresses of: control (seed, epoch) uint64;
# extents (samples, 3) int64: offset and bytes in the file, FFCV's mode (0 JPEG, 1 raw);
# means (2, side, side, 3) float32, the second one mirrored; numbers (10,) float64, the
# colour basis and scale_min; per thread: picture uint8, work float32, spans int64; status
# int32 per position in the batch; FFCV's imdecode. Then numbers and switches.
JOB = (
    "control", "extents", "means", "numbers", "picture", "work", "spans", "status", "imdecode",
    "side", "crop", "out", "taps", "samples", "random", "drawn", "mirror", "float", "resample",
)  # fmt: skip
_JOB_LENGTH = len(JOB)
(_CONTROL, _EXTENTS, _MEANS, _NUMBERS, _PICTURE, _WORK, _SPANS, _STATUS, _IMDECODE, _SIDE,
 _CROP, _OUT, _TAPS, _SAMPLES, _RANDOM, _DRAWN, _MIRROR, _FLOAT, _RESAMPLE) = range(
    _JOB_LENGTH
)  # fmt: skip

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_DRAW_Y, _DRAW_X, _DRAW_MIRROR, _DRAW_NORMAL, _DRAW_SHARE, _DRAW_RATIO = 0, 1, 2, 3, 8, 9
_LOG_RATIO = float(np.log(4 / 3))


def taps(side_px: int, out_px: int) -> int:
    """The most input pixels that an output pixel is made of."""
    return int(np.ceil(2 * max(side_px / out_px, 1.0))) + 2


def work_length(side_px: int, out_px: int) -> int:
    """Floats of work space per thread: a shift row, a row of sums, two sets of weights."""
    return 3 * out_px + 3 * side_px + 2 * out_px * taps(side_px, out_px)


@kernel
def _mix(z: Any) -> Any:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    return z ^ (z >> np.uint64(31))


@kernel
def _key(seed: Any, epoch: Any, index: Any) -> Any:
    golden = np.uint64(_GOLDEN)
    key = _mix(seed + golden)
    key = _mix((key ^ epoch) + golden)
    return _mix((key ^ np.uint64(index)) + golden)


@kernel
def _word(key: Any, number: Any) -> Any:
    return _mix(key + np.uint64(number + 1) * np.uint64(_GOLDEN))


@kernel
def _below(word: Any, bound: Any) -> Any:
    return np.int64(((word >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@kernel
def _unit(word: Any) -> Any:
    return np.float64(word >> np.uint64(11)) * 2.0**-53


@kernel
def _normals(key: Any) -> Any:
    first = np.sqrt(-2 * np.log(_unit(_word(key, _DRAW_NORMAL)) + 2.0**-53))
    second = np.sqrt(-2 * np.log(_unit(_word(key, _DRAW_NORMAL + 2)) + 2.0**-53))
    angle = 2 * np.pi * _unit(_word(key, _DRAW_NORMAL + 1))
    other = 2 * np.pi * _unit(_word(key, _DRAW_NORMAL + 3))
    return first * np.cos(angle), first * np.sin(angle), second * np.cos(other)


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
def _bytes(address: Any, count: Any) -> Any:
    """Memory as uint8 (1, count). Not (count,): FFCV's reader, compiled for its own use,
    makes numba's one type of writable uint8 vectors read-only for the whole process."""
    return numba.carray(pointer_to(address), (1, count), np.uint8)


@kernel
def _pixels(job: Any, index: Any, data_address: Any, thread: Any) -> Any:
    """-> (status, address of the picture's pixels: in the thread's scratch, or in the file)."""
    side = job[_SIDE]
    extents = numba.carray(pointer_to(job[_EXTENTS]), (job[_SAMPLES], 3), np.int64)
    source, size = data_address + extents[index, 0], extents[index, 1]
    if extents[index, 2] != 0:
        return STATUS_OK, source
    height, width = jpeg_size(_bytes(source, size))
    if height != side or width != side:
        return STATUS_SIZE, source
    out = job[_PICTURE] + thread * 3 * side * (side + 1)
    if call_imdecode(job[_IMDECODE], source, size, side, side, out) != 0:
        return STATUS_CORRUPT, source
    return STATUS_OK, out


@kernel
def _rounded(length: Any, most: Any) -> Any:
    return min(max(np.int64(np.floor(length + 0.5)), 1), most)


@kernel
def _place(job: Any, key: Any) -> Any:
    """-> (y, x, height, width, mirror) of the sample's window, as ``draws`` defines them."""
    side, height, width = job[_SIDE], job[_CROP], job[_CROP]
    if job[_RANDOM] == 0:
        return (side - height) // 2, (side - width) // 2, height, width, False
    if job[_DRAWN] != 0:
        least = numba.carray(pointer_to(job[_NUMBERS]), (10,), np.float64)[9]
        share = least + (1 - least) * _unit(_word(key, _DRAW_SHARE))
        reach = min(_LOG_RATIO, -np.log(share))
        ratio = np.exp(reach * (2 * _unit(_word(key, _DRAW_RATIO)) - 1))
        height = _rounded(side * np.sqrt(share / ratio), side)
        width = _rounded(side * np.sqrt(share * ratio), side)
    y = _below(_word(key, _DRAW_Y), side - height + 1)
    x = _below(_word(key, _DRAW_X), side - width + 1)
    mirror = job[_MIRROR] != 0 and _word(key, _DRAW_MIRROR) >> np.uint64(63) != 0
    return y, x, height, width, mirror


@kernel
def _shift(job: Any, key: Any) -> Any:
    """The picture's colour shift in levels: three float32."""
    if job[_RANDOM] == 0:
        return np.float32(0), np.float32(0), np.float32(0)
    m = numba.carray(pointer_to(job[_NUMBERS]), (10,), np.float64)
    a, b, c = _normals(key)
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
    row, turned = _bytes(source, 3 * count), _bytes(out, 3 * count)
    for i in range(1, count - 1):
        move_four_bytes(out + 3 * i, source + 3 * (count - 1 - i))
    for channel in range(3):
        turned[0, channel] = row[0, 3 * (count - 1) + channel]
        turned[0, 3 * (count - 1) + channel] = row[0, channel]


@kernel
def _write_bytes(job: Any, key: Any, pixels: Any, out: Any) -> None:
    """The window of the picture at ``pixels``, mirrored in the copy, into uint8 at ``out``."""
    y, x, height, width, mirror = _place(job, key)
    for r in range(height):
        source, target = pixels + 3 * ((y + r) * job[_SIDE] + x), out + 3 * r * width
        if mirror:
            _mirror_row(source, target, width)
        else:
            _copy_row(_bytes(source, 3 * width), _bytes(target, 3 * width))


@kernel
def _subtract_row(row: Any, mean: Any, shift: Any, out: Any) -> None:
    for i in range(len(out)):
        out[i] = np.float32(row[0, i]) - mean[i] + shift[i]


@kernel
def _write_floats(job: Any, key: Any, pixels: Any, out: Any, thread: Any) -> None:
    """The window of (picture - mean) plus the colour shift into ``out`` float32 (out, 3 out)."""
    side, length = job[_SIDE], 3 * job[_OUT]
    y, x, height, width, mirror = _place(job, key)
    work = job[_WORK] + 4 * thread * (length + 3 * side + 2 * job[_OUT] * job[_TAPS])
    shift = numba.carray(pointer_to(work), (length,), np.float32)
    red, green, blue = _shift(job, key)
    for i in range(width):
        shift[3 * i], shift[3 * i + 1], shift[3 * i + 2] = red, green, blue
    turned = job[_PICTURE] + 3 * side * (thread * (side + 1) + side)
    # The mean image and the mirrored one: both are read from left to right.
    means = numba.carray(pointer_to(job[_MEANS]), (2, side, 3 * side), np.float32)
    mean, mean_x = (means[1], 3 * (side - width - x)) if mirror else (means[0], 3 * x)
    for r in range(height):
        source = pixels + 3 * ((y + r) * side + x)
        if mirror:
            _mirror_row(source, turned, width)
            source = turned
        _subtract_row(_bytes(source, length), mean[y + r, mean_x : mean_x + length], shift, out[r])


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
def _write_resampled(job: Any, key: Any, pixels: Any, out: Any, thread: Any) -> None:
    """As ``_write_floats``, the window resampled by a triangle filter, rows first."""
    side, size, most = job[_SIDE], job[_OUT], job[_TAPS]
    y, x, height, width, mirror = _place(job, key)
    red, green, blue = _shift(job, key)
    work = job[_WORK] + 4 * thread * (3 * size + 3 * side + 2 * size * most)
    sums = numba.carray(pointer_to(work + 12 * size), (3 * side,), np.float32)[: 3 * width]
    taps_address = work + 12 * (size + side)
    weights = numba.carray(pointer_to(taps_address), (2, size, most), np.float32)
    spans = numba.carray(pointer_to(job[_SPANS] + 32 * thread * size), (2, size, 2), np.int64)
    _triangle(height, size, spans[0], weights[0])
    _triangle(width, size, spans[1], weights[1])
    means = numba.carray(pointer_to(job[_MEANS]), (2, side, 3 * side), np.float32)
    for i in range(size):
        sums[:] = np.float32(0)
        for j in range(spans[0, i, 1]):
            r = y + spans[0, i, 0] + j
            row = _bytes(pixels + 3 * (r * side + x), 3 * width)
            _add_row(row, means[0, r, 3 * x :], weights[0, i, j], sums)
        for o in range(size):
            a, b, c = red, green, blue
            for j in range(spans[1, o, 1]):
                k = 3 * (spans[1, o, 0] + j)
                weight = weights[1, o, j]
                a += weight * sums[k]
                b += weight * sums[k + 1]
                c += weight * sums[k + 2]
            p = 3 * (size - 1 - o) if mirror else 3 * o
            out[i, p], out[i, p + 1], out[i, p + 2] = a, b, c


@kernel
def _sample(
    job_address: Any, position: Any, index: Any, out_address: Any, data_address: Any, thread: Any
) -> None:
    """Makes one sample of a batch, or writes into ``status`` why it could not."""
    job = numba.carray(pointer_to(job_address), (_JOB_LENGTH,), np.int64)
    control = numba.carray(pointer_to(job[_CONTROL]), (2,), np.uint64)
    statuses = numba.carray(pointer_to(job[_STATUS]), (position + 1,), np.int32)
    status, pixels = _pixels(job, index, data_address, thread)
    statuses[position] = status
    if status != STATUS_OK:
        return
    key = _key(control[0], control[1], index)
    size = job[_OUT]
    first = position * size * 3 * size
    if job[_FLOAT] == 0:
        _write_bytes(job, key, pixels, out_address + first)
        return
    out = numba.carray(pointer_to(out_address + 4 * first), (size, 3 * size), np.float32)
    if job[_RESAMPLE] != 0:
        _write_resampled(job, key, pixels, out, thread)
    else:
        _write_floats(job, key, pixels, out, thread)


# Two functions, not two compilations of one: numba's cache does not tell them apart.
@kernel
def batch_serial(job: Any, indices: Any, out_address: Any, data_address: Any) -> None:
    """Makes the samples ``indices`` (B,) at ``out_address``; the file lies at ``data_address``."""
    for i in range(len(indices)):
        _sample(job, np.int64(i), np.int64(indices[i]), out_address, data_address, 0)


def _batch_threads(job: Any, indices: Any, out_address: Any, data_address: Any) -> None:
    for i in numba.prange(len(indices)):
        thread = np.int64(numba.get_thread_id())
        _sample(job, np.int64(i), np.int64(indices[i]), out_address, data_address, thread)


batch_parallel: Any = numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)(
    _batch_threads
)
