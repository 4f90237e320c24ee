"""Ray as a ``Cluster``: tasks of one processor, with a local instance where there is no address.

Ray runs a task again whose worker or host was lost, ``_RETRIES`` times. It writes to stderr from
compiled code and ends its process when its head is lost, so the functions below with an
underscore run in a driver process of their own: a loky pool of one.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import os
import secrets
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from imagenet_prep.core.errors import ToolError
from imagenet_prep.workers.cluster import (
    Cluster,
    cannot_run,
    lost,
    not_joined,
    unfit_worker,
    workers_lost,
)
from imagenet_prep.workers.processes import interrupt_held, run_chunk, start_pool

_RETRIES = 3
_JOIN_S = 60  # Ray itself gives up much earlier
_START_S = 120  # a local instance starts half a dozen programs
_ANSWER_S = 10
_WAIT_S = 3.0
_PROBE_S = 60
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
    """Leaves Ray in good order where the driver answers, and ends the driver."""
    with contextlib.suppress(TimeoutError, OSError, RuntimeError):
        pool.submit(_leave).result(_ANSWER_S)
    pool.shutdown(wait=True, kill_workers=True)


class _Ray(Cluster):
    """What is asked of the driver process; handles are numbers of tasks."""

    name = "Ray"

    def __init__(self, pool: Any, stack: contextlib.ExitStack) -> None:
        super().__init__(pool)
        self._stack = stack

    def _ask(
        self, function: Callable[..., Any], *arguments: Any, timeout_s: float = _ANSWER_S
    ) -> Any:
        try:
            return self._executor.submit(function, *arguments).result(timeout_s)
        except (TimeoutError, OSError, RuntimeError):  # also of a driver that has ended
            self._executor.shutdown(wait=False, kill_workers=True)
            raise lost(self.name) from None

    def submit(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Any:
        """Submits a chunk -> its number."""
        return self._ask(_submit, function, items)

    def first_done(self, handles: Sequence[Any]) -> Any:
        """Waits for one of the chunks."""
        while (done := self._ask(_wait, list(handles))) is None:
            if self.count() == 0:
                raise workers_lost(self.name, "has no workers left")
        return done

    def result(self, handle: Any) -> list[Any]:
        """The results of a chunk, the errors of Ray as ToolError."""
        outcome, value = self._ask(_result, handle)
        if outcome == "lost":
            raise workers_lost(self.name, "gave up a chunk after several workers were lost with it")
        if outcome == "failed":
            raise unfit_worker("a worker", self.name, cannot_run(value))
        found: list[Any] = value
        return found

    def drop(self, handles: Sequence[Any]) -> None:
        """Cancels chunks that no worker has begun."""
        with contextlib.suppress(ToolError):
            self._ask(_cancel, list(handles))

    def count(self) -> int:
        """The processors of the hosts."""
        return int(self._ask(_count))

    def everywhere(self, probe: Callable[[], str]) -> dict[str, str]:
        """The answer of every host."""
        return dict(self._ask(_everywhere, probe, timeout_s=_PROBE_S + _ANSWER_S))

    def close(self) -> None:
        """Leaves the cluster; a local instance ends."""
        self._stack.close()


_tasks: dict[int, Any] = {}
"""In the driver process: the chunks that are not done, by number."""


def _silence() -> None:
    """Ray's compiled code writes to the standard streams."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def _join(options: dict[str, Any]) -> str:
    """Joins or starts Ray -> why that failed, or nothing."""
    import ray

    try:
        ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except (OSError, RuntimeError, ValueError, ImportError, AssertionError) as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""


def _leave() -> None:
    import ray

    ray.shutdown()


def _nodes() -> list[dict[str, Any]]:
    """The hosts that are alive and take work."""
    ray: Any = importlib.import_module("ray")
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def _count() -> int:
    return sum(int(node["Resources"]["CPU"]) for node in _nodes())


def _everywhere(probe: Callable[[], str]) -> dict[str, str]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=_RETRIES)(probe)
    asked = {}
    for node in _nodes():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
        asked[name] = task.options(scheduling_strategy=there).remote()
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=_PROBE_S)
    return {name: _answer(task) for name, task in asked.items()}


def _answer(task: Any) -> str:
    import ray

    try:
        return str(ray.get(task, timeout=0.1))
    except ray.exceptions.GetTimeoutError:
        return f"does not answer within {_PROBE_S} s; look at it"
    except (ray.exceptions.RayTaskError, ImportError) as error:
        return cannot_run(str(error).strip().rpartition("\n")[2])


def _submit(function: Callable[[Any], Any], items: Sequence[Any]) -> int:
    ray: Any = importlib.import_module("ray")
    task = ray.remote(num_cpus=1, max_retries=_RETRIES, retry_exceptions=False)(run_chunk)
    number = next(_numbers)
    _tasks[number] = task.remote(function, items)
    return number


_numbers = itertools.count()


def _wait(numbers: Sequence[int]) -> int | None:
    """The first task that is done, or None after a while."""
    import ray

    tasks = {_tasks[number]: number for number in numbers}
    done, _ = ray.wait(list(tasks), timeout=_WAIT_S)
    return tasks[done[0]] if done else None


def _result(number: int) -> tuple[str, Any]:
    """("ok", results), ("lost", nothing) or ("failed", reason) of a task that is done."""
    import ray

    errors = ray.exceptions
    try:
        return "ok", ray.get(_tasks.pop(number))
    except (
        errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError,
        errors.ObjectLostError,
    ):  # fmt: skip
        return "lost", None
    except (errors.RayTaskError, ImportError) as error:
        return "failed", str(error).strip().rpartition("\n")[2]


def _cancel(numbers: Sequence[int]) -> None:
    import ray

    for number in numbers:
        ray.cancel(_tasks.pop(number), force=False)
