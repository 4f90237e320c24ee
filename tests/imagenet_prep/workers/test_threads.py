"""Threads: results in order, items read a little ahead, exceptions and endings."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from imagenet_prep.workers.threads import map_in_threads


@pytest.mark.parametrize("jobs", [1, 3])
def test_results_come_in_the_order_of_the_items(jobs: int) -> None:
    assert list(map_in_threads(lambda x: x * x, range(50), jobs=jobs)) == [x * x for x in range(50)]
    assert list(map_in_threads(str, [], jobs=jobs)) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_items_are_read_only_a_little_ahead(jobs: int) -> None:
    read = 0

    def items() -> Iterator[int]:
        nonlocal read
        for item in range(1000):
            read += 1
            yield item

    with contextlib.closing(map_in_threads(str, items(), jobs=jobs)) as results:
        next(results)
        assert read <= 10


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_exception_is_raised_here_and_ends_the_threads(jobs: int) -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        list(map_in_threads(lambda x: 1 // (x - 5), range(100), jobs=jobs))
    assert threading.active_count() == before


def test_leaving_early_forgets_what_has_not_begun() -> None:
    done: list[int] = []
    before = threading.active_count()
    with contextlib.closing(map_in_threads(done.append, range(1000), jobs=2)) as results:
        next(results)
    assert threading.active_count() == before
    assert len(done) <= 10
