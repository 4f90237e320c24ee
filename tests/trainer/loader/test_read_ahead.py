"""Pages are announced before they are read, once, and not all of them at once."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.loading import Sample, kept, train
from trainer.loader.order import sample_order
from trainer.loader.read_ahead import ReadAhead

PAGE = 1 << 20


class Announced(ReadAhead):
    """Writes down the pages that it would announce."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.starts: list[tuple[int, int]] = []

    def _announce(self, file: int, start: int) -> None:
        self.starts.append((file, start))


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 9), st.integers(1, 40))
def test_each_page_is_announced_once_before_its_samples_are_read(
    count: int, per_page: int, at_once: int, batch: int
) -> None:
    pages = 1 + np.arange(count) // per_page
    order = sample_order("pages", 3, 0, pages, at_once).astype(np.int64)
    # Two files, 7 and 8, the first one of three pages.
    ahead = Announced([7, 8], np.array([0, 3, 1000]), pages[order], PAGE, at_once)

    def place(page: int) -> tuple[int, int]:
        return (7, page * PAGE) if page < 3 else (8, (page - 3) * PAGE)

    for start in range(0, count, batch):
        ahead.reach(start + batch)
        read = {place(int(page)) for page in pages[order[start : start + batch]]}
        assert read <= set(ahead.starts)
    assert sorted(ahead.starts) == [place(int(page)) for page in np.unique(pages)]


def test_only_pages_in_use_and_the_next_ones_are_announced() -> None:
    pages = np.arange(6000) // 100
    order = sample_order("pages", 3, 0, pages, 5).astype(np.int64)
    ahead = Announced([0], np.array([0, 60]), pages[order], PAGE, 5)
    for position in range(0, 6000, 50):
        ahead.reach(position)
        done = len(set(pages[order[:position]].tolist()))
        assert len(ahead.starts) <= done + 2 * 5


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system has no posix_fadvise")
@pytest.mark.parametrize("order", ["pages", "sequential", "shuffle"])
def test_the_loader_announces_its_samples_bytes_if_order_allows(
    small_beton: Sample, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda f, at, size, what: told.append((at, size)))
    with train(small_beton, order=order, pages_at_once=1) as batches:
        assert len(kept(batches)) == 4
        extents = batches.info.extents
    if order == "shuffle":
        assert told == []
        return
    covered = {at + i for at, size in told for i in (0, size - 1)}
    assert min(covered) <= int(extents[:, 0].min())
    assert max(covered) >= int(extents[:, :2].sum(axis=1).max()) - 1
