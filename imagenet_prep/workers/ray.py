"""Ray as a ``Cluster``: tasks of one processor, with a local instance where there is no address.

Ray runs a task again whose worker or host was lost, ``_RETRIES`` times. It writes to stderr from
compiled code and ends its process when its head is lost, so the functions at the end of this
file run in a driver process of their own: a loky pool of one.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import os
import secrets
import tempfile
from collections.abc import Callable, Collection, Iterator
from typing import Any

from imagenet_prep.core.errors import ToolError
from imagenet_prep.workers.cluster import Cluster, cannot_run, lost, not_joined, workers_lost
from imagenet_prep.workers.processes import interrupt_held, start_pool

_RETRIES = 3
_JOIN_S = 60  # Ray itself gives up much earlier
_START_S = 120  # a local instance starts half a dozen programs
_ANSWER_S = 10
_END_S = 3
_ROUNDS = 10  # a program that is being killed may have started another
_PR_SET_CHILD_SUBREAPER = 36
_WAIT_S = 3.0
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # otherwise Ray warns of a future default
    "RAY_py_gcs_connect_timeout_s": "5",
}


def join(address: str | None, jobs: int) -> Cluster:
    """A driver of the cluster at ``address``, or of a local instance of ``jobs`` processes."""
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {"address": address}
        variables = dict(_QUIET)
        if address is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="imagenet-prep-"))
            stack.enter_context(_ended_programs())
            options = {
                "address": "local", "num_cpus": jobs, "include_dashboard": False,
                "object_store_memory": 256 << 20, "_node_ip_address": "127.0.0.1",
                "_temp_dir": folder,
            }  # fmt: skip
            # Loopback only, with a token: no other user can reach this instance.
            token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            variables |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **token}
        pool = start_pool(1, variables, _silence)
        stack.callback(_end, pool)
        try:
            with interrupt_held():  # the driver process inherits it
                joined = pool.submit(_join, options)
            reason = joined.result(_START_S if address is None else _JOIN_S)
        except (TimeoutError, OSError, RuntimeError):
            reason = "no answer in time"
            pool.shutdown(wait=False, kill_workers=True)
        if reason:
            raise not_joined("Ray", address, reason)
        return _Ray(pool, stack.pop_all())


def _end(pool: Any) -> None:
    """Leaves Ray where the driver still answers, and ends the driver."""
    with contextlib.suppress(TimeoutError, OSError, RuntimeError):
        pool.submit(_leave).result(_ANSWER_S)
    pool.shutdown(wait=True, kill_workers=True)


@contextlib.contextmanager
def _ended_programs() -> Iterator[None]:
    """Ends what a local instance has left running when the block ends.

    Ray ends only the programs that it started itself; their agents and idle workers notice it
    later, and its driver may have ended before. Orphans become children of this process (Linux).
    """
    import psutil

    def programs() -> set[Any]:
        found = psutil.Process().children(recursive=True)
        return {one for one in found if one not in before and not _is_tracker(one)}

    before: set[Any] = set()
    before = programs()
    _adopt_orphans(True)
    try:
        yield
    finally:
        for _ in range(_ROUNDS):
            _, living = psutil.wait_procs(programs(), timeout=_END_S)
            for program in living:
                with contextlib.suppress(psutil.NoSuchProcess):
                    program.kill()
            if not living:
                break
        _adopt_orphans(False)


def _is_tracker(program: Any) -> bool:
    """Whether it is loky's tracker of semaphores, which ends with this process."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return any("resource_tracker" in word for word in program.cmdline())
    return False


def _adopt_orphans(on: bool) -> None:
    import ctypes
    import sys

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)


class _Ray(Cluster):
    """Calls of the driver process; handles are numbers of tasks."""

    name = "Ray"

    def __init__(self, pool: Any, stack: contextlib.ExitStack) -> None:
        super().__init__(pool)
        self._stack = stack

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return self._executor.submit(function, *arguments).result(_ANSWER_S)
        except (TimeoutError, OSError, RuntimeError):  # also of a driver that has ended
            self._executor.shutdown(wait=False, kill_workers=True)
            raise lost(self.name) from None

    def submit(self, function: Callable[[Any], Any], item: Any) -> Any:
        """Submits an item -> its number."""
        return self._ask(_submit, function, item)

    def first_done(self, handles: Collection[Any]) -> Any:
        """Waits for one of the items."""
        while (done := self._ask(_wait, list(handles))) is None:
            if self.count() == 0:
                raise workers_lost(self.name, "has no workers left")
        return done

    def result(self, handle: Any) -> Any:
        """The result of an item, the errors of Ray as ToolError."""
        outcome, value = self._ask(_result, handle)
        if outcome == "lost":
            raise workers_lost(self.name, "gave up an item that ended several workers")
        if outcome == "failed":
            raise cannot_run(self.name, value)
        return value

    def drop(self, handles: Collection[Any]) -> None:
        """Cancels items that no worker has begun."""
        with contextlib.suppress(ToolError):
            self._ask(_cancel, list(handles))

    def count(self) -> int:
        """The processors of the hosts."""
        return int(self._ask(_count))

    def close(self) -> None:
        """Leaves the cluster; a local instance ends."""
        self._stack.close()


_tasks: dict[int, Any] = {}
"""In the driver process: the items that are not done, by number."""
_numbers = itertools.count()


def _silence() -> None:
    """Ray's compiled code writes to the standard streams."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def _join(options: dict[str, Any]) -> str:
    """Joins or starts Ray -> why that failed, or nothing."""
    try:
        _ray().init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except (OSError, RuntimeError, ValueError, ImportError, AssertionError) as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""


def _ray() -> Any:
    return importlib.import_module("ray")


def _leave() -> None:
    _ray().shutdown()


def _count() -> int:
    """The processors of the hosts that are alive."""
    return sum(int(n["Resources"].get("CPU", 0)) for n in _ray().nodes() if n["Alive"])


def _submit(function: Callable[[Any], Any], item: Any) -> int:
    number = next(_numbers)
    options = {"num_cpus": 1, "max_retries": _RETRIES, "retry_exceptions": False}
    _tasks[number] = _ray().remote(**options)(_run).remote(function, item)
    return number


def _run(function: Callable[[Any], Any], item: Any) -> Any:
    """The task of Ray."""
    return function(item)


def _wait(numbers: list[int]) -> int | None:
    """The first task that is done, or None after a while."""
    tasks = {_tasks[number]: number for number in numbers}
    done, _ = _ray().wait(list(tasks), timeout=_WAIT_S)
    return tasks[done[0]] if done else None


def _result(number: int) -> tuple[str, Any]:
    """("ok", result), ("lost", nothing) or ("failed", reason) of a task that is done."""
    ray = _ray()
    try:
        return "ok", ray.get(_tasks.pop(number))
    except (ray.exceptions.RayTaskError, ImportError) as error:
        return "failed", str(error).strip().rpartition("\n")[2]
    except ray.exceptions.RayError:
        return "lost", None


def _cancel(numbers: list[int]) -> None:
    for number in numbers:
        _ray().cancel(_tasks.pop(number), force=False)
