"""JPEG bytes -> row entries and pixels on the CPU, compiled by numba, with memory of a thread."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.jpeg import core
from imagenet_prep.jpeg.core import (
    GREY,
    HALF,
    MAX_DC,
    OK,
    QUANTS,
    SPECS,
    STRIDE,
    i32,
    u64,
)
from imagenet_prep.jpeg.parse import (
    P_HEIGHT,
    P_MCUX,
    P_MCUY,
    P_MODE,
    P_WIDTH,
    PARSED,
    WIDE,
    build_table,
    compiled,
    entry,
    inlined,
    parse,
)
from imagenet_prep.jpeg.scan import decode_image

F = Any
T = TypeVar("T", bound=np.generic)
_core = core.make(inlined)
pixel, rgb = _core.pixel, _core.rgb


@entry
def parse_all(
    data: F, begins: F, sizes: F, found: F, specs: F, quants: F, statuses: F
) -> None:  # fmt: skip
    """``parse`` of the JPEGs at ``begins`` (n,) of ``data``, which have ``sizes`` (n,) bytes."""
    for i in range(len(begins)):
        end = begins[i] + sizes[i]
        statuses[i] = parse(data, begins[i], end, found[i], specs[i], quants[i])


@entry
def scan_all(
    data: F, begins: F, found: F, specs: F, quants: F, statuses: F, firsts: F, state: F,
    positions: F, predictors: F,
) -> None:  # fmt: skip
    """Decodes parsed JPEGs without making pixels, into the entries from ``firsts`` on."""
    planes = np.zeros(0, np.int32)
    for i in range(len(begins)):
        if statuses[i] == OK:
            statuses[i] = decode_image(
                data, begins[i], found[i], specs[i], quants[i], state, positions[firsts[i] :],
                predictors[firsts[i] :], planes, False,
            )  # fmt: skip


@entry
def draw_one(
    data: F, found: F, specs: F, quants: F, state: F, planes: F, more_sums: F, lines: F, out: F,
) -> F:  # fmt: skip
    """A parsed JPEG -> its status and its pixels in ``out`` (H, W, 3 or 4)."""
    rows = found[P_MCUY] + 1
    positions, predictors = np.zeros(rows, np.int64), np.zeros((rows, 3), np.int64)
    status = decode_image(
        data, 0, found, specs, quants, state, positions, predictors, planes.view(np.int32), True
    )
    if status == OK:
        _colours(planes, found, more_sums, lines, out)
    return status


@compiled
def _colours(planes: F, found: F, sums: F, lines: F, out: F) -> None:
    """Planes -> pixels (H, W, 3 or 4): libjpeg's fancy upsampling, then RGB."""
    mode, width, height = found[P_MODE], found[P_WIDTH], found[P_HEIGHT]
    mcux, mcuy = found[P_MCUX], found[P_MCUY]
    half = (width + 1) // 2
    if mode == GREY or (mode == HALF and half <= 2):
        for y in range(height):
            for x in range(width):
                r, g, b = pixel(planes, 0, i32(mode), i32(width), i32(height), i32(y), i32(x))
                out[y, x, 0], out[y, x, 1], out[y, x, 2] = r, g, b
        return
    wide = 16 * mcux if mode == HALF else 8 * mcux
    first = wide * mcuy * (16 if mode == HALF else 8)
    last = (height + 1) // 2 - 1
    size = 64 * mcux * mcuy
    for y in range(height):
        level = planes[y * wide : y * wide + width]
        target = out[y].reshape(-1)
        if mode == HALF:
            near = first + (y >> 1) * 8 * mcux
            far = first + min(max((y >> 1) + 2 * (y & 1) - 1, 0), last) * 8 * mcux
            for c in range(2):
                _upsample(planes[near:], planes[far:], half, sums, lines[c])
                near += size
                far += size
            _rgb_row(level, lines[0], lines[1], width, target)
        else:
            at = size + y * wide
            _rgb_row(level, planes[at:], planes[at + size :], width, target)


@compiled
def _upsample(near: F, far: F, half: F, sums: F, out: F) -> None:
    """Two rows of chroma -> the row of full width that lies next to ``near``."""
    for j in range(half):
        sums[u64(j + 1)] = np.int16(np.int16(near[u64(j)]) * 3 + far[u64(j)])
    sums[0], sums[half + 1] = sums[1], sums[half]
    for j in range(half):
        s = i32(sums[u64(j + 1)])
        out[u64(2 * j)] = np.uint8((s * 3 + i32(sums[u64(j)]) + 8) >> 4)
        out[u64(2 * j + 1)] = np.uint8((s * 3 + i32(sums[u64(j + 2)]) + 7) >> 4)


@compiled
def _rgb_row(level: F, blue: F, red: F, width: F, out: F) -> None:
    if len(out) == 3 * width:
        for x in range(width):
            r, g, b = rgb(i32(level[u64(x)]), i32(blue[u64(x)]), i32(red[u64(x)]))
            out[u64(3 * x)] = np.uint8(r)
            out[u64(3 * x + 1)] = np.uint8(g)
            out[u64(3 * x + 2)] = np.uint8(b)
    else:
        for x in range(width):
            r, g, b = rgb(i32(level[u64(x)]), i32(blue[u64(x)]), i32(red[u64(x)]))
            out[u64(4 * x)] = np.uint8(r)
            out[u64(4 * x + 1)] = np.uint8(g)
            out[u64(4 * x + 2)] = np.uint8(b)


class Scan(NamedTuple):
    """What ``Decoder.scan`` found of n JPEGs: ``statuses`` (n,), ``found`` (n, PARSED), ``specs``
    (n, 4, 272), ``quants`` (n, 3, 64); ``positions`` (R,) and ``predictors`` (R, 3) of the rows,
    from ``firsts`` (n,) on those of each image, one more than it has MCU rows."""

    statuses: NDArray[np.int64]
    found: NDArray[np.int64]
    specs: NDArray[np.uint8]
    quants: NDArray[np.uint16]
    firsts: NDArray[np.int64]
    positions: NDArray[np.int64]
    predictors: NDArray[np.int64]


def _read_only(data: NDArray[T]) -> NDArray[T]:
    """One type of array, so that numba compiles once."""
    view = data.view()
    view.flags.writeable = False
    return view


class Decoder:
    """Working memory of one thread, and what it decodes with it. Not to be shared by threads."""

    def __init__(self) -> None:
        self._known = np.full(4 * 272, 255, np.uint8)
        self._lut = np.zeros(4 * STRIDE, np.uint16)
        self._pairs = np.zeros(2 << WIDE, np.int64)
        self._more = (
            np.zeros(QUANTS, np.int32),
            np.zeros(QUANTS, np.uint32),
            np.zeros((2, 64), np.int64),
        )
        self._grow(32)
        self._planes = np.zeros(0, np.uint8)

    def _grow(self, mcux: int) -> None:
        self._mcux = mcux
        self._coefs = np.zeros(6 * 64 * mcux, np.int16)
        self._work = np.zeros(2 * 64 * mcux, np.int32)
        self._sums = np.zeros(2 * mcux, np.uint32)
        self._chroma = np.zeros(8 * mcux + 2, np.int16)
        self._lines = np.zeros((2, 16 * mcux), np.uint8)

    def _state(self, mcux: int) -> tuple[Any, ...]:
        if mcux > self._mcux:
            self._grow(mcux)
        tables = (self._known, self._lut, self._pairs, self._more)
        return (*tables, self._coefs, self._work, self._sums)

    def scan(
        self, data: NDArray[np.uint8], begins: NDArray[np.int64], sizes: NDArray[np.int64]
    ) -> Scan:
        """JPEGs at ``begins`` (n,) of ``data``, of ``sizes`` (n,) bytes -> their Scan."""
        data = _read_only(data)
        count = len(begins)
        found = np.zeros((count, PARSED), np.int64)
        specs, quants = np.zeros((count, *SPECS), np.uint8), np.zeros((count, *QUANTS), np.uint16)
        statuses = np.zeros(count, np.int64)
        parse_all(data, begins, sizes, found, specs, quants, statuses)
        good = statuses == OK
        rows = np.where(good, found[:, P_MCUY] + 1, 0)
        firsts = np.cumsum(rows) - rows
        positions = np.zeros(int(rows.sum()), np.int64)
        predictors = np.zeros((len(positions), 3), np.int64)
        state = self._state(int(found[good, P_MCUX].max(initial=1)))
        scan_all(data, begins, found, specs, quants, statuses, firsts, state, positions, predictors)
        return Scan(statuses, found, specs, quants, firsts, positions, predictors)

    def decode(self, data: NDArray[np.uint8], out: NDArray[np.uint8]) -> int:
        """A JPEG -> its status; the pixels go into ``out`` (H, W, 3 or 4) uint8, whose fourth
        channel stays as it is. TOO_LARGE where the image has another size than ``out``."""
        data = _read_only(data)
        found = np.zeros((1, PARSED), np.int64)
        specs, quants = np.zeros((1, *SPECS), np.uint8), np.zeros((1, *QUANTS), np.uint16)
        statuses = np.zeros(1, np.int64)
        ends = np.array([0, len(data)], np.int64)
        parse_all(data, ends[:1], ends[1:], found, specs, quants, statuses)
        if statuses[0] != OK:
            return int(statuses[0])
        if (found[0, P_HEIGHT], found[0, P_WIDTH]) != out.shape[:2]:
            return core.TOO_LARGE
        mcux, mcuy = int(found[0, P_MCUX]), int(found[0, P_MCUY])
        blocks = mcux * mcuy * (1, 3, 6)[int(found[0, P_MODE])]
        if len(self._planes) < 64 * blocks:
            self._planes = np.zeros(64 * blocks, np.uint8)
        state = self._state(mcux)
        return int(
            draw_one(
                data,
                found[0],
                specs[0],
                quants[0],
                state,
                self._planes,
                self._chroma,
                self._lines,
                out,
            )
        )


_kept = threading.local()


def decoder() -> Decoder:
    """This thread's Decoder."""
    found: Decoder | None = getattr(_kept, "decoder", None)
    if found is None:
        found = _kept.decoder = Decoder()
    return found


def lookup_tables(specs: NDArray[np.uint8]) -> NDArray[np.uint16] | None:
    """Specifications (H, 4, 272) -> tables (H · 4 · STRIDE,); None if one is not valid."""
    luts = np.zeros(len(specs) * 4 * STRIDE, np.uint16)
    return luts if build_all(specs, luts) else None


@entry
def build_all(specs: F, luts: F) -> F:
    """All tables of all sets; False if one is not valid."""
    for s in range(len(specs)):
        for t in range(4):
            at = (4 * s + t) * STRIDE
            if not build_table(specs[s, t], t % 2 == 0, luts[at : at + STRIDE]):
                return False
    return True


def wrong_row(
    counts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    positions: NDArray[np.int32],
    predictors: NDArray[np.int16],
) -> int:
    """The first image that has a wrong row, -1 for none: its ``counts[i]`` positions must ascend
    from 16 to 8 · ``sizes[i]``, its predictors be at most MAX_DC. positions (R,) and predictors
    (R, 3) with R = counts.sum()."""
    return int(check_rows(counts, sizes, _read_only(positions), _read_only(predictors)))


@entry
def check_rows(counts: F, sizes: F, positions: F, predictors: F) -> F:
    """See ``wrong_row``."""
    at = 0
    for i in range(len(counts)):
        before, bad = i32(15), False
        for r in range(at, at + counts[i]):
            bad |= positions[r] <= before
            before = positions[r]
            for c in range(3):
                bad |= predictors[r, c] > MAX_DC or predictors[r, c] < -MAX_DC
        if bad or (counts[i] > 0 and before > 8 * sizes[i]):
            return i
        at += counts[i]
    return -1
