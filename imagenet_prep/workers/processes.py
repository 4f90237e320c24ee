"""One interface for parallel work: ``Workers.map``; and the processes of this machine, ``Local``.

Clusters (``cluster``, ``dask``, ``ray``) are other ``Workers``; threads are in ``core``. Local
processes are joblib's loky: they start fresh, so neither the threads nor the locks of this
process are copied into them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import signal
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from imagenet_prep.core.errors import ToolError, UsageError

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 8
"""Small items that a caller may send to a worker as one."""
AHEAD = 4
"""Items per worker that are submitted ahead: enough that none waits for this process."""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_WATCH_EVERY_S = 3.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Failed:
    """An item without a result, and the reason; the run goes on."""

    key: str
    reason: str


class Pool:
    """Where items run: an executor of ``concurrent.futures``. Clusters override what differs."""

    def __init__(self, executor: Any = None) -> None:
        self._executor = executor

    def submit(self, function: Callable[[T], R], item: T) -> Any:
        """Starts ``function`` of the item -> a handle."""
        return self._executor.submit(function, item)

    def first_done(self, handles: Collection[Any]) -> Any:
        """Waits for one of the handles -> it; ToolError when none can finish any more."""
        from concurrent.futures import FIRST_COMPLETED, wait

        while True:
            done, _ = wait(handles, timeout=_WATCH_EVERY_S, return_when=FIRST_COMPLETED)
            if done:
                return done.pop()
            self.watch()

    def watch(self) -> None:
        """Raises ToolError when no item can finish any more."""

    def result(self, handle: Any) -> Any:
        """The result of an item that is done; raises the exception of its function."""
        return handle.result()

    def drop(self, handles: Collection[Any]) -> None:
        """Cancels the items of a map that ends early."""
        for handle in handles:
            handle.cancel()


class Workers:
    """Workers that apply a function to items, on this machine or on a cluster."""

    count: int
    """How many items run at a time."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
        """``function`` of every item, as the results come.

        Functions and items must be picklable, and a function must have the same effect on the
        disk when it runs twice: the item of a lost worker runs again on another. ``items`` is
        read only a little ahead of the results. Exceptions of the function and of ``items`` are
        raised here; ToolError (``workers.died``, ``cluster.lost``) when workers are lost for
        good. A consumer that stops early closes the iterator (``contextlib.closing``).
        """
        raise NotImplementedError


Jobs = int | Workers | None
"""A number of processes on this machine, None for one per processor, or ``Workers``."""


class Local(Workers):
    """``count`` processes of this machine, started for each map; 1 runs in this process."""

    def __init__(self, count: int) -> None:
        self.count = resolve_jobs(count)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
        """See ``Workers``."""
        if self.count == 1:
            yield from map(function, items)
            return
        from joblib.externals.loky.process_executor import BrokenProcessPool

        pool = _Processes(self.count)
        try:
            yield from windowed(pool, function, items, ahead=self.count * AHEAD)
        except UnboundLocalError as error:
            # loky fails in its own clean-up where a process could not be started.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        except (BrokenProcessPool, BrokenPipeError):  # the latter: it died while it started
            reason = "a worker process ended by itself (killed, out of memory, or a crash)"
            raise _died(reason) from None
        finally:
            pool.end()


def workers_of(jobs: Jobs) -> Workers:
    """``jobs`` as ``Workers``; raises what ``resolve_jobs`` does."""
    return Local(resolve_jobs(jobs)) if jobs is None or isinstance(jobs, int) else jobs


def resolve_jobs(jobs: int | None) -> int:
    """``jobs``, or the number of processors that this process may use.

    Raises UsageError (``jobs.invalid``) below 1.
    """
    if jobs is None:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if jobs < 1:
        raise UsageError("jobs.invalid", f"the number of jobs must be at least 1, not {jobs}")
    return jobs


def windowed(
    pool: Pool, function: Callable[[T], R], items: Iterable[T], *, ahead: int
) -> Generator[R, None, None]:
    """Results as they come, with at most ``ahead`` items in ``pool`` at a time."""
    source = iter(items)
    pending: set[Any] = set()
    try:
        while True:
            for item in itertools.islice(source, ahead - len(pending)):
                pending.add(pool.submit(function, item))
            if not pending:
                return
            done = pool.first_done(pending)
            pending.remove(done)
            yield pool.result(done)
    finally:
        if pending:
            with interrupt_held():
                pool.drop(pending)


class _Processes(Pool):
    """A loky pool."""

    def __init__(self, count: int) -> None:
        super().__init__(start_pool(count, _ONE_THREAD))
        self._dropped = False

    def submit(self, function: Callable[[T], R], item: T) -> Any:
        with interrupt_held():  # new processes inherit this, from their first instruction
            return super().submit(function, item)

    def watch(self) -> None:
        manager = getattr(self._executor, "_executor_manager_thread", None)
        if manager is not None and not manager.is_alive():
            raise _died("the thread that feeds the worker processes ended by itself")

    def drop(self, handles: Collection[Any]) -> None:  # noqa: ARG002 - the pool serves one map
        self._dropped = True
        # What no worker has begun; loky's manager thread would fail on a cancelled future.
        queued = getattr(self._executor, "_work_ids", None)
        with contextlib.suppress(queue.Empty):
            while queued is not None:
                queued.get_nowait()

    def end(self) -> None:
        """Ends the processes; at once, where items were dropped."""
        with interrupt_held():
            self._executor.shutdown(wait=True, kill_workers=self._dropped)


def _died(what: str) -> ToolError:
    return ToolError("workers.died", f"{what}; run the same command with fewer --jobs")


def start_pool(
    count: int, variables: dict[str, str], initializer: Callable[[], None] | None = None
) -> Any:
    """A loky executor whose processes have ``variables`` in their environment, leave Ctrl-C to
    this process and end with it."""
    from joblib.externals.loky import ProcessPoolExecutor

    _start_trackers()  # before the pool, whose locks would start them
    start = (os.getpid(), initializer)
    return ProcessPoolExecutor(count, initializer=_start_worker, initargs=start, env=variables)


def _start_trackers() -> None:
    """Starts the resource trackers of the standard library and of loky, without warnings.

    Starting them unblocks signals again, so it must not be left to the start of the workers.
    Their warnings about semaphores of killed workers are of no use to a user.
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


@contextlib.contextmanager
def interrupt_held() -> Iterator[None]:
    """Delays Ctrl-C and SIGTERM until the block ends; a process that is started in the block
    never gets Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(parent: int, initializer: Callable[[], None] | None) -> None:
    """Ignores Ctrl-C, and ends with the process ``parent`` (Linux)."""
    import ctypes
    import sys

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # held while it was started
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent was killed while this process started
            os._exit(1)
    if initializer is not None:
        initializer()
