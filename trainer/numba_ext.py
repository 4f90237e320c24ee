"""What the CPU kernels stand on: memory by address, C functions by address, bit conversions.

Numba cannot cache code that holds a ctypes function; given its address, it can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba as _numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from imagenet_prep.core.compiled import kept

# Numba is partly typed: what it exports, it does not say so.
numba: Any = _numba
F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """``numba.njit``, kept on disk, without fastmath: the same pixels on every machine."""
    return cast(F, kept(numba.njit(nogil=True, error_model="numpy")(function)))


def _pointer(_typing: Any, _address: Any) -> Any:
    signature = types.voidptr(types.intp)

    def lower(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(sig.return_type))

    return signature, lower


def _call(builder: Any, callee: Any, arguments: Any, kinds: str, bits: int) -> Any:
    """Calls the C function at an address: ``kinds`` has a letter per argument, p for a pointer,
    i for int, l for long; it returns an integer of ``bits``."""
    from llvmlite import ir

    pointer, i32, i64 = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)
    made = {
        "p": lambda value: builder.inttoptr(value, pointer),
        "i": lambda value: builder.trunc(value, i32),
        "l": lambda value: value,
    }
    values = [made[kind](value) for kind, value in zip(kinds, arguments, strict=True)]
    result = ir.FunctionType(
        ir.IntType(bits), [{"p": pointer, "i": i32, "l": i64}[k] for k in kinds]
    )
    return builder.call(builder.inttoptr(callee, result.as_pointer()), values)


def _pread(_typing: Any, _function: Any, _file: Any, _out: Any, _count: Any, _at: Any) -> Any:
    """Calls the C library's ``pread`` by address: -> the bytes that were read, -1 on an error."""
    signature = types.int64(*[types.intp] * 5)

    def lower(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        return _call(builder, arguments[0], arguments[1:], "ipll", 64)

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


def _turn(_typing: Any, _out: Any, _source: Any) -> Any:
    """Moves five pixels of three bytes from the address ``source`` to the address ``out``, from
    right to left, and the byte behind them."""
    signature = types.void(types.intp, types.intp)
    places = [12, 13, 14, 9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2, 15]

    def lower(context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        from llvmlite import ir

        vector = ir.VectorType(ir.IntType(8), 16)
        out, source = (builder.inttoptr(address, vector.as_pointer()) for address in arguments)
        mask = ir.Constant(ir.VectorType(ir.IntType(32), 16), places)
        pixels = builder.load(source, align=1)
        turned = builder.shuffle_vector(pixels, ir.Constant(vector, ir.Undefined), mask)
        builder.store(turned, out, align=1)
        return context.get_dummy_value()

    return signature, lower


pointer_to: Any = intrinsic(_pointer)
turn_five_pixels: Any = intrinsic(_turn)
move_four_bytes: Any = intrinsic(_move)
call_pread: Any = intrinsic(_pread)


@kernel
def as_bytes(address: Any, count: Any) -> Any:
    """Memory as uint8 (1, count). Not (count,): FFCV's reader, compiled for its own use,
    makes numba's one type of writable uint8 vectors read-only for the whole process."""
    return numba.carray(pointer_to(address), (1, count), np.uint8)


@kernel
def copy_row(row: Any, out: Any) -> None:
    """uint8 (1, N) -> the same in ``out`` (1, N)."""
    for i in range(out.shape[1]):
        out[0, i] = row[0, i]


@kernel
def mirror_row(source: Any, out: Any, count: Any) -> None:
    """``count`` pixels at the address ``source`` -> the same from right to left at ``out``.

    Sixteen bytes are moved at a time, the sixteenth of them overwritten by the next pixel; the
    pixels at the two ends go one by one, so that nothing outside the row is touched.
    """
    row, turned = as_bytes(source, 3 * count), as_bytes(out, 3 * count)
    done: Any = 1
    while done + 6 <= count:
        turn_five_pixels(out + 3 * done, source + 3 * (count - 5 - done))
        done += 5
    for channel in range(3):
        turned[0, channel] = row[0, 3 * (count - 1) + channel]
        for i in range(done, count):
            turned[0, 3 * i + channel] = row[0, 3 * (count - 1 - i) + channel]


@kernel
def scatter(row: Any, out: Any, r: Any, size: Any, item: Any) -> None:
    """A row of ``size`` pixels with items of so many bytes -> its places in the squares of 4 x 4
    pixels at ``out``: square by square, a square's rows one after the other."""
    squares, whole = (size + 3) // 4, 12 * item
    target = out + 4 * whole * squares * (r >> 2) + whole * (r & 3)
    left = 3 * size * item
    for square in range(squares):
        source, there = row + whole * square, target + 4 * whole * square
        count = min(whole, left - whole * square)
        for q in range(count >> 2):
            move_four_bytes(there + 4 * q, source + 4 * q)
        rest = count & 3
        if rest != 0:
            a, b = as_bytes(source + count - rest, rest), as_bytes(there + count - rest, rest)
            for q in range(rest):
                b[0, q] = a[0, q]


@kernel
def read_file(pread: Any, file: Any, out: Any, count: Any, at: Any) -> Any:
    """Reads ``count`` bytes of an open file from ``at`` on to the address ``out``; False if they
    are not there. Not through a map of the file: the system ends a process that reads a map of
    a file that was cut short."""
    done: Any = 0
    while done < count:
        found = call_pread(pread, file, out + done, count - done, at + done)
        if found <= 0:
            return False
        done += found
    return True


@kernel
def bfloat16_bits(bits: Any) -> Any:
    """The bits of a finite float32 (uint32) -> those of the nearest bfloat16, ties to even."""
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> 16)


@kernel
def float16_bits(bits: Any, value: Any) -> Any:
    """A finite float32 and its bits -> those of the nearest float16 (IEEE 754), ties to even."""
    sign = np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000)
    rest = bits & np.uint32(0x7FFFFFFF)
    if rest >= np.uint32(0x47800000):  # 65536 and more: infinite
        return np.uint16(sign | np.uint32(0x7C00))
    if rest < np.uint32(0x38800000):  # below 2^-14: multiples of 2^-24
        small = np.float32(abs(value) * np.float32(2.0**24))
        # Adding and taking 2^23 rounds to a whole number, ties to even.
        whole = np.float32(np.float32(small + np.float32(8388608.0)) - np.float32(8388608.0))
        return np.uint16(sign | np.uint32(whole))
    odd = (rest >> np.uint32(13)) & np.uint32(1)
    moved = (rest - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13)
    return np.uint16(sign | np.uint32(moved))


@kernel
def colour_covariance(pixels: Any, count: Any) -> Any:
    """``count`` RGB pixels at an address -> their covariance: rr, rg, rb, gg, gb, bb."""
    p = as_bytes(pixels, 3 * count)
    r, g, b = np.int64(0), np.int64(0), np.int64(0)
    rr, rg, rb = np.int64(0), np.int64(0), np.int64(0)
    gg, gb, bb = np.int64(0), np.int64(0), np.int64(0)
    for i in range(count):
        x, y, z = np.int64(p[0, 3 * i]), np.int64(p[0, 3 * i + 1]), np.int64(p[0, 3 * i + 2])
        r, g, b = r + x, g + y, b + z
        rr, rg, rb = rr + x * x, rg + x * y, rb + x * z
        gg, gb, bb = gg + y * y, gb + y * z, bb + z * z
    n = np.float64(count)
    u, v, w = r / n, g / n, b / n
    first = (rr / n - u * u, rg / n - u * v, rb / n - u * w)
    return (*first, gg / n - v * v, gb / n - v * w, bb / n - w * w)
