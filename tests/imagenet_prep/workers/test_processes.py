"""Maps over processes and threads: order, errors, deaths, early ends and bounded memory."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagenet_prep.workers.processes import Local, resolve_jobs
from tests.kit.command import Ended, Running
from tests.kit.errors import fails


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


def test_one_job_stays_in_this_process_and_is_lazy() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            taken.append(number)
            yield number

    results = Local(1).map(own_process, items())
    assert next(results) == os.getpid()
    assert taken == [0]


def test_each_result_comes_once_and_items_are_not_read_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(200):
            taken.append(number)
            yield number

    with contextlib.closing(Local(2).map(square, items())) as results:
        first = next(results)
        assert len(taken) < 20
        found = [first, *results]
    assert sorted(found) == [number * number for number in range(200)]
    assert list(Local(2).map(square, [])) == []


def test_a_worker_that_dies_is_an_error_and_not_a_wait() -> None:
    with fails("workers.died"):
        list(Local(2).map(die_at_seven, range(40)))


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_exception_of_the_function_is_raised_here(jobs: int) -> None:
    with pytest.raises(LookupError, match="seven is refused"):
        list(Local(jobs).map(refuse_seven, range(40)))


def test_leaving_early_leaves_no_process() -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("this system does not list a process's children")
    results = Local(2).map(own_process, range(1000))
    with contextlib.closing(results):
        worker = next(results)
        assert worker != os.getpid()
    assert str(worker) not in children.read_text().split()


def test_jobs_default_to_the_processors_and_must_be_positive() -> None:
    assert resolve_jobs(None) >= 1
    assert resolve_jobs(3) == 3
    with fails("jobs.invalid"):
        resolve_jobs(0)


LEFTOVERS = """
from imagenet_prep.workers.processes import Local

assert sorted(Local(2).map(abs, range(32))) == list(range(32))

from joblib.externals.loky.backend import resource_tracker

resource_tracker.register("/a-lock-of-a-killed-worker", "semlock")
"""


def test_what_a_killed_worker_left_is_not_told_to_the_user() -> None:
    assert Running([sys.executable, "-c", LEFTOVERS]).end() == Ended(0, "", "")
