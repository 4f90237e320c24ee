"""The bytes of an FFCV 1.0.2 ``.beton``: sample sizes -> layout -> bytes, and back, checked.

Little-endian, in this order:

    header | field descriptors | one metadata row per sample | zeros up to a page boundary |
    data pages | allocation table, one row per sample

A sample lies in one page, pages lie at multiples of the page size, and the table is the
last thing in the file: FFCV reads it "from its pointer to the end". FFCV itself is not
imported here, which would take seconds; a test compares the two.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.artifacts import ToolError

FFCV_FORMAT = 2
# The smallest page that FFCV takes: a small set stays small (a file has at least two
# pages), a page still holds about a hundred crops, so that half a crop lost at its end is
# below one percent, and a page-wise shuffle with a bounded buffer mixes the finer.
PAGE_SIZE_BYTES = 1 << 21
MAX_PAGE_SIZE_BYTES = 1 << 31
MODE_JPEG = 0
REMEDY = "build it again with imagenet-prep build"

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype(
    [("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True
)
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
SAMPLE = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)
TABLE = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
# (name, FFCV's number of the field's type) in file order.
FIELDS = (("image", 2), ("label", 1))
_METADATA_START = HEADER.itemsize + len(FIELDS) * FIELD.itemsize


@dataclass(frozen=True, eq=False, slots=True)
class Layout:
    """Where everything lies in a beton; byte offsets from the start of the file.

    ptrs, sizes (n,) uint64 per sample; firsts (data pages + 1,) int64: page j of the data
    holds the samples firsts[j] up to firsts[j + 1]; the table ends at ``bytes``.
    """

    page_size: int
    ptrs: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    firsts: NDArray[np.int64]
    data_start: int
    table_start: int
    bytes: int


def plan(sizes: Sequence[int] | NDArray[np.uint64], page_size: int) -> Layout:
    """Sizes of the samples in file order -> their Layout; each page is filled greedily.

    ``page_size`` is a power of two. Raises ValueError when there is no sample, or one is
    empty or larger than a page.
    """
    size = np.asarray(sizes, np.uint64)
    if len(size) == 0 or size.min() == 0 or size.max() > page_size:
        raise ValueError(f"a page of {page_size} bytes needs samples of 1 to {page_size} bytes")
    data_start = -(-(_METADATA_START + len(size) * SAMPLE.itemsize) // page_size) * page_size
    ends = np.cumsum(size, dtype=np.uint64)
    starts = ends - size
    firsts = [0]
    while firsts[-1] < len(size):
        room = starts[firsts[-1]] + np.uint64(page_size)
        firsts.append(int(np.searchsorted(ends, room, side="right")))
    bounds = np.array(firsts, np.int64)
    page = np.repeat(np.arange(len(firsts) - 1), np.diff(bounds))
    ptrs = np.uint64(data_start) + page.astype(np.uint64) * np.uint64(page_size)
    ptrs += starts - starts[bounds[page]]
    table_start = data_start + (len(firsts) - 1) * page_size
    return Layout(
        page_size=page_size,
        ptrs=ptrs,
        sizes=size,
        firsts=bounds,
        data_start=data_start,
        table_start=table_start,
        bytes=table_start + len(size) * TABLE.itemsize,
    )


def page_size_for(largest_bytes: int) -> int:
    """The default page size, or the next power of two that holds the largest sample."""
    return max(PAGE_SIZE_BYTES, 1 << (largest_bytes - 1).bit_length())


def head_bytes(layout: Layout, labels: Sequence[int], size_px: int) -> bytes:
    """Header, field descriptors and metadata, with zeros up to the first data page."""
    header = np.zeros((), HEADER)
    header["version"], header["num_fields"] = FFCV_FORMAT, len(FIELDS)
    header["page_size"], header["num_samples"] = layout.page_size, len(labels)
    header["alloc_table_ptr"] = layout.table_start
    rows = np.zeros(len(labels), SAMPLE)
    rows["image"]["mode"] = MODE_JPEG
    rows["image"]["width"] = rows["image"]["height"] = size_px
    rows["image"]["data_ptr"] = layout.ptrs
    rows["label"] = labels
    head = header.tobytes() + field_bytes() + rows.tobytes()
    return head.ljust(layout.data_start, b"\0")


def field_bytes() -> bytes:
    """The field descriptors: type number and name, no arguments."""
    fields = np.zeros(len(FIELDS), FIELD)
    for row, (name, type_id) in zip(fields, FIELDS, strict=True):
        row["type_id"] = type_id
        row["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
    return fields.tobytes()


def table_bytes(layout: Layout) -> bytes:
    """The allocation table: row i is sample i."""
    table = np.zeros(len(layout.ptrs), TABLE)
    table["sample_id"] = np.arange(len(layout.ptrs), dtype=np.uint64)
    table["ptr"], table["size"] = layout.ptrs, layout.sizes
    return table.tobytes()


@dataclass(frozen=True, eq=False, slots=True)
class Index:
    """What a beton says of its samples: ``samples`` (n,) SAMPLE and ``table`` (n,) TABLE rows."""

    page_size: int
    samples: NDArray[np.void]
    table: NDArray[np.void]


def read_index(path: Path) -> Index:
    """Reads a beton that this module wrote, and checks its structure and every bound.

    Raises ToolError with the first fault. The contents of the pages are not looked at.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(_METADATA_START)
            if len(start) < _METADATA_START:
                raise broken(path, "is too short to be a beton")
            header = np.frombuffer(start[: HEADER.itemsize], HEADER)[0]
            kind = (int(header["version"]), int(header["num_fields"]))
            if kind != (FFCV_FORMAT, len(FIELDS)) or start[HEADER.itemsize :] != field_bytes():
                raise broken(path, "is not a beton with the fields image and label")
            count, page_size = int(header["num_samples"]), int(header["page_size"])
            table_start = int(header["alloc_table_ptr"])
            if page_size < PAGE_SIZE_BYTES or page_size & (page_size - 1):
                raise broken(path, f"claims pages of {page_size} bytes")
            if count < 1 or table_start + count * TABLE.itemsize != size:
                raise broken(path, f"has {size} bytes, which do not fit its {count} samples")
            end = _METADATA_START + count * SAMPLE.itemsize
            if table_start % page_size or end > table_start:
                raise broken(path, f"claims a table at byte {table_start}")
            samples = np.frombuffer(file.read(count * SAMPLE.itemsize), SAMPLE)
            file.seek(table_start)
            table = np.frombuffer(file.read(count * TABLE.itemsize), TABLE)
    except OSError as error:
        raise ToolError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from None
    _check_bounds(path, samples, table, -(-end // page_size) * page_size, table_start, page_size)
    return Index(page_size, samples, table)


def broken(path: Path, reason: str) -> ToolError:
    """The error that says why a beton is not a good one."""
    return ToolError(f"{path}: {reason}; {REMEDY}")


def _check_bounds(
    path: Path,
    samples: NDArray[np.void],
    table: NDArray[np.void],
    data_start: int,
    data_end: int,
    page_size: int,
) -> None:
    """Every sample inside the data, inside one page, after the one before, as the table says."""
    ptr, size = table["ptr"], table["size"]
    image, side = samples["image"], samples[0]["image"]["width"]
    page = np.uint64(page_size)
    # Each is checked against its own bound first: sums of wild values would wrap round.
    faults = {
        "is not in its row of the table": table["sample_id"] != np.arange(len(table)),
        "lies elsewhere than the table says": image["data_ptr"] != ptr,
        "lies outside the data": (ptr < data_start) | (ptr >= data_end),
        "is empty or larger than a page": (size == 0) | (size > page),
        "crosses its page": ptr % page > page - np.minimum(size, page),
        "is not stored as JPEG": image["mode"] != MODE_JPEG,
        "has another size than the first": (image["width"] != side) | (image["height"] != side),
    }
    for fault, wrong in faults.items():
        if wrong.any():
            raise broken(path, f"sample {int(wrong.argmax())} {fault}")
    overlaps = ptr[1:] < ptr[:-1] + size[:-1]
    if overlaps.any():
        raise broken(path, f"sample {int(overlaps.argmax()) + 1} overlaps the one before")
