"""Lists for very many tuples: sorted, stable, and small."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_prep.core import packed
from imagenet_prep.core.packed import Packed

Row = tuple[str, int]


def packed_list(rows: list[Any]) -> Packed[Any]:
    found: Packed[Any] = Packed(tuple, tuple)
    found.extend(rows)
    return found


@pytest.fixture
def tiny_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "RUN", 5)
    monkeypatch.setattr(packed, "BLOCK", 2)


@given(keys=st.lists(st.text(max_size=2), max_size=40))
def test_what_goes_in_comes_out_sorted_and_equal_ones_in_their_order(keys: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "RUN", 5)
        patch.setattr(packed, "BLOCK", 2)
        rows = [(key, number) for number, key in enumerate(keys)]
        found = packed_list(rows)
        assert list(found) == sorted(rows, key=lambda row: row[0])
        assert len(found) == len(rows)


@pytest.mark.usefixtures("tiny_runs")
def test_it_can_be_read_more_than_once_at_a_time_and_added_to_afterwards() -> None:
    rows = [(f"{number:02}", number) for number in range(23)]
    found = packed_list(rows[:20])
    first, second = iter(found), iter(found)
    assert [next(first), next(second), next(first)] == [rows[0], rows[0], rows[1]]
    found.extend(rows[20:])
    assert list(found) == rows


@pytest.mark.usefixtures("tiny_runs")
def test_only_what_is_equal_by_its_first_element_is_compared() -> None:
    rows = [("a", None), ("a", 3), ("b", None), ("a", b"x"), ("a", None), ("b", 2), ("a", 1)]
    assert list(packed_list(rows)) == sorted(rows, key=lambda row: row[0])


def test_items_are_made_of_their_rows() -> None:
    found = Packed[complex](lambda value: (value.real, value.imag), lambda row: complex(*row))
    found.extend([3 + 1j, 2 + 5j])
    assert list(found) == [2 + 5j, 3 + 1j]
    assert list(found.rows()) == [(2.0, 5.0), (3.0, 1.0)]


def test_a_row_takes_a_tenth_of_what_it_takes_as_objects() -> None:
    def rows() -> list[Row]:
        return [(f"train/n{at % 50:08}/n{at % 50:08}_{at}.JPEG", at) for at in range(20_000)]

    tracemalloc.start()
    try:
        as_objects = sorted(rows())
        objects_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    found = packed_list(as_objects)
    assert list(found) == as_objects
    assert 0 < found.bytes < objects_bytes / 10
