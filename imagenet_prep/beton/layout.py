"""Crops in file order -> which file of a set holds which of them, and where: sizes, then numbers.

All that is read here are the sizes of the crops; what follows from them is the same on every
machine. The shards of a set are neighbouring parts of the one file order, of almost equal
numbers of samples, with pages of one size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.beton.format import (
    MAX_PAGE_SIZE_BYTES,
    MODE_JPEG,
    MODE_RAW,
    Layout,
    data_start_for,
    page_size_for,
    plan,
)
from imagenet_prep.beton.options import Crop, Packing, is_jpeg
from imagenet_prep.beton.pages import Part, bad_crop
from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.dataset.beton_tables import TABLE
from imagenet_prep.dataset.shards import MOST_SHARDS


def plan_parts(
    cropped: Path, ordered: Sequence[Crop], packing: Packing, *, classes: int, size_px: int
) -> list[Part]:
    """All crops of a split in file order -> the files that hold them, in their order.

    Raises ToolError for a crop that is missing or cannot be in a beton, and UsageError for
    pages or shards that are too small, or more shards than crops.
    """
    if not ordered:
        raise ToolError(
            "build.no_crops", f"{cropped}: has no crops to build from; run imagenet-prep crop first"
        )
    share = packing.jpeg_share
    modes = np.array([MODE_RAW - is_jpeg(path, share) for path, _ in ordered], np.uint8)
    sizes = _sizes(cropped, ordered, modes, classes, size_px)
    page_size = packing.page_size or page_size_for(sizes)
    if sizes.max() > page_size:
        raise UsageError(
            "build.page_size",
            f"--page-size: a page of {page_size} bytes does not hold the largest sample, which "
            f"has {sizes.max()}; choose a larger one",
        )
    if packing.shard_size is not None:
        layouts = _layouts_up_to(packing.shard_size, sizes, page_size)
    else:
        layouts = _layouts(packing.shards or 1, sizes, page_size)
    parts, first = [], 0
    for layout in layouts:
        where = slice(first, first + len(layout.sizes))
        parts.append(Part(ordered[where], modes[where], layout))
        first = where.stop
    return parts


def _sizes(
    cropped: Path, ordered: Sequence[Crop], modes: NDArray[np.uint8], classes: int, size_px: int
) -> NDArray[np.uint64]:
    """Bytes of each crop in a beton; looks at the files."""
    found = []
    folder = f"{cropped}/"
    for (crop, label), mode in zip(ordered, modes.tolist(), strict=True):
        if not 0 <= label < classes:
            raise ToolError(
                "build.label",
                f"{cropped / crop}: has label {label} where there are {classes} classes; "
                "run imagenet-prep crop again",
            )
        size = 3 * size_px**2
        if mode == MODE_JPEG:
            try:
                size = os.stat(folder + crop).st_size  # noqa: PTH116 - a million of them
            except OSError as error:
                raise bad_crop(cropped / crop, f"cannot be read ({error.strerror})") from None
            if not 0 < size < MAX_PAGE_SIZE_BYTES:
                raise bad_crop(cropped / crop, f"has {size} bytes")
        found.append(size)
    return np.array(found, np.uint64)


def _layouts(shards: int, sizes: NDArray[np.uint64], page_size: int) -> list[Layout]:
    """Neighbouring samples to ``shards`` files, whose numbers of samples differ by at most one."""
    count = len(sizes)
    if shards > min(count, MOST_SHARDS):
        raise UsageError(
            "build.shards",
            f"--shards: {count} samples cannot fill {shards} files; choose at most "
            f"{min(count, MOST_SHARDS)}",
        )
    ends = [count * number // shards for number in range(shards + 1)]
    return [plan(sizes[ends[i] : ends[i + 1]], page_size) for i in range(shards)]


def _layouts_up_to(limit: int, sizes: NDArray[np.uint64], page_size: int) -> list[Layout]:
    """The same in so many files that none has more than ``limit`` bytes: about the fewest."""
    least = data_start_for(1, page_size) + page_size + TABLE.itemsize
    if limit < least:
        raise UsageError(
            "build.shard_size",
            f"--shard-size: {limit} bytes do not hold one page of {page_size} bytes with a header "
            f"and a table, which take {least}; choose a larger size",
        )
    total = int(sizes.sum())
    shards = min(-(-total // limit), len(sizes))
    while True:
        if shards > MOST_SHARDS:
            raise UsageError(
                "build.shard_size",
                f"--shard-size: files of {limit} bytes would be more than {MOST_SHARDS}; choose a "
                "larger size",
            )
        layouts = _layouts(shards, sizes, page_size)
        largest = max(layout.bytes for layout in layouts)
        if largest <= limit:
            return layouts
        # In steps that shrink with what is missing; one sample a file always fits.
        shards = min(max(shards + 1, shards * largest // limit), len(sizes))
