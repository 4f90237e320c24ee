"""JPEG bytes -> row entries and pixels on the CPU, compiled by numba, with memory of a thread."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.jpeg.core import (
    MAX_DC,
    OK,
    QUANTS,
    SPECS,
    STRIDE,
    TOO_LARGE,
    i32,
)
from imagenet_prep.jpeg.lanes import as_writable
from imagenet_prep.jpeg.parse import (
    P_HEIGHT,
    P_MCUY,
    P_WIDTH,
    PARSED,
    build_table,
    compiled,
    entry,
    parse,
)
from imagenet_prep.jpeg.scan import colour_rows, decode_image, memory_bytes, new_memory

F = Any
T = TypeVar("T", bound=np.generic)


@entry
def parse_all(
    data: F, begins: F, sizes: F, found: F, specs: F, quants: F, statuses: F
) -> None:  # fmt: skip
    """``parse`` of the JPEGs at ``begins`` (n,) of ``data``, which have ``sizes`` (n,) bytes."""
    data = as_writable(data)
    for i in range(len(begins)):
        end = begins[i] + sizes[i]
        statuses[i] = parse(data, begins[i], end, found[i], specs[i], quants[i])


@entry
def scan_all(
    data: F, begins: F, found: F, specs: F, quants: F, statuses: F, firsts: F, memory: F,
    positions: F, predictors: F,
) -> None:  # fmt: skip
    """Decodes parsed JPEGs without making pixels, into the entries from ``firsts`` on."""
    data = as_writable(data)
    for i in range(len(begins)):
        if statuses[i] == OK:
            statuses[i] = decode_image(
                data, begins[i], found[i], specs[i], quants[i], memory, positions[firsts[i] :],
                predictors[firsts[i] :], 0, 0,
            )  # fmt: skip


@compiled
def draw(data: F, memory: F, shape: F, window: F, out: F) -> F:
    """A JPEG (N,) -> its status and, in ``out``, its pixels in ``window`` (y, x, height, width) at
    their places; ``shape`` (H, W, 3 or 4) is that of ``out`` (H * W * depth,). TOO_LARGE where the
    image has another size; pixels outside of the window may be written too."""
    found = np.zeros(PARSED, np.int64)
    specs, quants = np.zeros(SPECS, np.uint8), np.zeros(QUANTS, np.uint16)
    status = parse(data, 0, len(data), found, specs, quants)
    if status != OK:
        return status
    if found[P_HEIGHT] != shape[0] or found[P_WIDTH] != shape[1]:
        return TOO_LARGE
    y, x, height, width = window
    rows = found[P_MCUY] + 1
    positions, predictors = np.zeros(rows, np.int64), np.zeros((rows, 3), np.int64)
    status = decode_image(
        data, 0, found, specs, quants, memory, positions, predictors, y, y + height
    )
    if status == OK:
        colour_rows(found, memory, out, shape[2], y, y + height, x, x + width)
    return status


@entry
def draw_all(data: F, memory: F, out: F) -> F:
    """All pixels, into ``out`` (H, W, 3 or 4)."""
    height, width, _depth = out.shape
    pixels = out.reshape(-1)
    return draw(as_writable(data), memory, out.shape, (0, 0, height, width), pixels)


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
        self._memory: NDArray[np.uint8] = new_memory(1, 256, 256)[0]

    def _room(self, width: int, height: int) -> NDArray[np.uint8]:
        if memory_bytes(width, height) > len(self._memory):
            self._memory = new_memory(1, width, height)[0]
        return self._memory

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
        memory = self._room(int(found[good, P_WIDTH].max(initial=1)), 0)
        scan_all(
            data, begins, found, specs, quants, statuses, firsts, memory, positions, predictors
        )
        return Scan(statuses, found, specs, quants, firsts, positions, predictors)

    def decode(self, data: NDArray[np.uint8], out: NDArray[np.uint8]) -> int:
        """A JPEG -> its status; the pixels go into ``out`` (H, W, 3 or 4) uint8, whose fourth
        channel gets any value. TOO_LARGE where the image has another size than ``out``."""
        memory = self._room(out.shape[1], out.shape[0])
        return int(draw_all(_read_only(data), memory, out))


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
