"""A map in threads keeps the order, reads only a little ahead, and leaves no thread behind."""

from __future__ import annotations

import contextlib
import threading

import pytest

from imagenet_prep.core.threads import map_in_threads


def refuse_seven(number: int) -> int:
    if number == 7:
        raise LookupError("seven is refused")
    return number


@pytest.mark.parametrize("jobs", [1, 3])
def test_threads_keep_order_and_read_only_a_little_ahead(jobs: int) -> None:
    assert list(map_in_threads(abs, range(50), jobs=jobs)) == list(range(50))
    assert list(map_in_threads(str, [], jobs=jobs)) == []
    items = iter(range(1000))
    with contextlib.closing(map_in_threads(str, items, jobs=jobs)) as results:
        next(results)
    assert next(items) <= 4 * jobs + 1


@pytest.mark.parametrize("jobs", [1, 2])
def test_no_thread_outlives_its_map(jobs: int) -> None:
    before = threading.active_count()
    with pytest.raises(LookupError, match="seven is refused"):
        list(map_in_threads(refuse_seven, range(100), jobs=jobs))
    done: list[int] = []
    with contextlib.closing(map_in_threads(done.append, range(1000), jobs=jobs)) as results:
        next(results)
    assert threading.active_count() == before
    assert len(done) <= 10


def test_an_iteration_may_be_dropped_by_one_of_its_own_threads() -> None:
    gate, closed = threading.Event(), threading.Event()

    def work(number: int) -> int:
        if number == 1:
            assert gate.wait(60)
            running.close()  # as the collector would, in the thread in which it happens to run
            closed.set()
        return number

    running = map_in_threads(work, range(2), jobs=2)
    assert next(running) == 0
    gate.set()
    assert closed.wait(60)
