"""The layout of a beton: a pure function of sizes, in FFCV's bytes; every fault is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_prep import beton, beton_format
from imagenet_prep.artifacts import ToolError

if TYPE_CHECKING:
    from tests.prep.conftest import Made

# ---- the plan


@given(st.lists(st.integers(1, 64), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_plan_puts_every_sample_in_one_page_in_order_without_overlap(sizes: list[int]) -> None:
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


def test_page_size_grows_with_the_largest_sample() -> None:
    assert beton_format.page_size_for(1) == 1 << 21
    assert beton_format.page_size_for(1 << 21) == 1 << 21
    assert beton_format.page_size_for((1 << 21) + 1) == 1 << 22


def test_byte_layouts_are_those_of_ffcv() -> None:
    from ffcv import types
    from ffcv.fields import IntField, RGBImageField

    assert types.CURRENT_VERSION == beton_format.FFCV_FORMAT
    assert types.HeaderType == beton_format.HEADER
    assert types.FieldDescType == beton_format.FIELD
    assert types.ALLOC_TABLE_TYPE == beton_format.TABLE
    theirs = types.get_metadata_type([RGBImageField(), IntField()])
    assert theirs.itemsize == beton_format.SAMPLE.itemsize
    ours: Any = beton_format.SAMPLE.fields
    for their_name, (name, type_id) in zip(theirs.names, beton_format.FIELDS, strict=True):
        assert theirs.fields[their_name] == ours[name]
        handler = {"image": RGBImageField, "label": IntField}[name]
        assert types.TYPE_ID_HANDLER[type_id] is handler


# ---- faults of a finished file


def patch(path: Path, offset: int, content: bytes) -> None:
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(content)


def number(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little")


METADATA = beton_format.HEADER.itemsize + 2 * beton_format.FIELD.itemsize
SAMPLE = beton_format.SAMPLE.itemsize
WILD = 2**64 - 8


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
        (head(METADATA, b"\1"), "sample 0 is not stored as JPEG"),
        (head(METADATA + SAMPLE + 1, number(7, 2)), "sample 1 has another size"),
        (head(METADATA + SAMPLE + 3, number(7, 2)), "sample 1 has another size"),
        (head(METADATA + SAMPLE * 2 + 5, number(PAGE)), "sample 2 lies elsewhere"),
        (head(METADATA + SAMPLE * 2 + 16, number(3)), "sample 2 has a label without"),
        (head(METADATA + SAMPLE * 2 + 16, number(WILD)), "sample 2 has a label without"),
        (head(METADATA + SAMPLE * 2 + 16, number(2)), r"page 0 \(from byte 0\)|other"),
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
        (head(PAGE + 1234, b"\x55\xaa"), "page 1 .*is not what was written"),
        (head(3 * PAGE - 1, b"\x01"), "page 2 .*is not what was written"),
        (head(METADATA + SAMPLE * 110 + 9, b"\x01"), "page 0 .*is not what was written"),
        (lambda path: path.write_bytes(path.read_bytes()[: 2 * PAGE]), "do not fit"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "do not fit"),
        (Path.unlink, "cannot be read"),
    ],
)
def test_every_fault_of_a_beton_is_found(
    beton_copy: Made, damage: Callable[[Path], None], reason: str
) -> None:
    damage(beton_copy.out)
    with pytest.raises(ToolError, match=reason) as caught:
        beton.verify_beton(beton_copy.out, beton_copy.manifest)
    assert str(caught.value).startswith(f"{beton_copy.out}: ")


def test_swapped_pages_are_found(beton_copy: Made) -> None:
    content = beton_copy.out.read_bytes()
    patch(beton_copy.out, PAGE, content[2 * PAGE : 3 * PAGE] + content[PAGE : 2 * PAGE])
    with pytest.raises(ToolError, match="page 1 "):
        beton.verify_beton(beton_copy.out, beton_copy.manifest)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"samples": 109}, "has 110 samples where its manifest says 109"),
        ({"size_px": 64}, "has 96 pixels a side"),
        ({"page_size_bytes": 1 << 22}, "bytes a page"),
        ({"bytes": 5}, "bytes where its manifest says 5"),
        ({"pages": ()}, "has 4 pages where its manifest says 0"),
        ({"classes": ("ant", "bee")}, "label without a class"),
        ({"digest": "00"}, "has another digest"),
        ({"pages": ("00", "00", "00", "00")}, "page 0 "),
    ],
)
def test_manifest_of_another_beton_is_found(
    made_beton: Made, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ToolError, match=reason):
        beton.verify_beton(made_beton.out, dataclasses.replace(made_beton.manifest, **changes))


def test_whole_beton_passes(made_beton: Made) -> None:
    seen: list[int] = []
    beton.verify_beton(
        made_beton.out, made_beton.manifest, progress=lambda what, done, total: seen.append(done)
    )
    assert seen[-1] == 4


def test_samples_that_do_not_decode_are_an_error_when_looked_at(beton_copy: Made) -> None:
    patch(beton_copy.out, PAGE, b"\0" * 100)
    with pytest.raises(ToolError, match="sample 0 does not decode"):
        beton.read_samples(beton_copy.out, 3)
