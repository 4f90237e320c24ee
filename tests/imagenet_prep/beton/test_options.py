"""Order, subset and form of the samples: decided by their paths alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_prep.beton.options import Packing, chosen, file_order, is_jpeg
from tests.kit.errors import fails

CROPS = [(f"train/{label}/{index}.JPEG", label) for label in range(4) for index in range(50)]


def test_file_order_is_a_shuffle_of_any_given_order() -> None:
    ordered = file_order(CROPS, 0)
    assert ordered == file_order(CROPS[::-1], 0)
    assert sorted(ordered) == sorted(CROPS)
    labels = np.array([label for _, label in ordered])
    # A block of 50 holds about 12 of each class; sorted by class it would hold one class.
    assert all(len(set(labels[start : start + 50])) == 4 for start in range(0, 200, 50))
    assert ordered[0][0] == "train/3/42.JPEG"


def test_each_seed_gives_its_own_order_never_that_of_the_paths() -> None:
    assert file_order(CROPS, 1) != file_order(CROPS, 0)
    assert file_order(CROPS[::-1], None) == sorted(CROPS)


def test_one_crop_less_moves_no_other() -> None:
    before = file_order(CROPS, 0)
    assert file_order(CROPS[1:], 0) == [crop for crop in before if crop != CROPS[0]]


@given(st.integers(1, 300), st.integers(1, 300))
def test_smaller_subsets_are_parts_of_larger_ones(a: int, b: int) -> None:
    small, large = sorted((a, b))
    assert set(chosen(CROPS, small)) <= set(chosen(CROPS, large))
    assert len(chosen(CROPS, small)) == min(small, 200)


@pytest.mark.parametrize(
    ("subset", "count"), [(None, 200), (0.1, 20), (0.001, 1), (1.0, 200), (1, 1), (10**9, 200)]
)
def test_subset_is_a_number_or_a_share(subset: int | float | None, count: int) -> None:
    found = chosen(CROPS, subset)
    assert len(found) == count
    assert sorted(found) == sorted(chosen(CROPS[::-1], subset))


def test_subset_is_not_the_beginning_of_the_order() -> None:
    assert sorted(chosen(CROPS, 20)) != sorted(file_order(CROPS, 0)[:20])


def test_share_of_jpeg_is_the_formats_and_spread_evenly() -> None:
    many = [f"train/a/{index}.JPEG" for index in range(4000)]
    assert sum(is_jpeg(path, 0.3) for path in many) == pytest.approx(1200, abs=100)
    assert all(is_jpeg(path, 1.0) for path in many)
    assert not any(is_jpeg(path, 0.0) for path in many)
    # What is JPEG at a small share is so at a larger one.
    assert all(is_jpeg(path, 0.5) for path in many if is_jpeg(path, 0.2))
    first = file_order([(path, 0) for path in many], 0)[:400]
    assert sum(is_jpeg(path, 0.5) for path, _ in first) == pytest.approx(200, abs=50)


@pytest.mark.parametrize(
    ("format", "share"), [("jpeg", 1.0), ("raw", 0.0), ("mixed:0.25", 0.25), ("mixed:1", 1.0)]
)
def test_format_is_a_share_of_jpeg(format: str, share: float) -> None:
    assert Packing(format=format).jpeg_share == share


@pytest.mark.parametrize(
    "format",
    [
        "",
        "png",
        "JPEG",
        "mixed",
        "mixed:",
        "mixed:x",
        "mixed:1.5",
        "mixed:-1",
        "mixed:nan",
        "raw:1",
    ],
)
def test_format_that_is_none_is_wrong_usage(format: str) -> None:
    with fails("build.format", usage=True):
        Packing(format=format)


@pytest.mark.parametrize("subset", [0, -1, 0.0, -0.5, 1.5, float("nan")])
def test_subset_that_cannot_be_is_wrong_usage(subset: int | float) -> None:
    with fails("build.subset", usage=True):
        Packing(subset=subset)


@pytest.mark.parametrize("size", [0, -4, 1 << 20, 3 << 20, 1 << 31])
def test_page_size_that_ffcv_does_not_take_is_wrong_usage(size: int) -> None:
    with fails("build.page_size", usage=True):
        Packing(page_size=size)
    assert Packing(page_size=1 << 22).page_size == 1 << 22
