"""The layout of a beton: a pure function of sizes, in FFCV's bytes; every fault is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_prep.beton import build as beton
from imagenet_prep.beton import format as beton_format
from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset import beton_tables
from tests.kit.betons import METADATA, SAMPLE, WILD, number, patch

if TYPE_CHECKING:
    from tests.imagenet_prep.conftest import Made

# ---- the plan


@given(st.lists(st.integers(1, 64), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_plan_puts_each_sample_in_one_page_without_overlap(sizes: list[int]) -> None:
    layout = beton_format.plan(sizes, 64)
    starts = layout.ptrs.astype(np.int64)
    ends = starts + np.array(sizes)
    assert (starts // 64 == (ends - 1) // 64).all()
    assert (starts[1:] >= ends[:-1]).all()
    assert starts[0] == layout.data_start
    assert layout.data_start % 64 == layout.table_start % 64 == 0
    assert ends[-1] <= layout.table_start < ends[-1] + 64
    assert layout.bytes == layout.table_start + 24 * len(sizes)
    pages = (starts - layout.data_start) // 64
    for page, (first, last) in enumerate(zip(layout.firsts, layout.firsts[1:], strict=False)):
        assert (pages[first:last] == page).all()


@given(st.lists(st.integers(1, 64), min_size=1, max_size=60))
@settings(max_examples=30, deadline=None)
def test_plan_fills_each_page_as_far_as_it_goes(sizes: list[int]) -> None:
    layout = beton_format.plan(sizes, 64)
    for first in layout.firsts[1:-1]:
        used = int(layout.ptrs[first - 1]) % 64 + sizes[first - 1]
        assert used + sizes[first] > 64


@pytest.mark.parametrize("sizes", [[], [0], [1, 65]])
def test_plan_refuses_sizes_that_fit_no_page(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        beton_format.plan(sizes, 64)


@pytest.mark.parametrize(
    ("sizes", "page_mib"),
    [
        ([1], 2),
        ([25_000] * 999 + [1 << 21], 2),
        ([25_000] * 999 + [(1 << 21) + 1], 4),
        ([1 << 16] * 10, 2),
        ([(1 << 16) + 1] * 10, 4),
        ([3 * 256 * 256] * 10, 8),
        ([3 * 4096 * 4096] * 10, 1024),  # no more: verify reads a page at once
    ],
)
def test_page_holds_the_largest_sample_and_32_of_the_mean(sizes: list[int], page_mib: int) -> None:
    assert beton_format.page_size_for(np.array(sizes, np.uint64)) == page_mib << 20


def test_byte_layouts_are_those_of_ffcv() -> None:
    from ffcv import types
    from ffcv.fields import IntField, RGBImageField

    assert types.CURRENT_VERSION == beton_tables.FFCV_FORMAT
    assert types.HeaderType == beton_tables.HEADER
    assert types.FieldDescType == beton_tables.FIELD
    assert types.ALLOC_TABLE_TYPE == beton_tables.TABLE
    theirs = types.get_metadata_type([RGBImageField(), IntField()])
    assert theirs.itemsize == beton_format.SAMPLE.itemsize
    ours: Any = beton_format.SAMPLE.fields
    for their_name, (name, type_id) in zip(theirs.names, beton_format.FIELDS, strict=True):
        assert theirs.fields[their_name] == ours[name]
        handler = {"image": RGBImageField, "label": IntField}[name]
        assert types.TYPE_ID_HANDLER[type_id] is handler


# ---- faults of a finished file


def head(offset: int, content: bytes) -> Callable[[Path], None]:
    return lambda path: patch(path, offset, content)


def table(row: int, column: int, value: int) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        patch(path, path.stat().st_size - 24 * (110 - row) + 8 * column, number(value))

    return apply


def everywhere(row: int, value: int) -> Callable[[Path], None]:
    """An offset changed in the metadata and the table alike."""

    def apply(path: Path) -> None:
        patch(path, METADATA + SAMPLE * row + 5, number(value))
        table(row, 1, value)(path)

    return apply


PAGE = 1 << 21


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b""), "too short to be a beton"),
        (lambda path: path.write_text("no beton at all\n" * 500), "is not a beton"),
        (head(0, number(1, 2)), "is not a beton"),
        (head(2, number(3, 2)), "is not a beton"),
        (head(4, number(0, 4)), "claims pages of 0 bytes"),
        (head(4, number(PAGE + 1, 4)), "claims pages of"),
        (head(4, number(2 * PAGE, 4)), "."),
        (head(8, number(0)), "do not fit its 0 samples"),
        (head(8, number(WILD)), "do not fit"),
        (head(16, number(WILD)), "do not fit"),
        (head(30, b"x"), "is not a beton"),
        (head(METADATA, b"\1"), "sample 0 is raw and has not the bytes of its pixels"),
        (head(METADATA, b"\2"), "sample 0 is stored neither as JPEG nor raw"),
        (head(METADATA + SAMPLE + 1, number(7, 2)), "sample 1 has another size"),
        (head(METADATA + SAMPLE + 3, number(7, 2)), "sample 1 has another size"),
        (head(METADATA + SAMPLE * 2 + 5, number(PAGE)), "sample 2 lies elsewhere"),
        (table(3, 0, 4), "sample 3 is not in its row"),
        (table(3, 2, 0), "sample 3 is empty"),
        (table(3, 2, WILD), "sample 3 is empty or larger than a page"),
        (table(3, 2, PAGE), "sample 3 crosses its page"),
        (table(3, 2, 100_000), "sample 4 overlaps"),
        (everywhere(3, WILD), "sample 3 lies outside the data"),
        (everywhere(3, 0), "sample 3 lies outside the data"),
        (everywhere(3, 3 * PAGE), "sample 3 lies outside the data"),
        (everywhere(3, 2 * PAGE - 1), "sample 3 crosses its page"),
        (everywhere(3, PAGE), "sample 3 overlaps"),
        (lambda path: path.write_bytes(path.read_bytes()[: 2 * PAGE]), "do not fit"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "do not fit"),
        (Path.unlink, "cannot be read"),
    ],
)
def test_every_fault_of_the_structure_is_found(
    beton_copy: Made, damage: Callable[[Path], None], reason: str
) -> None:
    damage(beton_copy.out)
    with pytest.raises(ToolError, match=reason) as caught:
        beton_format.read_index(beton_copy.out)
    assert str(caught.value).startswith(f"{beton_copy.out}: ")


def test_samples_that_do_not_decode_are_an_error_when_looked_at(beton_copy: Made) -> None:
    patch(beton_copy.out, PAGE, b"\0" * 100)
    with pytest.raises(ToolError, match="sample 0 does not decode"):
        beton.read_samples(beton_copy.out, 3)
