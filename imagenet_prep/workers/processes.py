"""Items and a function -> results, over the processors of this machine or of others.

``Workers`` is what the stages need: maps with a bounded number of items on the way, in which
a death of workers is an error and never a wait, and an end within a moment of Ctrl-C. Those
of a cluster are in ``cluster``; here are those of this machine. Their processes are joblib's
(loky): they start fresh, so neither threads nor locks of this process are copied into them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 8
_CHUNKS_AHEAD = 4  # per worker: enough that none ever waits for the parent
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_WATCH_EVERY_S = 5.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Ok(Generic[T]):
    """What an item came to."""

    key: str
    value: T


@dataclass(frozen=True, slots=True)
class Failed:
    """An item that came to nothing, and why; the run goes on."""

    key: str
    reason: str


class WorkerDied(RuntimeError):  # noqa: N818 - it reads as what happened
    """A worker process ended by itself: killed, out of memory, or a fault in a C library."""


class Workers(Protocol):
    """Processes that apply a function to items; here, or on a cluster.

    Functions and items must be picklable, and what a function does to the disk must come to
    the same when it is done twice. ``items`` is read only a few chunks ahead of the results.
    An exception of the function or of ``items`` is raised in the iteration, and so is the
    death of the workers. However the iteration ends, nothing of it is left running; a
    consumer that leaves it early closes it (``contextlib.closing``).
    """

    @property
    def count(self) -> int:
        """How many items they work on at a time."""

    def map_unordered(
        self, function: Callable[[T], R], items: Iterable[T], *, chunk: int = CHUNK
    ) -> Generator[R, None, None]:
        """``function`` of every item, as the results come."""

    def map_ordered(
        self, function: Callable[[T], R], items: Iterable[T], *, chunk: int = CHUNK
    ) -> Generator[R, None, None]:
        """``function`` of every item, in the order of the items."""


Jobs = int | Workers | None
"""Who does the work: so many processes of this machine, one per processor, or ``Workers``."""


@dataclass(frozen=True, slots=True)
class Local:
    """``Workers`` that are ``count`` processes of this machine, started for each map."""

    count: int

    def map_unordered(
        self, function: Callable[[T], R], items: Iterable[T], *, chunk: int = CHUNK
    ) -> Generator[R, None, None]:
        """As ``map_unordered`` of this module."""
        return map_unordered(function, items, jobs=self.count, chunk=chunk)

    def map_ordered(
        self, function: Callable[[T], R], items: Iterable[T], *, chunk: int = CHUNK
    ) -> Generator[R, None, None]:
        """As ``map_ordered`` of this module."""
        return map_ordered(function, items, jobs=self.count, chunk=chunk)


def workers_of(jobs: Jobs) -> Workers:
    """``jobs`` as ``Workers``; raises what ``resolve_jobs`` does."""
    return Local(resolve_jobs(jobs)) if jobs is None or isinstance(jobs, int) else jobs


def resolve_jobs(jobs: int | None) -> int:
    """The number of workers: ``jobs``, or one per processor that this process may use.

    Raises ValueError below 1.
    """
    if jobs is None:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if jobs < 1:
        raise ValueError(f"the number of jobs must be at least 1, not {jobs}")
    return jobs


def map_unordered(
    function: Callable[[T], R], items: Iterable[T], *, jobs: int, chunk: int = CHUNK
) -> Generator[R, None, None]:
    """``function`` of every item, as the results come.

    With ``jobs`` 1 in this process, lazily. Otherwise ``function`` and the items must be
    picklable, and ``items`` is read only a few chunks ahead of the results; less than one
    chunk is done in this process, because starting another would take longer. An exception
    of ``function`` or of ``items`` is raised here; a worker that ends by itself raises
    WorkerDied. However the iteration ends, no worker outlives it; a consumer that leaves
    it early closes it (``contextlib.closing``), or drops its last reference.
    """
    return _map(function, items, jobs=jobs, chunk=chunk, ordered=False)


def map_ordered(
    function: Callable[[T], R], items: Iterable[T], *, jobs: int, chunk: int = CHUNK
) -> Generator[R, None, None]:
    """As ``map_unordered``, with the results in the order of the items."""
    return _map(function, items, jobs=jobs, chunk=chunk, ordered=True)


def _map(
    function: Callable[[T], R], items: Iterable[T], *, jobs: int, chunk: int, ordered: bool
) -> Generator[R, None, None]:
    if jobs < 1 or chunk < 1:
        raise ValueError(f"jobs and chunk must be at least 1, not {jobs} and {chunk}")
    if jobs == 1:
        return (function(item) for item in items)
    return _map_in_workers(function, items, jobs, chunk, ordered)


def _map_in_workers(
    function: Callable[[T], R], items: Iterable[T], jobs: int, chunk: int, ordered: bool
) -> Generator[R, None, None]:
    source = iter(items)
    chunks = iter(lambda: list(itertools.islice(source, chunk)), [])
    first = next(chunks, [])
    if len(first) < chunk:  # all of it: one worker's work, so none need start
        yield from (function(item) for item in first)
        return
    from joblib.externals.loky import ProcessPoolExecutor
    from joblib.externals.loky.process_executor import BrokenProcessPool

    _start_trackers()  # before the pool, whose locks would start them
    pool = ProcessPoolExecutor(
        max_workers=jobs, initializer=_start_worker, initargs=(os.getpid(),), env=_ONE_THREAD
    )
    pending: deque[Future[list[R]]] = deque()
    finished = False
    try:
        with interrupt_held():  # the workers inherit this, from their first instruction
            pending.append(pool.submit(_run_chunk, function, first))
        for part in itertools.islice(chunks, jobs * _CHUNKS_AHEAD - 1):
            pending.append(pool.submit(_run_chunk, function, part))
        while pending:
            ready = _first_ready(pool, [pending[0]] if ordered else pending)
            pending.remove(ready)
            results = ready.result()
            part_or_none = next(chunks, None)
            if part_or_none is not None:
                pending.append(pool.submit(_run_chunk, function, part_or_none))
            yield from results
        finished = True
    except UnboundLocalError as error:
        # loky stumbles in its own clean-up where a process could not be started.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    except (BrokenProcessPool, BrokenPipeError):  # the latter of one that dies while it starts
        raise WorkerDied(
            "a worker process ended by itself (killed, out of memory, or a fault in a library)"
        ) from None
    finally:
        with interrupt_held():
            if not finished:
                _drop_queued(pool)
            pool.shutdown(wait=True, kill_workers=not finished)


def _start_trackers() -> None:
    """Starts the helper processes that remove what a killed worker leaves, without warnings.

    They are those of the standard library and of loky. Starting them lets the interrupt
    through again, so it must not be left to the start of the workers. What they may say at
    the end, that a semaphore was left or is gone already, is nothing that a user could mend.
    """
    import sys
    from multiprocessing import resource_tracker

    from joblib.externals.loky.backend import resource_tracker as lokys_tracker

    for tracker in (resource_tracker, lokys_tracker):
        sys.warnoptions.append(f"ignore:::{tracker.__name__}")  # passed on as -W
        try:
            tracker.ensure_running()
        finally:
            sys.warnoptions.pop()


def _first_ready(pool: Any, pending: Sequence[Future[R]]) -> Future[R]:
    """Waits for one of ``pending``, and watches the thread that it depends on."""
    from concurrent.futures import FIRST_COMPLETED, wait

    while True:
        done, _ = wait(pending, timeout=_WATCH_EVERY_S, return_when=FIRST_COMPLETED)
        if done:
            return next(future for future in pending if future in done)
        manager = getattr(pool, "_executor_manager_thread", None)
        if manager is not None and not manager.is_alive():
            raise WorkerDied("the thread that feeds the worker processes ended by itself")


def _drop_queued(pool: Any) -> None:
    """Forgets what no worker has begun: loky's manager thread would stumble over it."""
    queued = getattr(pool, "_work_ids", None)
    while queued is not None:
        try:
            queued.get_nowait()
        except queue.Empty:
            return


def _run_chunk(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    return [function(item) for item in items]


@contextlib.contextmanager
def interrupt_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM arrive after the block, not inside it; Ctrl-C never at a process that
    was started in it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(parent: int) -> None:
    """Leaves Ctrl-C to the process ``parent``, and ends with it if it is killed (Linux)."""
    import ctypes
    import sys

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # held while it was started
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it was killed while this process started
            os._exit(1)
