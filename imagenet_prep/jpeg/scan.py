"""The coded data of a JPEG -> row entries and planes on the CPU, compiled by numba.

The bit reader and the loops differ from those of ``entropy``, which are made for a GPU; the
arithmetic is the same code. Coefficients of a row of blocks lie as (64, blocks), so that the loops
along the blocks become vector instructions; the blocks are made up to a multiple of COUNT.

What a thread needs lies in one piece of memory, see ``memory_bytes`` and ``_carved``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.jpeg import core
from imagenet_prep.jpeg.core import (
    CORRUPT,
    GREY,
    HALF,
    LONG,
    LOOK,
    MAX_DC,
    OK,
    OVERFLOW,
    STRIDE,
    SUB,
    TABLES,
    TRUNCATED,
    ZIGZAG,
    i32,
    i64,
    u64,
)
from imagenet_prep.jpeg.lanes import (
    BYTES,
    COUNT,
    SHARES,
    add_shares,
    address,
    chroma_sums,
    columns,
    full_row,
    full_row_of_words,
    half_row,
    half_row_of_words,
    pixel_row,
)
from imagenet_prep.jpeg.parse import (
    P_END,
    P_HEIGHT,
    P_MCUX,
    P_MCUY,
    P_MODE,
    P_START,
    P_WIDTH,
    WIDE,
    bare,
    build_pairs,
    build_table,
    compiled,
    has_ff,
    inlined,
    same,
    word_at,
)

F = Any
_core = core.make(inlined)
idct8, rgb = _core.idct8, _core.rgb
# Between the passes
# libjpeg-turbo adds two values in 16 bits, and its code without vector instructions wraps pixels
# at 512 levels: _MOST and _MOST_PIXEL are just below both.
_MOST, _MOST_PIXEL = 65000, 1_040_000


# The parts of a thread's memory that have one size, in bytes: the Huffman specifications of its
# tables, two kinds of tables, quantisation, shares, places of coefficients, a group of blocks, the
# maxima of the overflow check.
_SIZES = (
    4 * 272,
    2 * 4 * STRIDE,
    8 * (2 << WIDE),
    4 * 3 * 64,
    4 * 3 * 64,
    8 * 2 * 64,
    64 * BYTES,
    2 * BYTES,
)
_ENDS = np.cumsum([-(-size // 64) * 64 for size in _SIZES])
_KNOWN, _LUT, _PAIRS, _QUANTS, _SHARE, _ZIGZAGS, _WORK, _MAXIMA = (
    (int(end) - -(-size // 64) * 64, int(end) - (-size % 64))
    for end, size in zip(_ENDS, _SIZES, strict=True)
)
_FIXED = int(_ENDS[-1])


def memory_bytes(width: int, height: int) -> int:
    """What a thread needs to decode images of at most that size; of no height, to scan them."""
    across = -(-width // (8 * COUNT)) * 8 * COUNT
    return _FIXED + 73 * across + 704 + 3 * across * (-(-height // 16) * 16)


def new_memory(threads: int, width: int, height: int) -> NDArray[np.uint8]:
    """Memory of so many threads (threads, ``memory_bytes``), aligned to 64 bytes."""
    size = -(-memory_bytes(width, height) // 64) * 64
    whole = np.zeros(threads * size + 64, np.uint8)
    begin = -whole.ctypes.data % 64
    memory = whole[begin : begin + threads * size].reshape(threads, size)
    memory[:, 0] = 255  # no Huffman specification starts so
    return memory


@inlined
def _padded(blocks: F) -> F:
    return (blocks + COUNT - 1) // COUNT * COUNT


@inlined
def _carved(memory: F, found: F) -> F:
    """A thread's memory for an image -> its tables; its other parts: quantisation and shares
    (3, 64), places of coefficients (2, 64), coefficients, a group of blocks, maxima of the overflow
    check, sums of chroma and a line of pixels, planes."""
    lines = 2 if found[P_MODE] == HALF else 1
    across = 8 * _padded(lines * found[P_MCUX])
    tables = (
        memory[_KNOWN[0] : _KNOWN[1]],
        memory[_LUT[0] : _LUT[1]].view(np.uint16),
        memory[_PAIRS[0] : _PAIRS[1]].view(np.int64),
    )
    chroma = _FIXED + 64 * across
    line = chroma + 8 * (across + 64)
    planes = line + across + 4 * 2 * COUNT
    parts = (
        memory[_QUANTS[0] : _QUANTS[1]].view(np.int32).reshape(3, 64),
        memory[_SHARE[0] : _SHARE[1]].view(np.int32).reshape(3, 64),
        memory[_ZIGZAGS[0] : _ZIGZAGS[1]].view(np.int64).reshape(2, 64),
        memory[_FIXED:chroma].view(np.int16),
        memory[_WORK[0] : _WORK[1]].view(np.int32),
        memory[_MAXIMA[0] : _MAXIMA[1]].view(np.int32),
        (memory[chroma:line].view(np.int32), memory[line:planes]),
        memory[planes:],
    )
    return tables, parts


@inlined
def _refill(data: F, end: F, p: F, buf: F, n: F) -> F:
    """More than 55 bits in ``buf``; each 0xFF before ``end`` is followed by a stuffed zero."""
    if p + 8 <= end:
        w = word_at(data, p)
        if not has_ff(w):
            return p + ((63 - n) >> 3), buf | (w >> u64(n)), n | 56
    while n <= 56:
        byte = u64(data[u64(p)]) if p < end else u64(0)
        p += 2 if byte == u64(255) else 1
        buf |= byte << u64(56 - n)
        n += 8
    return p, buf, n


@bare
def _position(data: F, start: F, end: F, p: F, n: F) -> F:
    """Bit position, from the start of ``data``, of the next of ``n`` bits read before ``p``."""
    while n > 0:
        p -= 1
        if start < p < end and data[p] == 0 and data[p - 1] == 255:
            p -= 1
        n -= 8
    return p * 8 - n


@inlined
def _symbol(lut: F, table: F, buf: F) -> F:
    e = i64(lut[u64(table + i64(buf >> u64(64 - LOOK)))])
    if e >= LONG:
        sub = (1 << LOOK) + (e & 0x7FFF) * SUB
        e = i64(lut[u64(table + sub + i64((buf >> u64(48)) & u64(SUB - 1)))])
    return e


@inlined
def _value(e: F, buf: F, n: F) -> F:
    """A code's entry -> (its value, the bits behind it)."""
    size = e & 15
    buf <<= u64(e >> 8)
    v = i64((buf >> u64(1)) >> u64(63 - size))
    if v < (1 << size) >> 1:
        v += 1 - (1 << size)
    return v, buf << u64(size), n - (e >> 8) - size


@bare
def _row(
    data: F, end: F, p: F, buf: F, n: F, dcs: F, found: F, lut: F, pairs: F, zigzags: F,
    coefs: F,
) -> F:  # fmt: skip
    """Decodes an MCU row into ``coefs``: luma rows, Cb, Cr -> (damaged, p, buf, n).

    In one piece: split into two functions it takes a third more time.
    """
    mode, mcux = found[P_MODE], found[P_MCUX]
    luma, lines = (4, 2) if mode == HALF else (1, 1)
    wide, wide_chroma = _padded(lines * mcux), _padded(mcux)
    bad = False
    luma_places, chroma_places = zigzags[0], zigzags[1]
    dc0, dc1, dc2 = dcs[0], dcs[1], dcs[2]
    for m in range(mcux):
        for b in range(luma if mode == GREY else luma + 2):
            at = 64 * (lines * wide + (b - luma) * wide_chroma) + m
            table, first, places = 2 * STRIDE, 1 << WIDE, chroma_places
            if b < luma:
                at = (b >> 1) * 64 * wide + (2 * m + (b & 1) if mode == HALF else m)
                table, first, places = 0, 0, luma_places
            if n < 32:
                p, buf, n = _refill(data, end, p, buf, n)
            e = _symbol(lut, table, buf)
            v, buf, n = _value(e, buf, n)
            if b < luma:
                dc0 += v
                v = dc0
            elif b == luma:
                dc1 += v
                v = dc1
            else:
                dc2 += v
                v = dc2
            bad |= e == 0 or v > MAX_DC or v < -MAX_DC
            coefs[u64(at)] = np.int16(v)
            k = i64(0)
            while k < 63:
                p, buf, n = _refill(data, end, p, buf, n)
                for _ in range(4):  # of at most WIDE bits each
                    pair = i64(pairs[u64(first + i64(buf >> u64(64 - WIDE)))])
                    if pair == 0:
                        if n < 32:
                            p, buf, n = _refill(data, end, p, buf, n)
                        e = _symbol(lut, table + STRIDE, buf)
                        v, buf, n = _value(e, buf, n)
                        k += 128 if e & 15 == 0 and e >> 4 & 15 != 15 else (e >> 4 & 15) + 1
                        bad |= e == 0 or 63 < k < 128
                        if k <= 63:
                            coefs[u64(at + places[u64(k)])] = np.int16(v)
                        break
                    k += (pair >> 8) & 255
                    if k >= 63:  # the block's end: a second symbol would be the next block's
                        buf <<= u64((pair >> 40) & 255)
                        n -= (pair >> 40) & 255
                        if k == 63:
                            coefs[u64(at + places[u64(63)])] = np.int16(pair >> 16)
                        bad |= 63 < k < 128
                        break
                    buf <<= u64(pair & 255)
                    n -= pair & 255
                    coefs[u64(at + places[u64(k)])] = np.int16(pair >> 16)
                    k += (pair >> 32) & 255
                    if k > 63:
                        bad |= k < 128
                        break
                    coefs[u64(at + places[u64(k)])] = np.int16(pair >> 48)
                    if k == 63:
                        break
        if bad:
            break
    dcs[0], dcs[1], dcs[2] = dc0, dc1, dc2
    return bad, p, buf, n


@bare
def _overflows(coefs: F, quant: F, wide: F, shares: F, most: F, work: F) -> F:
    """Whether a row of blocks (64, wide) has one that overflows libjpeg-turbo's arithmetic: what
    it makes of it depends on the processor. ``most``: two vectors; ``work``: 64 int32."""
    most[:] = 0
    for first in range(0, wide, COUNT):
        add_shares(address(coefs) + 2 * first, 16 * wide, address(shares), address(most))
    worst = near = i32(0)
    for i in range(COUNT):
        worst, near = max(worst, most[i]), max(near, most[COUNT + i])
    if worst > i32(_MOST):
        return True
    if near > i32(_MOST_PIXEL):
        for b in range(wide):
            if _wraps(coefs, quant, wide, b, work):
                return True
    return False


@bare
def _wraps(coefs: F, quant: F, wide: F, b: F, work: F) -> F:
    """Whether a pixel of block ``b`` is 512 levels or more away from grey."""
    for k in range(64):
        work[k] = i32(i32(coefs[k * wide + b]) * quant[k])
    for j in range(8):
        line = idct8(
            work[j], work[8 + j], work[16 + j], work[24 + j],
            work[32 + j], work[40 + j], work[48 + j], work[56 + j], i32(11),
        )  # fmt: skip
        for r in range(8):
            work[8 * r + j] = line[r]
    for r in range(0, 64, 8):
        line = idct8(
            work[r], work[r + 1], work[r + 2], work[r + 3],
            work[r + 4], work[r + 5], work[r + 6], work[r + 7], i32(18),
        )  # fmt: skip
        for j in range(8):
            if line[j] < -512 or line[j] > 511:
                return True
    return False


@bare
def _idct_row(coefs: F, quants: F, wide: F, work: F, planes: F, at: F) -> None:
    """A row of blocks (64, wide) -> eight rows of a plane, from byte ``at`` of the planes on."""
    source, quant, between = address(coefs), address(quants), address(work)
    for first in range(0, wide, COUNT):
        for j in range(8):
            place = source + 2 * (j * wide + first)
            columns(place, 16 * wide, quant + 4 * j, between + BYTES * j)
        out = address(planes) + at + 8 * first
        for k in range(8):
            pixel_row(between + 8 * BYTES * k, out + 8 * wide * k)


@bare
def _finish_row(found: F, row: F, parts: F, draw: F) -> F:
    """Checks a row's coefficients and, with ``draw``, makes its planes; clears them."""
    quants, shares, _zigzags, coefs, work, most, _chroma, planes = parts
    mode, mcux, mcuy = found[P_MODE], found[P_MCUX], found[P_MCUY]
    lines = 2 if mode == HALF else 1
    wide, wide_chroma = _padded(lines * mcux), _padded(mcux)
    bad, at = False, 64 * lines * wide * row
    for line in range(lines):
        part = coefs[64 * wide * line : 64 * wide * (line + 1)]
        bad |= _overflows(part, quants[0], wide, shares[0], most, work)
        if draw and not bad:
            _idct_row(part, quants[0], wide, work, planes, at + 64 * wide * line)
    size, first = 64 * wide_chroma, 64 * lines * wide
    if mode != GREY:
        for c in range(2):
            part = coefs[first + size * c : first + size * (c + 1)]
            bad |= _overflows(part, quants[1 + c], wide_chroma, shares[1 + c], most, work)
            if draw and not bad:
                at = first * mcuy + size * (mcuy * c + row)
                _idct_row(part, quants[1 + c], wide_chroma, work, planes, at)
    coefs[: first + 2 * size] = 0
    return bad


@compiled
def _prepare(specs: F, quants: F, found: F, tables: F, parts: F) -> F:
    """Tables of an image: Huffman tables where they differ from the last image's, quantisation
    as int32, shares of the overflow check, places of the coefficients."""
    known, lut, pairs = tables
    if not same(known, specs.reshape(-1)):
        known[0] = 255  # no specification starts so: what follows may fail
        for t in range(4):
            if not build_table(specs[t], t % 2 == 0, lut[t * STRIDE : (t + 1) * STRIDE]):
                return TABLES
        build_pairs(lut[STRIDE : 2 * STRIDE], pairs[: 1 << WIDE])
        build_pairs(lut[3 * STRIDE :], pairs[1 << WIDE :])
        known[:] = specs.reshape(-1)
    wide_quants, shares, zigzags = parts[0], parts[1], parts[2]
    for c in range(3):
        for k in range(64):
            q = i64(quants[c, k])
            wide_quants[c, k] = q
            shares[c, k] = min(q * SHARES[k >> 3], 65535)
    mcux = found[P_MCUX]
    for k in range(64):
        zigzags[0, k] = ZIGZAG[k] * _padded(2 * mcux if found[P_MODE] == HALF else mcux)
        zigzags[1, k] = ZIGZAG[k] * _padded(mcux)
    return OK


@compiled
def decode_image(
    data: F, begin: F, found: F, specs: F, quants: F, memory: F, positions: F, predictors: F,
    first: F, last: F,
) -> F:  # fmt: skip
    """Decodes a parsed JPEG at ``begin`` of ``data`` -> its status; fills ``positions`` and
    ``predictors`` (MCU rows + 1), and the planes for the rows of pixels from ``first`` to before
    ``last``. ``memory`` is at least ``memory_bytes`` of the image."""
    tables, parts = _carved(memory, found)
    status = _prepare(specs, quants, found, tables, parts)
    if status != OK:
        return status
    _known, lut, pairs = tables
    zigzags, coefs = parts[2], parts[3]
    coefs[:] = 0
    start, end = begin + found[P_START], begin + found[P_END]
    side = 16 if found[P_MODE] == HALF else 8
    p, buf, n = start, u64(0), i64(0)
    dcs = np.zeros(3, np.int64)
    for row in range(found[P_MCUY] + 1):
        positions[row] = _position(data, start, end, p, n) - 8 * begin
        for c in range(3):
            predictors[row, c] = dcs[c]
        if row == found[P_MCUY]:
            break
        bad, p, buf, n = _row(data, end, p, buf, n, dcs, found, lut, pairs, zigzags, coefs)
        if bad:
            return CORRUPT
        # Upsampling takes chroma from two rows of pixels away.
        draw = first < last and side * row < last + 2 and side * (row + 1) > first - 2
        if _finish_row(found, row, parts, draw):
            return OVERFLOW
    at = i64(positions[found[P_MCUY]])
    left = found[P_END] - ((at + 7) >> 3)
    if left == 0 or (left == 1 and data[end - 1] == 0 and data[end - 2] == 255):
        return OK
    return TRUNCATED if left < 0 else CORRUPT


@compiled
def colour_rows(
    found: F, memory: F, out: F, depth: F, first: F, last: F, left: F, right: F
) -> None:
    """Planes -> the pixels of rows ``first`` to before ``last``, at least of columns ``left`` to
    before ``right``, at their places in ``out`` (H * W * depth,): libjpeg's fancy upsampling, then
    RGB and, where ``depth`` is 4, a byte of any value."""
    _tables, parts = _carved(memory, found)
    _colour_rows(found, parts[6], parts[7], out, depth, (first, last, left & ~1, right))


@bare
def _colour_rows(found: F, chroma: F, planes: F, out: F, depth: F, window: F) -> None:
    sums, line = chroma
    first, last, left, right = window
    mode, width, height = found[P_MODE], found[P_WIDTH], found[P_HEIGHT]
    mcux, mcuy = found[P_MCUX], found[P_MCUY]
    half, last_row = (width + 1) // 2, (height + 1) // 2 - 1
    lines = 2 if mode == HALF else 1
    wide, wide_chroma = 8 * _padded(lines * mcux), 8 * _padded(mcux)
    blue = 8 * lines * wide * mcuy
    size = 8 * wide_chroma * mcuy
    step = COUNT * lines
    if mode == GREY:
        line[:wide] = 128
    length = len(sums) // 2
    for y in range(first, last):
        near = blue + (y >> 1) * wide_chroma
        far = blue + min(max((y >> 1) + 2 * (y & 1) - 1, 0), last_row) * wide_chroma
        if mode == HALF:
            for c in range(2):
                own = sums[length * c : length * (c + 1)]
                _sum_row(planes, near + size * c, far + size * c, half, own)
        if mode == HALF and half <= 2:  # libjpeg repeats the samples
            for x in range(width):
                level, at = i32(planes[y * wide + x]), near + (x >> 1)
                r, g, b = rgb(level, i32(planes[at]), i32(planes[at + size]))
                at = depth * (y * width + x)
                out[at], out[at + 1], out[at + 2] = r, g, b
            continue
        for x in range(left, right, step):
            level = address(planes) + y * wide + x
            whole = x + step <= width
            target = address(out) + depth * (y * width + x) if whole else address(line) + wide
            if mode == HALF:
                b = address(sums) + 4 * (x >> 1)
                if depth == 3:
                    half_row(level, b, b + 4 * length, target)
                else:
                    half_row_of_words(level, b, b + 4 * length, target)
            else:
                b, r = address(line), address(line)
                if mode != GREY:
                    b = address(planes) + blue + y * wide + x
                    r = b + size
                if depth == 3:
                    full_row(level, b, r, target)
                else:
                    full_row_of_words(level, b, r, target)
            if not whole:
                at = depth * (y * width + x)
                for i in range(depth * (width - x)):
                    out[u64(at + i)] = line[u64(wide + i)]


@bare
def _sum_row(planes: F, near: F, far: F, half: F, sums: F) -> None:
    """The sums of ``half`` chroma samples of two rows, with one more at either end."""
    for j in range(0, half, COUNT):
        place = address(planes) + j
        chroma_sums(place + near, place + far, address(sums) + 4 * (1 + j))
    sums[0], sums[half + 1] = sums[1], sums[half]
