"""Maps over processes: order, errors, deaths, early ends and bounded memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagenet_prep.workers.processes import (
    Failed,
    Ok,
    WorkerDied,
    map_ordered,
    map_unordered,
    resolve_jobs,
)

REPOSITORY = Path(__file__).resolve().parents[3]


def square(number: int) -> int:
    return number * number


def own_process(number: int) -> int:
    return os.getpid()


def die_at_seven(number: int) -> int:
    if number == 7:
        os._exit(9)
    return number


def refuse_seven(number: int) -> int:
    if number == 7:
        raise LookupError("seven is refused")
    return number


@pytest.mark.parametrize("mapper", [map_ordered, map_unordered])
def test_one_job_stays_in_this_process_and_is_lazy(
    mapper: Callable[..., Iterator[int]],
) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            taken.append(number)
            yield number

    results = mapper(own_process, items(), jobs=1)
    assert next(results) == os.getpid()
    assert taken == [0]


def test_no_items_give_no_results() -> None:
    assert list(map_ordered(square, [], jobs=2)) == []
    assert list(map_unordered(square, [], jobs=1)) == []


def test_less_than_a_chunk_starts_no_process() -> None:
    assert set(map_unordered(own_process, range(3), jobs=4, chunk=4)) == {os.getpid()}


def test_order_is_kept_over_processes_and_items_are_not_read_far_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(200):
            taken.append(number)
            yield number

    with contextlib.closing(map_ordered(square, items(), jobs=2, chunk=2)) as results:
        first = next(results)
        assert len(taken) < 40
        assert [first, *results] == [number * number for number in range(200)]


def test_unordered_gives_every_result_once() -> None:
    results = list(map_unordered(square, range(40), jobs=2, chunk=3))
    assert sorted(results) == [number * number for number in range(40)]


def test_a_worker_that_dies_is_an_error_and_not_a_wait() -> None:
    with pytest.raises(WorkerDied, match="ended by itself"):
        list(map_unordered(die_at_seven, range(40), jobs=2, chunk=2))


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_exception_of_the_function_is_raised_here(jobs: int) -> None:
    with pytest.raises(LookupError, match="seven is refused"):
        list(map_ordered(refuse_seven, range(40), jobs=jobs, chunk=2))


def test_leaving_early_leaves_no_process() -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("this system does not list a process's children")
    with contextlib.closing(map_unordered(own_process, range(1000), jobs=2, chunk=1)) as results:
        worker = next(results)
        assert worker != os.getpid()
    assert str(worker) not in children.read_text().split()


def test_jobs_default_to_the_processors_and_must_be_positive() -> None:
    assert resolve_jobs(None) >= 1
    assert resolve_jobs(3) == 3
    with pytest.raises(ValueError, match="at least 1"):
        resolve_jobs(0)
    with pytest.raises(ValueError, match="at least 1"):
        map_ordered(square, [1], jobs=0)


def test_outcomes_are_values() -> None:
    assert Ok("a", 1) == Ok("a", 1)
    assert Failed("a", "broken").reason == "broken"


LEFTOVERS = """
from imagenet_prep.workers.processes import map_unordered

assert sorted(map_unordered(abs, range(32), jobs=2)) == list(range(32))

from joblib.externals.loky.backend import resource_tracker

resource_tracker.register("/a-lock-of-a-killed-worker", "semlock")
"""


def test_what_a_killed_worker_left_is_not_told_to_the_user() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEFTOVERS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
