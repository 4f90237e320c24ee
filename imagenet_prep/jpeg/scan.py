"""The coded data of a JPEG -> row entries and planes on the CPU, compiled by numba.

The bit reader and the loops differ from those of ``entropy``, which are made for a GPU; the
arithmetic of the IDCT is the same code. Coefficients of a row of blocks lie as (64, blocks), so
that the loops along the blocks become vector instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

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
from imagenet_prep.jpeg.parse import (
    P_END,
    P_MCUX,
    P_MCUY,
    P_MODE,
    P_START,
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
idct8, byte_of = _core.idct8, _core.byte_of
# How much a coefficient can add to a value between the passes of the IDCT, in sixteenths of 4,
# for its row in the block; and from there to a pixel, for the column. Between the passes
# libjpeg-turbo adds two values in 16 bits, and its code without vector instructions wraps pixels
# at 512 levels: _MOST and _MOST_PIXEL are just below both.
_SHARES = np.array([16, 23, 21, 19, 16, 13, 9, 5], np.int64)
_MOST, _MOST_PIXEL = 65000, 1_040_000


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
    luma = 4 if mode == HALF else 1
    wide = 2 * mcux if mode == HALF else mcux
    bad = False
    luma_places, chroma_places = zigzags[0], zigzags[1]
    dc0, dc1, dc2 = dcs[0], dcs[1], dcs[2]
    for m in range(mcux):
        for b in range(luma if mode == GREY else luma + 2):
            at = luma * 64 * mcux + (b - luma) * 64 * mcux + m
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
                if n < 32:
                    p, buf, n = _refill(data, end, p, buf, n)
                pair = i64(pairs[u64(first + i64(buf >> u64(64 - WIDE)))])
                if pair == 0:
                    e = _symbol(lut, table + STRIDE, buf)
                    v, buf, n = _value(e, buf, n)
                    k += 128 if e & 15 == 0 and e >> 4 & 15 != 15 else (e >> 4 & 15) + 1
                    bad |= e == 0 or 63 < k < 128
                    if k > 63:
                        break
                    coefs[u64(at + places[u64(k)])] = np.int16(v)
                    continue
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
        if bad:
            break
    dcs[0], dcs[1], dcs[2] = dc0, dc1, dc2
    return bad, p, buf, n


@inlined
def _share(v: F, share: F) -> F:
    return np.uint32(np.uint32(abs(i32(v))) * share)


@bare
def _overflows(coefs: F, quant: F, wide: F, shares: F, sums: F, work: F) -> F:
    """Whether a row of blocks (64, wide) has one that overflows libjpeg-turbo's arithmetic, for
    which what it makes of it depends on the processor. ``work``: 64 int32."""
    worst = np.uint32(0)
    pixels, step = sums[:wide], 8 * wide
    pixels[:] = 0
    for j in range(8):
        c = coefs[j * wide : (57 + j) * wide]
        s0, s1, s2, s3 = shares[j], shares[8 + j], shares[16 + j], shares[24 + j]
        s4, s5, s6, s7 = shares[32 + j], shares[40 + j], shares[48 + j], shares[56 + j]
        of_column = np.uint32(_SHARES[j])
        for b in range(wide):
            total = np.uint32(
                _share(c[u64(b)], s0) + _share(c[u64(b + step)], s1)
                + _share(c[u64(b + 2 * step)], s2) + _share(c[u64(b + 3 * step)], s3)
                + _share(c[u64(b + 4 * step)], s4) + _share(c[u64(b + 5 * step)], s5)
                + _share(c[u64(b + 6 * step)], s6) + _share(c[u64(b + 7 * step)], s7)
            )  # fmt: skip
            worst = max(worst, total)
            pixels[u64(b)] += np.uint32(total * of_column)
    bad = worst > np.uint32(_MOST)
    for b in range(wide):
        if pixels[b] > np.uint32(_MOST_PIXEL) and not bad:
            bad = _wraps(coefs, quant, wide, b, work)
    return bad


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
def _idct_row(coefs: F, quant: F, wide: F, work: F, plane: F) -> None:
    """A row of blocks (64, wide) -> eight rows of a plane, as int32 of four pixels each."""
    s = 8 * wide
    for j in range(8):
        c = coefs[j * wide : (56 + j) * wide + wide]
        o = work[j * wide : (56 + j) * wide + wide]
        q0, q1, q2, q3 = quant[j], quant[8 + j], quant[16 + j], quant[24 + j]
        q4, q5, q6, q7 = quant[32 + j], quant[40 + j], quant[48 + j], quant[56 + j]
        for b in range(wide):
            r0, r1, r2, r3, r4, r5, r6, r7 = idct8(
                i32(c[u64(b)] * q0), i32(c[u64(b + s)] * q1),
                i32(c[u64(b + 2 * s)] * q2), i32(c[u64(b + 3 * s)] * q3),
                i32(c[u64(b + 4 * s)] * q4), i32(c[u64(b + 5 * s)] * q5),
                i32(c[u64(b + 6 * s)] * q6), i32(c[u64(b + 7 * s)] * q7), i32(11),
            )  # fmt: skip
            o[u64(b)], o[u64(b + s)], o[u64(b + 2 * s)], o[u64(b + 3 * s)] = r0, r1, r2, r3
            o[u64(b + 4 * s)], o[u64(b + 5 * s)] = r4, r5
            o[u64(b + 6 * s)], o[u64(b + 7 * s)] = r6, r7
    for k in range(8):
        line = work[k * s : (k + 1) * s]
        out = plane[2 * k * wide : 2 * (k + 1) * wide]
        for b in range(wide):
            r0, r1, r2, r3, r4, r5, r6, r7 = idct8(
                line[u64(b)], line[u64(b + wide)], line[u64(b + 2 * wide)],
                line[u64(b + 3 * wide)], line[u64(b + 4 * wide)], line[u64(b + 5 * wide)],
                line[u64(b + 6 * wide)], line[u64(b + 7 * wide)], i32(18),
            )  # fmt: skip
            low = i32(byte_of(r0) | i32(byte_of(r1) << i32(8)))
            low = i32(low | i32(byte_of(r2) << i32(16)) | i32(byte_of(r3) << i32(24)))
            high = i32(byte_of(r4) | i32(byte_of(r5) << i32(8)))
            high = i32(high | i32(byte_of(r6) << i32(16)) | i32(byte_of(r7) << i32(24)))
            out[u64(2 * b)] = low
            out[u64(2 * b + 1)] = high


@bare
def _finish_row(
    found: F, row: F, quants: F, shares: F, coefs: F, work: F, sums: F, planes: F, draw: F
) -> F:
    """Checks a row's coefficients and, with ``draw``, makes its pixels; clears them."""
    mode, mcux, mcuy = found[P_MODE], found[P_MCUX], found[P_MCUY]
    lines = 2 if mode == HALF else 1
    wide = lines * mcux
    bad = False
    for line in range(lines):
        part = coefs[line * 64 * wide : (line + 1) * 64 * wide]
        bad |= _overflows(part, quants[0], wide, shares[0], sums, work)
        if draw and not bad:
            at = (row * lines + line) * 16 * wide
            _idct_row(part, quants[0], wide, work, planes[at : at + 16 * wide])
    luma = lines * wide
    if mode != GREY:
        for c in range(2):
            part = coefs[64 * (luma + c * mcux) : 64 * (luma + (c + 1) * mcux)]
            bad |= _overflows(part, quants[1 + c], mcux, shares[1 + c], sums, work)
            if draw and not bad:
                at = (luma * mcuy + (c * mcuy + row) * mcux) * 16
                _idct_row(part, quants[1 + c], mcux, work, planes[at : at + 16 * mcux])
    coefs[: 64 * (luma + 2 * mcux)] = 0
    return bad


@compiled
def _prepare(specs: F, quants: F, found: F, known: F, lut: F, pairs: F, more: F) -> F:
    """Tables of an image: Huffman tables where they differ from the last image's, quantisation
    as int32, shares of the overflow check, places of the coefficients."""
    wide_quants, shares, zigzags = more
    if not same(known, specs.reshape(-1)):
        known[0] = 255  # no specification starts so: what follows may fail
        for t in range(4):
            if not build_table(specs[t], t % 2 == 0, lut[t * STRIDE : (t + 1) * STRIDE]):
                return TABLES
        build_pairs(lut[STRIDE : 2 * STRIDE], pairs[: 1 << WIDE])
        build_pairs(lut[3 * STRIDE :], pairs[1 << WIDE :])
        known[:] = specs.reshape(-1)
    for c in range(3):
        for k in range(64):
            q = i64(quants[c, k])
            wide_quants[c, k] = q
            shares[c, k] = min(q * _SHARES[k >> 3], 65535)
    mcux = found[P_MCUX]
    for k in range(64):
        zigzags[0, k] = ZIGZAG[k] * (2 * mcux if found[P_MODE] == HALF else mcux)
        zigzags[1, k] = ZIGZAG[k] * mcux
    return OK


@compiled
def decode_image(
    data: F, begin: F, found: F, specs: F, quants: F, state: F, positions: F, predictors: F,
    planes: F, draw: F,
) -> F:  # fmt: skip
    """Decodes a parsed JPEG at ``begin`` of ``data`` -> its status; fills ``positions`` and
    ``predictors`` (MCU rows + 1), and ``planes`` with ``draw``."""
    known, lut, pairs, more, coefs, work, sums = state
    status = _prepare(specs, quants, found, known, lut, pairs, more)
    if status != OK:
        return status
    wide_quants, shares, zigzags = more
    start, end = begin + found[P_START], begin + found[P_END]
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
            coefs[:] = 0
            return CORRUPT
        if _finish_row(found, row, wide_quants, shares, coefs, work, sums, planes, draw):
            return OVERFLOW
    last = i64(positions[found[P_MCUY]])
    left = found[P_END] - ((last + 7) >> 3)
    if left == 0 or (left == 1 and data[end - 1] == 0 and data[end - 2] == 255):
        return OK
    return TRUNCATED if left < 0 else CORRUPT
