"""What the kernels in ``ops`` stand on: memory by address, C functions by address, the hash.

Numba cannot cache code that holds a ctypes function or another loader's arrays; given as
addresses, it can. Its cache on disk looks at the file of the function that was asked for:
after a change here, change ``ops`` too (or clear the caches), or its old code goes on.
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

    The status is TurboJPEG's: 0, or -1 for an error and also for a warning (a premature
    end, damaged data), after which the buffer may hold old pixels.
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


def _pread(_typing: Any, _function: Any, _file: Any, _out: Any, _count: Any, _at: Any) -> Any:
    """Calls the C library's ``pread`` by address: -> the bytes that were read, -1 on an error."""
    word = types.intp
    signature = types.int64(word, word, word, word, word)

    def lower(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        from llvmlite import ir

        pointer, i32, i64 = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)
        callee, file, out, count, at = arguments
        values = [builder.trunc(file, i32), builder.inttoptr(out, pointer), count, at]
        kind = ir.FunctionType(i64, [i32, pointer, i64, i64])
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
call_pread: Any = intrinsic(_pread)

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_DRAW_NORMAL = 3


@kernel
def as_bytes(address: Any, count: Any) -> Any:
    """Memory as uint8 (1, count). Not (count,): FFCV's reader, compiled for its own use,
    makes numba's one type of writable uint8 vectors read-only for the whole process."""
    return numba.carray(pointer_to(address), (1, count), np.uint8)


@kernel
def _mix(z: Any) -> Any:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    return z ^ (z >> np.uint64(31))


@kernel
def sample_key(seed: Any, epoch: Any, index: Any) -> Any:
    """(seed, epoch, sample) -> the key of its draws; see ``draws.words``."""
    golden = np.uint64(_GOLDEN)
    key = _mix(seed + golden)
    key = _mix((key ^ epoch) + golden)
    return _mix((key ^ np.uint64(index)) + golden)


@kernel
def word(key: Any, number: Any) -> Any:
    """Draw ``number`` of a key: 64 random bits."""
    return _mix(key + np.uint64(number + 1) * np.uint64(_GOLDEN))


@kernel
def below(bits: Any, bound: Any) -> Any:
    """64 random bits -> a whole number in [0, bound)."""
    return np.int64(((bits >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@kernel
def unit(bits: Any) -> Any:
    """64 random bits -> a number in [0, 1)."""
    return np.float64(bits >> np.uint64(11)) * 2.0**-53


@kernel
def normals(key: Any) -> Any:
    """A key -> three independent standard normals (Box and Muller)."""
    first = np.sqrt(-2 * np.log(unit(word(key, _DRAW_NORMAL)) + 2.0**-53))
    second = np.sqrt(-2 * np.log(unit(word(key, _DRAW_NORMAL + 2)) + 2.0**-53))
    angle = 2 * np.pi * unit(word(key, _DRAW_NORMAL + 1))
    other = 2 * np.pi * unit(word(key, _DRAW_NORMAL + 3))
    return first * np.cos(angle), first * np.sin(angle), second * np.cos(other)


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
