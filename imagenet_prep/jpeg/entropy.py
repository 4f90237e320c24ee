"""Huffman codes -> coefficients, an MCU row at a time: a part of ``core``, made like it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from imagenet_prep.jpeg.core import (
    BAD_ROW,
    HEIGHT,
    LONG,
    LOOK,
    MODE,
    OK,
    ROW,
    SIZE,
    STRIDE,
    SUB,
    WIDTH,
    F,
    Jit,
    i32,
    i64,
    u32,
    u64,
)


def _bit_reader(jit: Jit) -> SimpleNamespace:
    @jit
    def take(word: F, first: F, buf: F, n: F, ff: F) -> F:
        """Appends bytes ``first`` to 3 of a little-endian word, less stuffed zeros."""
        for j in range(first, 4):
            byte = u32(u32(word >> u32(8 * j)) & u32(255))
            if ff and byte == u32(0):
                ff = False
            else:
                buf = u64(buf | u64(u64(byte) << u64(56 - n)))
                n = i32(n + 8)
                ff = byte == u32(255)
        return buf, n, ff

    @jit
    def has_ff(w: F) -> F:
        """Whether one of the four bytes is 0xFF."""
        return (u32(u32(~w) - u32(0x01010101)) & w & u32(0x80808080)) != u32(0)

    @jit
    def swapped(w: F) -> F:
        """The big-endian value of four bytes that were read little-endian."""
        outer = u32(u32(w << u32(24)) | u32(w >> u32(24)))
        return u32(
            outer | u32(u32(w & u32(0xFF00)) << u32(8)) | u32(u32(w >> u32(8)) & u32(0xFF00))
        )

    @jit
    def byte_at(words: F, base: F, last: F, p: F) -> F:
        word = u32(words[u64(base + i64(min(i32(p >> i32(2)), last)))])
        return u32(u32(word >> u32(8 * (p & i32(3)))) & u32(255))

    @jit
    def position(words: F, base: F, last: F, wi: F, n: F) -> F:
        """Where the next bit lies, with ``n`` > 0 bits of the words before ``wi`` not yet used."""
        p = i32(wi * 4)
        left = i32(n)
        while left > 0:
            p = i32(p - 1)
            here = byte_at(words, base, last, p)
            if here == u32(0) and byte_at(words, base, last, i32(p - 1)) == u32(255):
                p = i32(p - 1)
            left = i32(left - 8)
        return i32(p * 8 - left)

    return SimpleNamespace(take=take, has_ff=has_ff, swapped=swapped, position=position)


def entropy(jit: Jit) -> dict[str, F]:
    """-> the functions that decode Huffman codes, a row of MCUs at a time."""
    bits = _bit_reader(jit)
    take, has_ff, swapped, position = bits.take, bits.has_ff, bits.swapped, bits.position

    @jit
    def symbol(lut: F, first: F, is_chroma: F, is_ac: F, buf: F) -> F:
        """The entry of the next code: its length, run of zeros and size of the value."""
        table = i32(first)
        if is_chroma:
            table = i32(table + i32(2 * STRIDE))
        if is_ac:
            table = i32(table + i32(STRIDE))
        e = i32(lut[u32(table + i32(buf >> u64(64 - LOOK)))])
        if e >= LONG:
            sub = i32(i32(1 << LOOK) + i32(e & i32(0x7FFF)) * i32(SUB))
            e = i32(lut[u32(table + sub + i32(i32(buf >> u64(48)) & i32(SUB - 1)))])
        return e

    @jit
    def block(mode: F, m: F, b: F, at_y: F, at_y2: F, at_1: F, at_2: F) -> F:
        """Where block ``b`` of MCU ``m`` of the row goes."""
        if mode != 2:
            return i32((at_y if b == 0 else (at_1 if b == 1 else at_2)) + m * i32(64))
        if b < 2:
            return i32(at_y + i32(2 * m + b) * i32(64))
        if b < 4:
            return i32(at_y2 + i32(2 * m + b - 2) * i32(64))
        return i32((at_1 if b == 4 else at_2) + m * i32(64))

    @jit
    def row(
        words: F, base: F, last: F, start: F, lut: F, first: F, mode: F, mcus: F,
        dc0: F, dc1: F, dc2: F, zigzag: F, coefs: F, at_y: F, at_y2: F, at_1: F, at_2: F,
    ) -> F:  # fmt: skip
        """Decodes an MCU row in one loop over symbols: no thread of a GPU waits for the others'
        blocks.

        The image's words are ``base`` to ``base + last``; ``start`` is the bit position in them;
        at_*: where the row's coefficients go, of luma (upper and lower blocks), Cb and Cr.
        -> (bit position behind the row, the three DC predictors there).
        """
        wi = i32(start >> i32(5))
        bit = i32(start & i32(7))
        w = u32(words[u64(base + i64(min(wi, last)))])
        wi = i32(wi + 1)
        buf, n, ff = take(w, i32(i32(start >> i32(3)) & i32(3)), u64(0), i32(0), False)
        buf = u64(buf << u64(bit))
        n = i32(n - bit)
        luma = i32(4) if mode == 2 else i32(1)
        count = i32(6) if mode == 2 else (i32(3) if mode == 1 else i32(1))
        k = i32(0)
        b = i32(0)
        m = i32(0)
        at = i32(at_y)
        while m < mcus:
            while n < 32:
                w = u32(words[u64(base + i64(min(wi, last)))])
                wi = i32(wi + 1)
                if ff or has_ff(w):
                    buf, n, ff = take(w, i32(0), buf, n, ff)
                else:
                    buf = u64(buf | u64(u64(swapped(w)) << u64(32 - n)))
                    n = i32(n + 32)
            e = symbol(lut, first, b >= luma, k > 0, buf)
            size = i32(e & i32(15))
            run = i32(i32(e >> i32(4)) & i32(15))
            length = i32(e >> i32(8))
            buf = u64(buf << u64(length))
            v = i32(u64(buf >> u64(1)) >> u64(63 - size))  # ``size`` bits; 0 for none
            buf = u64(buf << u64(size))
            n = i32(n - length - size)
            if v < i32(i32(i32(1) << size) >> i32(1)):  # the leading bit is 0: negative
                v = i32(v + 1 - i32(i32(1) << size))
            if k == 0:
                if b < luma:
                    dc0 = i32(dc0 + v)
                    v = dc0
                elif b == luma:
                    dc1 = i32(dc1 + v)
                    v = dc1
                else:
                    dc2 = i32(dc2 + v)
                    v = dc2
                coefs[u32(at)] = np.int16(v)
                k = i32(1)
            else:
                k = i32(k + run)
                if size > 0:
                    coefs[u32(at + zigzag[k & i32(63)])] = np.int16(v)
                    k = i32(k + 1)
                else:
                    k = i32(k + 1) if run == 15 else i32(64)  # 16 zeros, or the block's end
            if k >= 64:
                k = i32(0)
                b = i32(b + 1)
                if b == count:
                    b = i32(0)
                    m = i32(m + 1)
                at = block(mode, m, b, at_y, at_y2, at_1, at_2)
        return position(words, base, last, wi, n), dc0, dc1, dc2

    @jit
    def decode_row(
        words: F, begin: F, job: F, r: F, positions: F, predictors: F, lut: F, first: F,
        zigzag: F, coefs: F, here: F,
    ) -> F:  # fmt: skip
        """Decodes row ``r`` of the image that starts at byte ``begin`` of the words, into the
        coefficients from ``here`` on -> OK, or BAD_ROW where it ends elsewhere than indexed.

        The job has passed ``job_status``.
        """
        mode, entry = i32(job[MODE]), i32(job[ROW] + r)
        side = i32(16) if mode == 2 else i32(8)
        mcux = i32(u32(i32(job[WIDTH] + side - 1)) // u32(side))
        mcuy = i32(u32(i32(job[HEIGHT] + side - 1)) // u32(side))
        start, end = i32(positions[entry]), i32(positions[entry + 1])
        if start < 16 or end <= start or end > i32(job[SIZE] * i32(8)):
            return i32(BAD_ROW)
        base = i64(begin >> i64(2))
        skipped = i32(begin & i64(3))
        last = i32(i32(skipped + job[SIZE] + 3) >> i32(2)) - i32(1)
        area = i32(mcux * mcuy * i32(64))
        across = i32(r * mcux * i32(64))
        if mode == 2:
            y = i32(here + i32(4) * across)
            y2 = i32(y + i32(2) * mcux * i32(64))
            c1 = i32(here + i32(4) * area + across)
        else:
            y = i32(here + across)
            y2 = y
            c1 = i32(y + area)
        found, dc0, dc1, dc2 = row(
            words, base, i32(last), i32(start + i32(8) * skipped), lut, first, mode, mcux,
            i32(predictors[entry, 0]), i32(predictors[entry, 1]), i32(predictors[entry, 2]),
            zigzag, coefs, y, y2, c1, i32(c1 + area),
        )  # fmt: skip
        same = dc0 == predictors[entry + 1, 0] and dc1 == predictors[entry + 1, 1]
        same = same and dc2 == predictors[entry + 1, 2]
        return i32(OK) if same and found == i32(end + i32(8) * skipped) else i32(BAD_ROW)

    return {"row": row, "decode_row": decode_row}
