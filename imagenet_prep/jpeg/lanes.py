"""Sixteen numbers at a time: what the CPU's loops over blocks and pixels are made of.

LLVM makes of it whatever vector instructions the machine has; from plain loops it makes slower
ones, because it cannot know that the arrays do not overlap. The arithmetic is that of ``core``:
its functions write vector code where their numbers are ``Lanes``. Memory is given by addresses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import imputils, types
from numba.extending import intrinsic

from imagenet_prep.jpeg import core

COUNT = 16
"""Blocks, or pixels, at a time."""
BYTES = 4 * COUNT
"""Of a vector of int32."""
SHARES = np.array([16, 23, 21, 19, 16, 13, 9, 5], np.int64)
"""How much a coefficient can add to a value between the passes of the IDCT, in sixteenths of 4,
for its row in the block; and from there to a pixel, for the column."""
_KINDS = {bits: ir.VectorType(ir.IntType(bits), COUNT) for bits in (8, 16, 32)}


_borrowed: Any = imputils.impl_ret_borrowed


class Lanes:
    """A vector of COUNT int32 in a function that is being compiled."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def _value_of(self, other: Any) -> Any:
        if isinstance(other, Lanes):
            return other.value
        return ir.Constant(_KINDS[32], [int(other)] * COUNT)

    def _made(self, name: str, other: Any) -> Lanes:
        made = getattr(self.builder, name)(self.value, self._value_of(other))
        return Lanes(self.builder, made)

    def _chosen(self, sign: str, other: Any) -> Lanes:
        value = self._value_of(other)
        first = self.builder.icmp_signed(sign, self.value, value)
        return Lanes(self.builder, self.builder.select(first, self.value, value))

    def __add__(self, other: Any) -> Lanes:
        return self._made("add", other)

    def __sub__(self, other: Any) -> Lanes:
        return self._made("sub", other)

    def __mul__(self, other: Any) -> Lanes:
        return self._made("mul", other)

    def __or__(self, other: Any) -> Lanes:
        return self._made("or_", other)

    def __and__(self, other: Any) -> Lanes:
        return self._made("and_", other)

    def __lshift__(self, other: Any) -> Lanes:
        return self._made("shl", other)

    def __rshift__(self, other: Any) -> Lanes:
        return self._made("ashr", other)

    def most(self, other: Any) -> Lanes:
        """The larger of both, lane by lane."""
        return self._chosen(">", other)

    def least(self, other: Any) -> Lanes:
        """The smaller of both, lane by lane."""
        return self._chosen("<", other)


def _number(value: Any) -> Any:
    return value if isinstance(value, Lanes) else int(value)


_core = SimpleNamespace(
    **core.arithmetic(
        lambda function: function,
        _number,
        Lanes.least,
        Lanes.most,
    )
)


class _Memory:
    """Vectors at addresses."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def _place(self, address: Any, offset: Any, kind: Any) -> Any:
        if isinstance(offset, int):
            offset = ir.Constant(address.type, offset)
        return self.builder.inttoptr(self.builder.add(address, offset), kind.as_pointer())

    def read(self, address: Any, offset: Any = 0, bits: int = 32, signed: bool = True) -> Lanes:
        """COUNT numbers of so many bits, widened."""
        value = self.builder.load(self._place(address, offset, _KINDS[bits]), align=1)
        if bits < 32:
            value = (self.builder.sext if signed else self.builder.zext)(value, _KINDS[32])
        return Lanes(self.builder, value)

    def spread(self, address: Any, offset: Any) -> Lanes:
        """One int32 in every lane."""
        number = self.builder.load(self._place(address, offset, ir.IntType(32)), align=4)
        first = ir.Constant(ir.IntType(32), 0)
        one = self.builder.insert_element(ir.Constant(_KINDS[32], ir.Undefined), number, first)
        return Lanes(self.builder, self.mixed(one, one, [0] * COUNT))

    def mixed(self, a: Any, b: Any, places: Sequence[int]) -> Any:
        """The elements ``places`` of a vector and the one behind it."""
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(places))
        return self.builder.shuffle_vector(a, b, mask)

    def write(self, address: Any, value: Any, offset: Any = 0) -> None:
        value = value.value if isinstance(value, Lanes) else value
        self.builder.store(value, self._place(address, offset, value.type), align=1)

    def times(self, value: Any, number: int) -> Any:
        return self.builder.mul(value, ir.Constant(value.type, number))


def _function(write: Callable[..., None]) -> Any:
    """A function of a ``_Memory`` and whole numbers -> the same for numba."""

    @functools.wraps(write)  # numba looks at the names of the arguments
    def typed(_typing: Any, *arguments: Any) -> Any:
        def lower(context: Any, builder: Any, _sig: Any, values: Any) -> Any:
            write(_Memory(builder), *values)
            return context.get_dummy_value()

        return types.void(*[types.intp] * len(arguments)), lower

    return intrinsic(typed)


def _address(_typing: Any, _array: Any) -> Any:
    """Where an array's memory begins; unlike ``array.ctypes.data`` it counts no references."""

    def lower(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, arguments[0]).data
        return builder.ptrtoint(data, context.get_value_type(types.intp))

    return types.intp(_array), lower


def _as_writable(_typing: Any, array: Any) -> Any:
    """The same array as one of the type that can be written, so that what takes it is compiled for
    one type only."""
    changed = array.copy(readonly=False)

    def lower(context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        return _borrowed(context, builder, changed, arguments[0])

    return changed(array), lower


address: Any = intrinsic(_address)
as_writable: Any = intrinsic(_as_writable)


@_function
def columns(memory: _Memory, coefs: Any, step: Any, quants: Any, work: Any) -> None:
    """The first pass over one column of COUNT blocks: coefficients int16 of the first of eight
    rows at ``coefs``, those of the next ``step`` bytes on; quantisation int32 at ``quants``, of
    the next row eight numbers on; the result at ``work``, of the next row eight vectors on."""
    values = [
        memory.read(coefs, memory.times(step, i), 16) * memory.spread(quants, 32 * i)
        for i in range(8)
    ]
    for i, value in enumerate(_core.idct8(*values, 11)):
        memory.write(work, value, 8 * BYTES * i)


@_function
def add_shares(memory: _Memory, coefs: Any, step: Any, shares: Any, most: Any) -> None:
    """COUNT blocks, as in ``columns``: sums of what coefficients can add (``shares`` int32 (64,)),
    of each column and, times SHARES, of all. Raises the two vectors of maxima at ``most``."""
    between = memory.builder.ashr(step, ir.Constant(step.type, 3))  # two columns
    worst, all_columns = memory.read(most), None
    for j, weight in enumerate(SHARES.tolist()):
        column = None
        for i in range(8):
            place = memory.builder.add(memory.times(step, i), memory.times(between, j))
            value = memory.read(coefs, place, 16)
            part = value.most(value * -1) * memory.spread(shares, 32 * i + 4 * j)
            column = part if column is None else column + part
        worst = worst.most(column)
        column = column * weight
        all_columns = column if all_columns is None else all_columns + column
    memory.write(most, worst)
    memory.write(most, memory.read(most, BYTES).most(all_columns), BYTES)


@_function
def pixel_row(memory: _Memory, work: Any, out: Any) -> None:
    """The second pass over one row of COUNT blocks, eight vectors at ``work``, to bytes."""
    values = [memory.read(work, BYTES * j) for j in range(8)]
    a, b, c, d, e, f, g, h = (_core.byte_of(v) for v in _core.idct8(*values, 18))
    low = (a | b << 8 | c << 16 | d << 24).value
    high = (e | f << 8 | g << 16 | h << 24).value
    memory.write(out, memory.mixed(low, high, _taken_in_turn(2, COUNT)))


@_function
def chroma_sums(memory: _Memory, near: Any, far: Any, sums: Any) -> None:
    """COUNT chroma samples of two rows -> three times the near one and the far one, at ``sums``."""
    value = memory.read(near, bits=8, signed=False) * 3 + memory.read(far, bits=8, signed=False)
    memory.write(sums, value)


def _upsampled(memory: _Memory, sums: Any) -> tuple[Lanes, Lanes]:
    """Sums, the first of which lies before the place -> the chroma of even and of odd pixels."""
    left, this, right = (memory.read(sums, 4 * i) for i in range(3))
    this = this * 3
    return (this + left + 8) >> 4, (this + right + 7) >> 4


def _half_row(
    memory: _Memory, level: Any, blue: Any, red: Any, out: Any, depth: int
) -> None:  # fmt: skip
    pairs = memory.read(level, bits=16, signed=False)
    (b0, b1), (r0, r1) = _upsampled(memory, blue), _upsampled(memory, red)
    even, odd = _core.rgb(pairs & 255, b0, r0), _core.rgb(pairs >> 8, b1, r1)
    if depth == 4:
        memory.write(out, memory.mixed(_words(*even), _words(*odd), _taken_in_turn(2, COUNT)))
        return
    builder, wide = memory.builder, ir.VectorType(ir.IntType(8), 2 * COUNT)
    channels = [
        builder.bitcast(builder.trunc((first | second << 8).value, _KINDS[16]), wide)
        for first, second in zip(even, odd, strict=True)
    ]
    memory.write(out, _interleaved(memory, channels, 2 * COUNT))


@_function
def half_row(memory: _Memory, level: Any, blue: Any, red: Any, out: Any) -> None:
    """2 COUNT pixels of 4:2:0, luma at ``level``, sums of chroma at ``blue`` and ``red`` -> RGB."""
    _half_row(memory, level, blue, red, out, 3)


@_function
def half_row_of_words(memory: _Memory, level: Any, blue: Any, red: Any, out: Any) -> None:
    """The same -> RGB and a byte of 255."""
    _half_row(memory, level, blue, red, out, 4)


def _full_row(
    memory: _Memory, level: Any, blue: Any, red: Any, out: Any, depth: int
) -> None:  # fmt: skip
    values = _core.rgb(*(memory.read(at, bits=8, signed=False) for at in (level, blue, red)))
    if depth == 4:
        memory.write(out, _words(*values))
        return
    channels = [memory.builder.trunc(value.value, _KINDS[8]) for value in values]
    memory.write(out, _interleaved(memory, channels, COUNT))


@_function
def full_row(memory: _Memory, level: Any, blue: Any, red: Any, out: Any) -> None:
    """COUNT pixels of 4:4:4 -> RGB."""
    _full_row(memory, level, blue, red, out, 3)


@_function
def full_row_of_words(memory: _Memory, level: Any, blue: Any, red: Any, out: Any) -> None:
    """The same -> RGB and a byte of 255."""
    _full_row(memory, level, blue, red, out, 4)


def _words(red: Lanes, green: Lanes, blue: Lanes) -> Any:
    return (red | green << 8 | blue << 16 | -1 << 24).value


def _taken_in_turn(vectors: int, count: int) -> list[int]:
    """Places in vectors one behind the other: the first of each, the second of each, ..."""
    return [i + count * vector for i in range(count) for vector in range(vectors)]


def _interleaved(memory: _Memory, channels: Sequence[Any], count: int) -> Any:
    """Three vectors -> one with the first elements of each, then the second, ..."""
    first = memory.mixed(channels[0], channels[1], range(2 * count))
    last = memory.mixed(channels[2], channels[2], range(2 * count))
    return memory.mixed(first, last, _taken_in_turn(3, count))
