"""The JPEG decoder in the subset of Python that numba compiles, for the CPU and for CUDA.

``make(jit)`` -> the functions, compiled by ``jit``: ``numba.njit`` for the CPU, ``cuda.jit`` for
the device. The pixels are those of libjpeg-turbo's accurate integer IDCT with fancy upsampling.

Blocks of an image lie one after the other: the luma blocks in raster order, then Cb's, then Cr's.
Coefficients (int16, 64 a block, columns first) and planes (uint8) have the same order, so a plane
starts at 64 times its first block. Integers are cast wherever they are computed: numba widens
int32 + int32 to int64, which costs a GPU twice as much.

Nothing that a job, an index entry or the JPEG bytes hold makes these functions read or write
outside the arrays, as long as the arrays have the sizes that ``job_status`` compares them with.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

LOOK = 10
"""Bits of the first lookup of a Huffman code."""
SUB = 1 << (16 - LOOK)
"""Entries of a second-level table."""
LONG = 0x8000
"""A first-level entry that names second-level table ``entry & 0x7FFF``."""
STRIDE = (1 << LOOK) + 8 * SUB
"""Entries of one Huffman table: the first level and up to eight of the second."""
MAX_BYTES = 1 << 27
"""The largest JPEG: bit positions fit int32."""
MAX_DC = 8191
"""The largest DC value that the index accepts, 8 times what 8-bit pixels need."""

# Modes of an image: how its samples are stored.
GREY, FULL, HALF, RAW = range(4)  # one component; 4:4:4; 4:2:0; RGB bytes without compression

# The columns of a job (int32): what the kernels need to know about an image of a batch. ROW is
# its first entry in the positions and predictors, SIZE its bytes.
MODE, WIDTH, HEIGHT, HUFFMAN, QUANT, ROW, SIZE = range(7)
JOB = 8

# Status of an image, in the index and of a decoded batch.
(OK, NOT_JPEG, NOT_BASELINE, SAMPLING, TABLES, RESTART, SCANS, COLOUR, CORRUPT, TRUNCATED,
 OVERFLOW, TOO_LARGE, BAD_JOB, BAD_ROW, BAD_VIEW) = range(15)  # fmt: skip
REASONS = (
    "ok",
    "is not a JPEG",
    "is a JPEG of another kind than baseline with Huffman codes and 8 bits",
    "has chroma subsampling other than 4:2:0 and 4:4:4, or is not grey or three-component",
    "has missing or unusual Huffman or quantisation tables",
    "has restart markers",
    "has more than one scan",
    "has colours other than YCbCr or grey",
    "has damaged JPEG data",
    "is cut short",
    "has coefficients that no encoder writes for pixels of 8 bits",
    "is larger than the decoder's memory",
    "has a damaged entry in the row index",
    "does not match the row index: the JPEG data or the index is damaged",
    "is smaller than the view or than the mean image allows",
)
"""What each status means, as what "it" is or has."""

_ZIGZAG = """
 0  1  8 16  9  2  3 10 17 24 32 25 18 11  4  5 12 19 26 33 40 48 41 34 27 20 13  6  7 14 21 28
35 42 49 56 57 50 43 36 29 22 15 23 30 37 44 51 58 59 52 45 38 31 39 46 53 60 61 54 47 55 62 63
"""
ZIGZAG = np.array(_ZIGZAG.split(), np.int32)
"""The place in a block, row first, of each coefficient in the order of the file."""
TURNED = (ZIGZAG % 8 * 8 + ZIGZAG // 8).astype(np.int32)
"""The same, column first."""

SOURCE = zlib.crc32(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
)
"""Part of the key of compiled code on disk: numba looks only at the file of the outer function."""

SPECS = (4, 272)
"""Huffman specifications, uint8: DC and AC of luma, DC and AC of chroma; 16 counts, symbols."""
QUANTS = (3, 64)
"""Quantisation of the components, uint16, row first."""

i32, i64, u32, u64 = np.int32, np.int64, np.uint32, np.uint64
F = Any
Jit = Callable[[Callable[..., Any]], Callable[..., Any]]


def make(jit: Jit) -> SimpleNamespace:
    """-> the functions that every target shares, compiled with ``jit``."""
    from imagenet_prep.jpeg.entropy import entropy

    shared = arithmetic(jit)
    shared |= _blocks(jit, shared["idct8"], shared["byte_of"]) | _colour(jit, shared["rgb"])
    return SimpleNamespace(**shared, **entropy(jit), **_checks(jit))


def arithmetic(jit: Jit, i32: F = np.int32, least: F = min, most: F = max) -> dict[str, F]:
    """``idct8``, ``byte_of`` and ``rgb`` for numbers of the type ``i32``."""

    @jit
    def clamped(v: F) -> F:
        return least(most(v, i32(0)), i32(255))

    @jit
    def idct8(x0: F, x1: F, x2: F, x3: F, x4: F, x5: F, x6: F, x7: F, shift: F) -> F:
        """One pass of the accurate integer IDCT (Loeffler, Ligtenberg, Moschytz 1989, 13-bit
        constants): ``shift`` is 11 in the first pass (columns), 18 in the second (rows)."""
        z1 = i32(i32(x2 + x6) * i32(4433))
        t2 = i32(z1 - i32(x6 * i32(15137)))
        t3 = i32(z1 + i32(x2 * i32(6270)))
        t0 = i32(i32(x0 + x4) << i32(13))
        t1 = i32(i32(x0 - x4) << i32(13))
        half = i32(i32(1) << i32(shift - 1))
        a0 = i32(t0 + t3 + half)
        a3 = i32(t0 - t3 + half)
        a1 = i32(t1 + t2 + half)
        a2 = i32(t1 - t2 + half)
        z5 = i32(i32(x7 + x3 + x5 + x1) * i32(9633))
        z3 = i32(i32(i32(x7 + x3) * i32(-16069)) + z5)
        z4 = i32(i32(i32(x5 + x1) * i32(-3196)) + z5)
        z1 = i32(i32(x7 + x1) * i32(-7373))
        z2 = i32(i32(x5 + x3) * i32(-20995))
        b0 = i32(i32(x7 * i32(2446)) + z1 + z3)
        b1 = i32(i32(x5 * i32(16819)) + z2 + z4)
        b2 = i32(i32(x3 * i32(25172)) + z2 + z3)
        b3 = i32(i32(x1 * i32(12299)) + z1 + z4)
        return (
            i32(i32(a0 + b3) >> shift), i32(i32(a1 + b2) >> shift),
            i32(i32(a2 + b1) >> shift), i32(i32(a3 + b0) >> shift),
            i32(i32(a3 - b0) >> shift), i32(i32(a2 - b1) >> shift),
            i32(i32(a1 - b2) >> shift), i32(i32(a0 - b3) >> shift),
        )  # fmt: skip

    @jit
    def byte_of(v: F) -> F:
        """Level shift and clamp."""
        return i32(clamped(i32(v + 128)))

    @jit
    def rgb(y: F, cb: F, cr: F) -> F:
        """libjpeg's YCbCr to RGB, in 16-bit fixed point."""
        cb = i32(cb - 128)
        cr = i32(cr - 128)
        r = i32(y + i32(i32(cr * i32(91881) + i32(32768)) >> i32(16)))
        g = i32(y + i32(i32(cb * i32(-22554) + i32(32768) - cr * i32(46802)) >> i32(16)))
        b = i32(y + i32(i32(cb * i32(116130) + i32(32768)) >> i32(16)))
        return i32(clamped(r)), i32(clamped(g)), i32(clamped(b))

    return {"idct8": idct8, "byte_of": byte_of, "rgb": rgb}


def _blocks(jit: Jit, idct8: F, byte_of: F) -> dict[str, F]:
    @jit
    def column(low: F, high: F, q_low: F, q_high: F) -> F:
        """A column of a block, eight int16 in two int64, times the quantisation, eight uint16
        in two -> the first pass."""
        return idct8(
            i32(i32(np.int16(low)) * i32(np.uint16(q_low))),
            i32(i32(np.int16(low >> i64(16))) * i32(np.uint16(q_low >> i64(16)))),
            i32(i32(np.int16(low >> i64(32))) * i32(np.uint16(q_low >> i64(32)))),
            i32(i32(np.int16(low >> i64(48))) * i32(np.uint16(q_low >> i64(48)))),
            i32(i32(np.int16(high)) * i32(np.uint16(q_high))),
            i32(i32(np.int16(high >> i64(16))) * i32(np.uint16(q_high >> i64(16)))),
            i32(i32(np.int16(high >> i64(32))) * i32(np.uint16(q_high >> i64(32)))),
            i32(i32(np.int16(high >> i64(48))) * i32(np.uint16(q_high >> i64(48)))),
            i32(11),
        )

    @jit
    def packed(a: F, b: F, c: F, d: F) -> F:
        """Four values of the second pass -> four pixels in a word."""
        low = u32(u32(byte_of(a)) | u32(u32(byte_of(b)) << u32(8)))
        return u32(low | u32(u32(byte_of(c)) << u32(16)) | u32(u32(byte_of(d)) << u32(24)))

    @jit
    def place(job: F, inside: F) -> F:
        """Block number ``inside`` of an image -> (its component, the component's first block,
        blocks in a row of it); component -1 for numbers that the image does not have."""
        mode = i32(job[MODE])
        side = i32(16) if mode == 2 else i32(8)
        mcux = i32(u32(i32(job[WIDTH] + side - 1)) // u32(side))
        area = i32(mcux * i32(u32(i32(job[HEIGHT] + side - 1)) // u32(side)))
        luma = i32(area * i32(4)) if mode == 2 else area
        if inside < luma:
            return i32(0), i32(0), (i32(mcux * i32(2)) if mode == 2 else mcux)
        if mode == 0 or inside >= i32(luma + i32(2) * area):
            return i32(-1), i32(0), i32(1)
        if inside < i32(luma + area):
            return i32(1), luma, mcux
        return i32(2), i32(luma + area), mcux

    return {"column": column, "packed": packed, "place": place}


def _colour(jit: Jit, rgb: F) -> dict[str, F]:
    @jit
    def chroma(planes: F, at: F, width: F, last_y: F, last_x: F, y: F, x: F) -> F:
        """The chroma sample of pixel (y, x): libjpeg's fancy upsampling of 4:2:0; edges clamp."""
        i = i32(y >> i32(1))
        j = i32(x >> i32(1))
        if last_x < 2:  # libjpeg repeats the samples of a plane that is 1 or 2 wide
            return i32(planes[at + i64(i * width + j)])
        odd_y = i32(y & i32(1))
        odd_x = i32(x & i32(1))
        far = i32(min(max(i32(i + 2 * odd_y - 1), i32(0)), last_y))
        side = i32(min(max(i32(j + 2 * odd_x - 1), i32(0)), last_x))
        near_row = at + i64(i * width)
        far_row = at + i64(far * width)
        this = i32(i32(planes[near_row + j]) * i32(3) + i32(planes[far_row + j]))
        that = i32(i32(planes[near_row + side]) * i32(3) + i32(planes[far_row + side]))
        return i32(i32(this * i32(3) + that + i32(8) - odd_x) >> i32(4))

    @jit
    def pixel(planes: F, at: F, mode: F, width: F, height: F, y: F, x: F) -> F:
        """(R, G, B) of pixel (y, x) of the image whose planes start at ``at``; of a RAW one,
        whose pixels start there."""
        if mode == 3:
            p = at + i64(3) * i64(i32(y * width + x))
            return i32(planes[p]), i32(planes[p + 1]), i32(planes[p + 2])
        if mode == 2:
            mcux = i32(i32(width + 15) >> i32(4))
            area = i32(mcux * i32(i32(height + 15) >> i32(4)))
            level = i32(planes[at + i64(i32(y * mcux * i32(16) + x))])
            one = at + i64(i32(area * i32(256)))
            last_y = i32(i32(i32(height + 1) >> i32(1)) - i32(1))
            last_x = i32(i32(i32(width + 1) >> i32(1)) - i32(1))
            wide = i32(mcux * i32(8))
            cb = chroma(planes, one, wide, last_y, last_x, y, x)
            cr = chroma(planes, one + i64(i32(area * i32(64))), wide, last_y, last_x, y, x)
            return rgb(level, cb, cr)
        wide = i32(i32(i32(width + 7) >> i32(3)) * i32(8))
        p = at + i64(i32(y * wide + x))
        level = i32(planes[p])
        if mode == 0:
            return level, level, level
        size = i64(i32(wide * i32(i32(i32(height + 7) >> i32(3)) * i32(8))))
        return rgb(level, i32(planes[p + size]), i32(planes[p + 2 * size]))

    return {"chroma": chroma, "pixel": pixel}


def _checks(jit: Jit) -> dict[str, F]:
    @jit
    def job_status(job: F, begin: F, n_bytes: F, rows: F, blocks: F, huffmans: F, quants: F) -> F:
        """OK, or BAD_JOB where a job points outside its batch: ``n_bytes`` of data, ``rows``
        index entries, ``blocks`` for each image, so many sets of tables."""
        mode, size = i32(job[MODE]), i64(job[SIZE])
        width, height = i64(job[WIDTH]), i64(job[HEIGHT])
        bad: Any = mode < 0 or mode > 3 or width < 1 or height < 1
        bad = bad or width > 65535 or height > 65535
        bad = bad or size < 1 or size > MAX_BYTES or begin < 0 or begin + size > n_bytes
        if bad:
            return i32(BAD_JOB)
        if mode == 3:
            return i32(OK) if size == 3 * width * height else i32(BAD_JOB)
        side = i64(16) if mode == 2 else i64(8)
        mcuy = (height + side - 1) // side
        each = i64(6) if mode == 2 else (i64(3) if mode == 1 else i64(1))
        row = i64(job[ROW])
        bad = row < 0 or row + mcuy + 1 > rows
        bad = bad or (width + side - 1) // side * mcuy * each > blocks
        bad = bad or job[HUFFMAN] < 0 or job[HUFFMAN] >= huffmans
        bad = bad or job[QUANT] < 0 or job[QUANT] >= quants
        return i32(BAD_JOB) if bad else i32(OK)

    @jit
    def view_status(job: F, view: F, size: F, resized: F, mean: F, centre: F) -> F:
        """OK, or BAD_VIEW where a view (y, x, height, width, mirror) is not inside its image, or
        not inside the mean (H, W, 3), whose 1 x 1 kind fits every view."""
        y, x, height, width = i64(view[0]), i64(view[1]), i64(view[2]), i64(view[3])
        bad: Any = y < 0 or x < 0 or height < 1 or width < 1
        bad = bad or y + height > i64(job[HEIGHT]) or x + width > i64(job[WIDTH])
        bad = bad or (not resized and (height != size or width != size))
        high, wide = i64(mean.shape[0]), i64(mean.shape[1])
        if high > 1 or wide > 1:
            if centre:
                bad = bad or height > high or width > wide
            else:
                bad = bad or y + height > high or x + width > wide
        return i32(BAD_VIEW) if bad else i32(OK)

    return {"job_status": job_status, "view_status": view_status}
