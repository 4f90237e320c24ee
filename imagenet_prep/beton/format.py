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

from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset.beton_tables import (
    FFCV_FORMAT,
    FIELD,
    HEADER,
    IMAGE,
    REBUILD,
    TABLE,
)

# The smallest page that FFCV takes: a small set stays small (a file has at least two
# pages), and a page-wise shuffle with a bounded buffer mixes the finer. It holds about a
# hundred JPEG crops; of larger samples a page holds this many, so that little is lost at
# its end.
PAGE_SIZE_BYTES = 1 << 21
_SAMPLES_A_PAGE = 32
MAX_PAGE_SIZE_BYTES = 1 << 30
MODE_JPEG = 0
MODE_RAW = 1
MODES = {"jpeg": MODE_JPEG, "raw": MODE_RAW}

SAMPLE = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)
# (name, FFCV's number of the field's type) in file order.
FIELDS = (("image", 2), ("label", 1))
METADATA_START = HEADER.itemsize + len(FIELDS) * FIELD.itemsize


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
    data_start = data_start_for(len(size), page_size)
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


def data_start_for(samples: int, page_size: int) -> int:
    """The first byte of the first data page."""
    return -(-(METADATA_START + samples * SAMPLE.itemsize) // page_size) * page_size


def page_size_for(sizes: NDArray[np.uint64]) -> int:
    """The smallest page size that holds the largest sample, and 32 of them on average where
    that is not more than the largest page size."""
    average = min(_SAMPLES_A_PAGE * int(sizes.sum()) // len(sizes), MAX_PAGE_SIZE_BYTES)
    needed = max(int(sizes.max()), average)
    return max(PAGE_SIZE_BYTES, 1 << (needed - 1).bit_length())


def head_bytes(
    layout: Layout, labels: Sequence[int], modes: NDArray[np.uint8], size_px: int
) -> bytes:
    """Header, field descriptors and metadata, with zeros up to the first data page.

    Per sample: its label, and MODE_JPEG or MODE_RAW.
    """
    rows = np.zeros(len(labels), SAMPLE)
    rows["image"]["mode"] = modes
    rows["image"]["width"] = rows["image"]["height"] = size_px
    rows["image"]["data_ptr"] = layout.ptrs
    rows["label"] = labels
    start = start_bytes(len(labels), layout.page_size, layout.table_start)
    return (start + rows.tobytes()).ljust(layout.data_start, b"\0")


def start_bytes(samples: int, page_size: int, table_start: int) -> bytes:
    """The header and the field descriptors, up to the first row of metadata."""
    header = np.zeros((), HEADER)
    header["version"], header["num_fields"] = FFCV_FORMAT, len(FIELDS)
    header["page_size"], header["num_samples"] = page_size, samples
    header["alloc_table_ptr"] = table_start
    return header.tobytes() + field_bytes()


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
    """A beton's tables: ``samples`` (n,) SAMPLE and ``table`` (n,) TABLE rows."""

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
            start = file.read(METADATA_START)
            if len(start) < METADATA_START:
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
            end = METADATA_START + count * SAMPLE.itemsize
            if table_start % page_size or end > table_start:
                raise broken(path, f"claims a table at byte {table_start}")
            samples = np.frombuffer(file.read(count * SAMPLE.itemsize), SAMPLE)
            file.seek(table_start)
            table = np.frombuffer(file.read(count * TABLE.itemsize), TABLE)
    except OSError as error:
        raise ToolError(
            "beton.unreadable", f"{path}: cannot be read ({error.strerror}); {REBUILD}"
        ) from None
    data = (data_start_for(count, page_size), table_start)
    for fault, wrong in sample_faults(samples, table, data, page_size).items():
        if wrong.any():
            raise broken(path, f"sample {int(wrong.argmax())} {fault}")
    return Index(page_size, samples, table)


def broken(path: Path, reason: str) -> ToolError:
    """The error for a beton that is not valid."""
    return ToolError("beton.damaged", f"{path}: {reason}; {REBUILD}")


def sample_faults(
    samples: NDArray[np.void], table: NDArray[np.void], data: tuple[int, int], page_size: int
) -> dict[str, NDArray[np.bool_]]:
    """What can be wrong with a sample -> (n,) bool, for which ones it is.

    ``samples`` and ``table`` are as in Index, ``data`` the first byte of the data and the one
    after them. Every sample must lie in the data, in one page, after the one before, where
    both of its rows say, as a square image of the first one's size.
    """
    ptr, size = table["ptr"], table["size"]
    image, side = samples["image"], samples["image"]["width"][0]
    mode, raw_bytes = image["mode"], np.uint64(3 * int(side) ** 2)
    page = np.uint64(page_size)
    overlaps = np.zeros(len(table), np.bool_)
    # The faults before this one are of wild values, whose sums would wrap round.
    overlaps[1:] = ptr[1:] < ptr[:-1] + size[:-1]
    return {
        "is not in its row of the table": table["sample_id"] != np.arange(len(table)),
        "lies elsewhere than the table has it": image["data_ptr"] != ptr,
        "lies outside the data": (ptr < data[0]) | (ptr >= data[1]),
        "is empty or larger than a page": (size == 0) | (size > page),
        "crosses its page": ptr % page > page - np.minimum(size, page),
        "has another size than the first": (image["width"] != side) | (image["height"] != side),
        "is stored neither as JPEG nor raw": (mode != MODE_JPEG) & (mode != MODE_RAW),
        "is raw and has not the bytes of its pixels": (mode == MODE_RAW) & (size != raw_bytes),
        "overlaps the one before": overlaps,
    }
