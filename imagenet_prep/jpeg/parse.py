"""JPEG headers -> what a decoder needs, compiled by numba (ITU-T T.81, annexes B and C)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba as _numba
import numpy as np

from imagenet_prep.core.compiled import kept
from imagenet_prep.jpeg.core import (
    COLOUR,
    CORRUPT,
    FULL,
    GREY,
    HALF,
    LONG,
    LOOK,
    MAX_BYTES,
    NOT_BASELINE,
    NOT_JPEG,
    OK,
    RESTART,
    SAMPLING,
    SCANS,
    SUB,
    TABLES,
    TOO_LARGE,
    TRUNCATED,
    ZIGZAG,
    u64,
)

numba: Any = _numba
F = Any
# What ``parse`` finds, int64: the mode, the size in pixels and in MCUs, the first byte of the
# coded data and the one behind them, counted from the JPEG's start.
P_MODE, P_WIDTH, P_HEIGHT, P_MCUX, P_MCUY, P_START, P_END = range(7)
PARSED = 7
WIDE = 11
"""Bits of a lookup of two AC symbols."""
T = TypeVar("T", bound=Callable[..., Any])


def compiled(function: T) -> T:
    """``numba.njit`` without fastmath and without the interpreter's lock."""
    return cast(T, numba.njit(nogil=True, error_model="numpy")(function))


def inlined(function: T) -> T:
    """``compiled``, and always a part of its caller."""
    return cast(T, numba.njit(nogil=True, error_model="numpy", forceinline=True)(function))


def bare(function: T) -> T:
    """``compiled``, without counting references to arrays, which can take most of a loop's time:
    for functions that neither make arrays nor return any."""
    options: Any = {"_nrt": False, "nogil": True, "error_model": "numpy"}
    return cast(T, numba.njit(**options)(function))


def entry(function: T) -> T:
    """``compiled``, and kept on disk."""
    return cast(T, kept(compiled(function)))


@inlined
def word_at(data: F, p: F) -> F:
    """Eight bytes, big-endian; LLVM makes one load of it."""
    return (
        u64(data[u64(p)]) << u64(56) | u64(data[u64(p + 1)]) << u64(48)
        | u64(data[u64(p + 2)]) << u64(40) | u64(data[u64(p + 3)]) << u64(32)
        | u64(data[u64(p + 4)]) << u64(24) | u64(data[u64(p + 5)]) << u64(16)
        | u64(data[u64(p + 6)]) << u64(8) | u64(data[u64(p + 7)])
    )  # fmt: skip


@inlined
def has_ff(w: F) -> F:
    """Whether one of eight bytes is 0xFF."""
    return (~w - u64(0x0101010101010101)) & w & u64(0x8080808080808080) != u64(0)


@compiled
def parse(data: F, begin: F, end: F, found: F, specs: F, quants: F) -> F:
    """Headers of the JPEG in ``data[begin:end]`` -> a status; fills ``found`` (PARSED,),
    ``specs`` and ``quants``."""
    if end - begin < 4 or data[begin] != 0xFF or data[begin + 1] != 0xD8:
        return NOT_JPEG
    if end - begin > MAX_BYTES:
        return TOO_LARGE
    p = begin + 2
    tables = np.zeros((8, 272), np.uint8)  # DC 0-3, AC 0-3
    dqt = np.zeros((4, 64), np.uint16)
    have = np.zeros(12, np.bool_)  # the tables, then the quantisations
    parts = np.zeros((3, 4), np.int64)  # id, h, v, quantisation
    # Components, Adobe's transform, JFIF, restart interval.
    flags = np.array([0, -1, 0, 0], np.int64)
    while True:
        if p + 4 > end or data[p] != 0xFF:
            return TRUNCATED
        marker = data[p + 1]
        if marker == 0xFF:
            p += 1
            continue
        size = np.int64(data[p + 2]) * 256 + data[p + 3]
        q, stop = p + 4, p + 2 + size
        if size < 2 or stop > end:
            return TRUNCATED
        if marker == 0xDA:
            status = _scan(data, q, stop, parts, flags, tables, dqt, have, specs, quants)
            if status == OK:
                status = _coded(data, begin, stop, end, found)
            return status
        status = OK
        if marker == 0xDB:
            status = _quantisation(data, q, stop, dqt, have)
        elif marker == 0xC4:
            status = _huffman(data, q, stop, tables, have)
        elif marker == 0xC0 or marker == 0xC1:
            status = _frame(data, q, stop, found, parts, flags)
        elif 0xC2 <= marker <= 0xCF and marker != 0xC8 and marker != 0xCC:
            status = NOT_BASELINE
        elif 0xE0 <= marker <= 0xEF or marker == 0xFE or marker == 0xDC or marker == 0xDD:
            _application(data, marker, q, stop, flags)
        else:
            status = CORRUPT
        if status != OK:
            return status
        p = stop


@compiled
def _quantisation(data: F, q: F, stop: F, dqt: F, have: F) -> F:
    while q < stop:
        wide, t = np.int64(data[q] >> 4), data[q] & 15
        q += 1
        if t > 3 or wide > 1 or q + 64 * (1 + wide) > stop:
            return CORRUPT
        for k in range(64):
            value = np.int64(data[q])
            q += 1
            if wide == 1:
                value = value * 256 + data[q]
                q += 1
            dqt[t, ZIGZAG[k]] = value
        have[8 + t] = True
    return OK


@compiled
def _huffman(data: F, q: F, stop: F, tables: F, have: F) -> F:
    while q < stop:
        kind, number = data[q] >> 4, data[q] & 15
        if kind > 1 or number > 3 or q + 17 > stop:
            return CORRUPT
        t = np.int64(kind * 4 + number)
        q += 1
        total = np.int64(0)
        tables[t] = 0
        for k in range(16):
            tables[t, k] = data[q + k]
            total += data[q + k]
        q += 16
        if total > 256 or q + total > stop:
            return CORRUPT
        for k in range(total):
            tables[t, 16 + k] = data[q + k]
        q += total
        have[t] = True
    return OK


@compiled
def _frame(data: F, q: F, stop: F, found: F, parts: F, flags: F) -> F:
    if stop - q < 6 or data[q] != 8 or flags[0] != 0:
        return NOT_BASELINE
    height = np.int64(data[q + 1]) * 256 + data[q + 2]
    width = np.int64(data[q + 3]) * 256 + data[q + 4]
    count = np.int64(data[q + 5])
    if (count != 1 and count != 3) or stop - q != 6 + 3 * count or height == 0 or width == 0:
        return SAMPLING
    for c in range(count):
        parts[c, 0] = data[q + 6 + 3 * c]
        parts[c, 1] = data[q + 7 + 3 * c] >> 4
        parts[c, 2] = data[q + 7 + 3 * c] & 15
        parts[c, 3] = data[q + 8 + 3 * c]
        if parts[c, 3] > 3:
            return CORRUPT
    mode = GREY
    if count == 3:
        luma = parts[0, 1]
        plain = parts[1, 1] == 1 and parts[1, 2] == 1 and parts[2, 1] == 1 and parts[2, 2] == 1
        if not plain or parts[0, 2] != luma or luma < 1 or luma > 2:
            return SAMPLING
        mode = HALF if luma == 2 else FULL
    side = 16 if mode == HALF else 8
    found[P_MODE], found[P_WIDTH], found[P_HEIGHT] = mode, width, height
    found[P_MCUX], found[P_MCUY] = (width + side - 1) // side, (height + side - 1) // side
    flags[0] = count
    return OK


@compiled
def _application(data: F, marker: F, q: F, stop: F, flags: F) -> None:
    """What other segments tell of colours and restart markers."""
    size = stop - q
    if marker == 0xDD and size >= 2:
        flags[3] = np.int64(data[q]) * 256 + data[q + 1]
    elif marker == 0xE0 and size >= 5:
        jfif = data[q] == 74 and data[q + 1] == 70 and data[q + 2] == 73
        if jfif and data[q + 3] == 70 and data[q + 4] == 0:
            flags[2] = 1
    elif marker == 0xEE and size >= 12:
        adobe = data[q] == 65 and data[q + 1] == 100 and data[q + 2] == 111
        if adobe and data[q + 3] == 98 and data[q + 4] == 101:
            flags[1] = data[q + 11]


@compiled
def _scan(
    data: F, q: F, stop: F, parts: F, flags: F, tables: F, dqt: F, have: F,
    specs: F, quants: F,
) -> F:  # fmt: skip
    """The scan's header: which tables the components use, and which colours they are."""
    count, adobe, jfif, restart = flags
    if restart != 0:
        return RESTART
    if count == 0 or stop - q != 4 + 2 * count or data[q] != count:
        return SCANS
    if count == 3 and jfif == 0:
        by_number = parts[0, 0] == 1 and parts[1, 0] == 2 and parts[2, 0] == 3
        if adobe != 1 and (adobe >= 0 or not by_number):
            return COLOUR
    for c in range(count):
        if data[q + 1 + 2 * c] != parts[c, 0]:
            return SCANS
        dc, ac = np.int64(data[q + 2 + 2 * c] >> 4), np.int64(data[q + 2 + 2 * c] & 15)
        t = parts[c, 3]
        if dc > 3 or ac > 3 or not (have[dc] and have[4 + ac] and have[8 + t]):
            return TABLES
        if c < 2:
            specs[2 * c], specs[2 * c + 1] = tables[dc], tables[4 + ac]
        elif not (same(specs[2], tables[dc]) and same(specs[3], tables[4 + ac])):
            return TABLES  # Cb's and Cr's differ: allowed, and written by no common encoder
        quants[c] = dqt[t]
    if count == 1:
        specs[2], specs[3] = specs[0], specs[1]
        quants[1], quants[2] = quants[0], quants[0]
    return OK


@compiled
def _coded(data: F, begin: F, start: F, end: F, found: F) -> F:
    """Finds the end of the coded data: the next marker, which must be the end of the image."""
    p = start
    while p + 1 < end:
        if p + 8 <= end and not has_ff(word_at(data, p)):
            p += 8
        elif data[p] == 0xFF and data[p + 1] != 0:
            break
        else:
            p += 1
    found[P_START], found[P_END] = start - begin, p - begin
    while p + 1 < end and data[p] == 0xFF and data[p + 1] == 0xFF:  # filling bytes
        p += 1
    if p + 1 >= end:
        return TRUNCATED
    marker = data[p + 1]
    if marker == 0xD9:
        return OK
    return SCANS if marker == 0xDA or marker == 0xC4 or marker == 0xDB else CORRUPT


@compiled
def same(a: F, b: F) -> F:
    """Whether two vectors of one length hold the same numbers."""
    for i in range(len(a)):  # noqa: SIM110 - numba has no all() over a generator
        if a[i] != b[i]:
            return False
    return True


@compiled
def build_table(spec: F, dc: F, lut: F) -> F:
    """A Huffman specification (272,) -> its table of two levels (STRIDE,): entries are
    length << 8 | symbol. False where it is not valid or needs more room."""
    lut[:] = 0
    code, at, subs = np.int64(0), np.int64(0), np.int64(0)
    for length in range(1, 17):
        for _ in range(spec[length - 1]):
            if code >= (1 << length) or at > 255:
                return False
            symbol = np.int64(spec[16 + at])
            at += 1
            if (dc and symbol > 11) or (not dc and (symbol & 15) > 10):
                return False
            entry = np.uint16(length << 8 | symbol)
            if length <= LOOK:
                first = code << (LOOK - length)
                lut[first : first + (1 << (LOOK - length))] = entry
            else:
                prefix = code >> (length - LOOK)
                if lut[prefix] == 0:
                    if (1 << LOOK) + (subs + 1) * SUB > len(lut):
                        return False
                    lut[prefix] = LONG | subs
                    subs += 1
                sub = np.int64(lut[prefix]) & 0x7FFF
                first = (1 << LOOK) + sub * SUB + ((code << (16 - length)) & (SUB - 1))
                lut[first : first + (1 << (16 - length))] = entry
            code += 1
        code <<= 1
    return True


@compiled
def build_pairs(lut: F, pairs: F) -> None:
    """The AC table -> one or two symbols for each of the next WIDE bits (1 << WIDE,) int64:
    bits of both, step and value of the first, step of the second, bits of the first, value of
    the second, in 8, 8, 16, 8, 8, 16 bits; 0 where not even one fits. A step is the zeros
    before a value plus one; 128 is the block's end."""
    for look in range(1 << WIDE):
        pairs[look] = 0
        used, entry = np.int64(0), np.int64(0)
        for found in range(2):
            rest = (look << used) & ((1 << WIDE) - 1)
            e = np.int64(lut[rest >> (WIDE - LOOK)])
            length, size = e >> 8, e & 15
            if e == 0 or e >= LONG or used + length + size > WIDE:
                break
            v = (rest >> (WIDE - length - size)) & ((1 << size) - 1)
            if v < (1 << size) >> 1:
                v += 1 - (1 << size)
            step: Any = ((e >> 4) & 15) + 1
            if size == 0 and step != 16:
                step = 128
            used += length + size
            if found == 0:
                entry = (step << 8) | ((v & 0xFFFF) << 16) | (used << 40) | ((v & 0xFFFF) << 48)
            else:
                entry = (entry & 0xFF00FFFFFFFF) | (step << 32) | ((v & 0xFFFF) << 48)
            if step == 128:
                pairs[look] = entry | used
                break
            pairs[look] = entry | used
