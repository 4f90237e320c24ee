"""The row index of JPEGs, which lets every MCU row be decoded by itself, and its file format.

For every MCU row of every image it holds the position of the row's first bit and the three DC
predictors there, and the same behind the last row. Beside ``train.beton`` lies
``train.beton.rows``, little-endian:

    header (HEADER) | images (IMAGE) | positions int32 | predictors int16 (R, 3) |
    Huffman specifications uint8 (H, 4, 272) | quantisation uint16 (Q, 3, 64)

The header has a SHA-256 of the whole file, and ``source``, which names the file of samples
it is the index. numba is loaded when an index is made or its tables are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.core.errors import ToolError
from imagenet_prep.jpeg import core
from imagenet_prep.jpeg.core import HALF, JOB, MAX_BYTES, OK, RAW, TABLES

FORMAT = 1
SUFFIX = ".rows"
MAX_SETS = 4096
"""Different sets of Huffman tables in one index; 12 kB each on the device."""
# row: the image's first entry in positions and predictors. huffman, quant: its sets of tables.
IMAGE = np.dtype(
    [
        ("row", "<u8"), ("size", "<u4"), ("width", "<u2"), ("height", "<u2"),
        ("huffman", "<u2"), ("quant", "<u2"), ("status", "<u1"), ("mode", "<u1"), ("pad", "<u2"),
    ]
)  # fmt: skip
HEADER = np.dtype(
    [
        ("magic", "S8"), ("format", "<u4"), ("huffman", "<u4"), ("quant", "<u4"), ("pad", "<u4"),
        ("images", "<u8"), ("rows", "<u8"), ("source", "V32"), ("digest", "V32"),
    ]
)  # fmt: skip
MAGIC = b"JPEGROWS"
_SPECS, _QUANTS = (4, 272), (3, 64)


def rows_beside(beton: Path) -> Path:
    """``train.beton`` -> ``train.beton.rows``."""
    return beton.with_name(beton.name + SUFFIX)


@dataclass(frozen=True, eq=False, slots=True)
class Index:
    """The row index of n images.

    images (n,) IMAGE; positions int32 (R,), bits from the start of each JPEG; predictors int16
    (R, 3); specs uint8 (H, 4, 272) and quants uint16 (Q, 3, 64), the different sets of tables.
    An image with a status other than 0 (``core.REASONS``) has no rows, nor has a raw one.
    """

    images: NDArray[np.void]
    positions: NDArray[np.int32]
    predictors: NDArray[np.int16]
    specs: NDArray[np.uint8]
    quants: NDArray[np.uint16]

    def jobs(self, indices: NDArray[np.int64]) -> Jobs:
        """The images ``indices`` (n,) -> what the kernels need to know of them."""
        some = self.images[indices]
        counts = mcu_rows(some)
        jobs = np.empty((len(some), JOB), np.int32)
        good = some["status"] == OK
        jobs[:, 0] = np.where(good, some["mode"], -1)
        for column, name in enumerate(("width", "height", "huffman", "quant"), 1):
            jobs[:, column] = some[name]
        ends = np.cumsum(counts)
        jobs[:, 5], jobs[:, 6], jobs[:, 7] = ends - counts, some["size"], some["status"]
        total = int(ends[-1]) if len(ends) else 0
        step = some["row"].astype(np.int64) - (ends - counts)
        at = np.repeat(step, counts) + np.arange(total)
        return Jobs(jobs, self.positions[at], self.predictors[at])

    def blocks(self) -> int:
        """The blocks of the largest image, which decide how much memory a decoder needs."""
        good = self.images[(self.images["status"] == OK) & (self.images["mode"] != RAW)]
        side = np.where(good["mode"] == HALF, 16, 8)
        mcus = -(-good["width"].astype(np.int64) // side) * -(
            -good["height"].astype(np.int64) // side
        )
        return int((mcus * np.array([1, 3, 6])[good["mode"]]).max(initial=1))

    def most_rows(self) -> int:
        """MCU rows of the tallest image."""
        return int(mcu_rows(self.images).max(initial=1)) - 1

    def most_side(self) -> int:
        """Pixels of the longest side of all images."""
        return int(max(self.images["width"].max(initial=1), self.images["height"].max(initial=1)))


class Jobs(NamedTuple):
    """A batch: ``jobs`` int32 (n, JOB), see ``core``; its entries ``positions`` int32 (R,) and
    ``predictors`` int16 (R, 3). A refused image has the mode -1 and its status at the end."""

    jobs: NDArray[np.int32]
    positions: NDArray[np.int32]
    predictors: NDArray[np.int16]


def mcu_rows(images: NDArray[np.void]) -> NDArray[np.int64]:
    """(n,) IMAGE -> entries of each: its MCU rows and one; 0 for what has no rows."""
    side = np.where(images["mode"] == HALF, 16, 8)
    rows = -(-images["height"].astype(np.int64) // side) + 1
    return np.where((images["status"] == OK) & (images["mode"] != RAW), rows, 0)


def index_images(
    data: NDArray[np.uint8],
    begins: NDArray[np.int64],
    sizes: NDArray[np.int64],
    raw: NDArray[np.int64] | None = None,
) -> Index:
    """Images at ``begins`` (n,) of ``data``, of ``sizes`` (n,) bytes -> their Index.

    ``raw`` (n, 2) int64: height and width of those that are stored as RGB bytes, zeros for JPEGs
    (None: all are JPEGs). JPEGs that only the CPU's decoder can read get a status, no error.
    """
    from imagenet_prep.jpeg import cpu

    images = np.zeros(len(begins), IMAGE)
    images["size"] = sizes
    coded = np.arange(len(begins))
    if raw is not None:
        images["height"], images["width"] = raw[:, 0], raw[:, 1]
        images["mode"] = np.where(raw[:, 0] > 0, RAW, 0)
        coded = np.flatnonzero(raw[:, 0] == 0)
    scan = cpu.decoder().scan(data, begins[coded], sizes[coded])
    good = scan.statuses == OK
    images["status"][coded] = scan.statuses
    for column, name in enumerate(("mode", "width", "height")):
        images[name][coded] = np.where(good, scan.found[:, column], 0)
    counts = mcu_rows(images)
    images["row"] = np.cumsum(counts) - counts
    at = np.repeat(scan.firsts, counts[coded]) - np.repeat(images["row"], counts).astype(np.int64)
    at += np.arange(len(at))
    specs, images["huffman"][coded[good]] = _sets(scan.specs[good])
    quants, images["quant"][coded[good]] = _sets(scan.quants[good])
    positions, predictors = scan.positions[at], scan.predictors[at]
    return Index(images, positions.astype(np.int32), predictors.astype(np.int16), specs, quants)


def _sets(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """(n, ...) -> the different ones in the order of their first use, and the number of each."""
    known: dict[bytes, int] = {}
    numbers = [known.setdefault(value.tobytes(), len(known)) for value in values]
    firsts = np.unique(np.array(numbers, np.int64), return_index=True)[1]
    return values[firsts], np.array(numbers, np.int64)


def join(parts: Sequence[Index]) -> Index:
    """Indexes one after the other -> one. The result does not depend on how the images were
    divided. Images beyond MAX_SETS different sets of tables get the status TABLES."""
    images = np.concatenate([part.images for part in parts])
    counts = mcu_rows(images)
    lengths = [len(part.images) for part in parts]
    sets: dict[str, NDArray[Any]] = {}
    tables: dict[str, list[NDArray[Any]]] = {}
    tables = {"huffman": [part.specs for part in parts], "quant": [part.quants for part in parts]}
    for name, several in tables.items():
        unique, numbers = _sets(np.concatenate(several))
        starts = np.cumsum([0, *map(len, several)])[:-1]
        local = images[name] + np.repeat(starts, lengths)
        found = np.zeros(len(images), np.int64)
        found[counts > 0] = numbers[local[counts > 0]]
        images["status"][found >= MAX_SETS] = TABLES
        images[name] = np.where(found < MAX_SETS, found, 0)
        sets[name] = unique[:MAX_SETS]
    kept = np.repeat(images["status"] == OK, counts)
    counts = mcu_rows(images)
    images["row"] = np.cumsum(counts) - counts
    positions = np.concatenate([part.positions for part in parts])[kept]
    predictors = np.concatenate([part.predictors for part in parts])[kept]
    return Index(images, positions, predictors, sets["huffman"], sets["quant"])


def save_index(path: Path, index: Index, source: bytes) -> None:
    """Writes an index of the file of samples with the digest ``source`` (32 bytes); ``path`` is
    that of ``core.files.publish``, which gives it its name when it is whole."""
    head = np.zeros((), HEADER)
    head["magic"], head["format"], head["source"] = MAGIC, FORMAT, source
    head["images"], head["rows"] = len(index.images), len(index.positions)
    head["huffman"], head["quant"] = len(index.specs), len(index.quants)
    parts = index.images, index.positions, index.predictors, index.specs, index.quants
    body = b"".join(part.tobytes() for part in parts)
    head["digest"] = digest_of(head, body)
    path.write_bytes(head.tobytes() + body)


def digest_of(head: NDArray[np.void] | np.void, body: bytes | memoryview) -> bytes:
    """The SHA-256 that a header (HEADER) must have: of itself without it, and of what follows."""
    bare = head.copy()
    bare["digest"] = bytes(32)
    digest = hashlib.sha256(bare.tobytes())
    digest.update(body)
    return digest.digest()


def load_index(path: Path, source: bytes | None = None) -> Index:
    """Reads an index and checks every number in it; its arrays are read-only.

    Raises ToolError: rows.unreadable, rows.damaged, or rows.other, which is the index of another
    file of samples than the one with the digest ``source``.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ToolError(
            "rows.unreadable", f"{path}: cannot be read ({error.strerror}); {_REMEDY}"
        ) from None
    head = np.frombuffer(data[: HEADER.itemsize].ljust(HEADER.itemsize, b"\0"), HEADER)[0]
    if head["magic"] != MAGIC or head["format"] != FORMAT:
        raise _damaged(path, "is not a row index of this version")
    count, rows, huffman, quant = (int(head[x]) for x in ("images", "rows", "huffman", "quant"))
    sizes = (count * IMAGE.itemsize, rows * 4, rows * 6, huffman * 4 * 272, quant * 3 * 64 * 2)
    if len(data) != HEADER.itemsize + sum(sizes):
        raise _damaged(path, f"has {len(data)} bytes, which do not fit its {count} images")
    if digest_of(head, memoryview(data)[HEADER.itemsize :]) != head["digest"].tobytes():
        raise _damaged(path, "does not hold what was written")
    if source is not None and head["source"].tobytes() != source:
        raise ToolError("rows.other", f"{path}: belongs to another build of the file; {_REMEDY}")
    ends = HEADER.itemsize + np.cumsum(sizes)
    views = [memoryview(data)[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    index = Index(
        np.frombuffer(views[0], IMAGE),
        np.frombuffer(views[1], "<i4"),
        np.frombuffer(views[2], "<i2").reshape(-1, 3),
        np.frombuffer(views[3], np.uint8).reshape(-1, *core.SPECS),
        np.frombuffer(views[4], "<u2").reshape(-1, *core.QUANTS),
    )
    problem = fault(index)
    if problem:
        raise _damaged(path, problem)
    return index


_REMEDY = "make it again with imagenet-prep index"


def _damaged(path: Path, reason: str) -> ToolError:
    return ToolError("rows.damaged", f"{path}: {reason}; {_REMEDY}")


def fault(index: Index) -> str:
    """What is wrong with an index, as what "it" has; "" for one that the kernels can be given."""
    from imagenet_prep.jpeg import cpu

    images = index.images
    good = images["status"] == OK
    counts = mcu_rows(images)
    coded = counts > 0
    size = images["size"].astype(np.int64)
    area = images["width"].astype(np.int64) * images["height"]
    wrong = (images["status"] >= len(core.REASONS)) | (size > MAX_BYTES) | (images["mode"] > RAW)
    wrong |= good & (area == 0) | good & ~coded & (size != 3 * area)
    wrong |= images["row"] != np.cumsum(counts) - counts
    wrong |= coded & (images["huffman"] >= len(index.specs))
    wrong |= coded & (images["quant"] >= len(index.quants))
    if wrong.any():
        return f"has a wrong entry for image {int(wrong.argmax())}"
    shape = (int(counts.sum()), 3)
    if len(index.positions) != shape[0] or index.predictors.shape != shape:
        return "has another number of rows than its images need"
    if len(index.specs) > MAX_SETS:
        return f"has more than {MAX_SETS} sets of Huffman tables"
    bad = cpu.wrong_row(counts, size, index.positions, index.predictors)
    if bad >= 0:
        return f"has a wrong row for image {bad}"
    return "" if lookup_tables(index) is not None else "has Huffman tables that are not valid"


def lookup_tables(index: Index) -> NDArray[np.uint16] | None:
    """The decoder's Huffman tables, uint16 (H · 4 · STRIDE,); None if one is not valid."""
    from imagenet_prep.jpeg import cpu

    return cpu.lookup_tables(index.specs)


def turned_quants(index: Index) -> NDArray[np.int64]:
    """The quantisation for the device's IDCT: int64 (Q · 48,), four uint16 each, columns first."""
    turned = index.quants.reshape(-1, 3, 8, 8).swapaxes(2, 3)
    return np.ascontiguousarray(turned).view(np.int64).ravel()
