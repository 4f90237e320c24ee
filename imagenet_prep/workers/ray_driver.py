"""The process that is Ray's driver: requests in, answers out, and nothing of it on a terminal.

Ray writes to stdout and stderr from threads and from compiled code, takes the place of signal
handlers, and may end its process when its head is gone. So it has a process of its own.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from imagenet_prep.workers.remote_worker import Fitness, Raised, Unfit, probe_of, run_chunk

Answer = tuple[int, str, Any]
"""The number of a request, one of the following, and the value or the reason."""
DONE, REFUSED, EXHAUSTED, LOST = "done", "refused", "exhausted", "lost"

RETRIES = 3
"""How often a task is done again whose worker or host has died."""
PROBE_S = 60
ABANDON_S = 10
_GET_S = 5


class Exhausted(Exception):  # noqa: N818 - it reads as what happened
    """Workers have died too often."""


def serve(connection: Connection, options: dict[str, Any]) -> None:
    """Joins Ray with the ``options`` of its init, and answers requests until there are no more.

    A request is (number, name of a method of ``Driver``, its arguments); number 0 is
    answered without having been asked, when Ray is joined or refuses to be.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    import ray

    try:
        ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except (OSError, RuntimeError, ValueError, ImportError, AssertionError) as error:
        connection.send((0, REFUSED, _first_line(error)))
        return
    driver = Driver(ray)
    connection.send((0, DONE, None))
    try:
        while True:
            number, method, arguments = connection.recv()
            connection.send(_answer(number, getattr(driver, method), arguments, ray))
    except (EOFError, OSError):  # the one who asks has gone, or has all that it wanted
        ray.shutdown()


def _answer(number: int, method: Callable[..., Any], arguments: Sequence[Any], ray: Any) -> Answer:
    try:
        return number, DONE, method(*arguments)
    except Exhausted as error:
        return number, EXHAUSTED, str(error)
    except (ray.exceptions.RayError, OSError, RuntimeError) as error:
        return number, LOST, _first_line(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2]


class Driver:
    """What is done with Ray; handles of tasks are numbers."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._task = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=False)(run_chunk)
        self._tasks: dict[int, Any] = {}
        self._last = 0

    def _nodes(self) -> list[dict[str, Any]]:
        """The hosts that are alive and take work."""
        nodes = self._ray.nodes()
        return [node for node in nodes if node["Alive"] and node["Resources"].get("CPU")]

    def count(self) -> int:
        """The processors of the hosts."""
        return sum(int(node["Resources"]["CPU"]) for node in self._nodes())

    def everywhere(self, fitness: Fitness) -> dict[str, str]:
        """What the probe says on every host."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = {}
        probe = self._ray.remote(num_cpus=0, max_retries=RETRIES)(probe_of(fitness))
        for node in self._nodes():
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
            asked[name] = probe.options(scheduling_strategy=there).remote()
        until = time.monotonic() + PROBE_S
        return {name: self._said(task, until) for name, task in asked.items()}

    def _said(self, task: Any, until: float) -> str:
        errors = self._ray.exceptions
        try:
            return str(self._ray.get(task, timeout=max(0.1, until - time.monotonic())))
        except errors.GetTimeoutError:
            return f"does not answer within {PROBE_S} s; look at it"
        except (errors.RayTaskError, ImportError) as error:
            return f"cannot run this program ({_last_line(error)}); install the same there"

    def submit(self, work: bytes) -> int:
        """Begins a chunk -> its handle."""
        self._last += 1
        self._tasks[self._last] = self._task.remote(work)
        return self._last

    def wait(self, handles: Sequence[int], timeout_s: float) -> int | None:
        """The first that is done, or None."""
        tasks = {self._tasks[handle]: handle for handle in handles}
        done, _ = self._ray.wait(list(tasks), num_returns=1, timeout=timeout_s)
        return tasks[done[0]] if done else None

    def result(self, handle: int) -> list[Any] | Raised | Unfit | None:
        """What a chunk came to; None while it is done once more, after its host has died."""
        errors = self._ray.exceptions
        try:
            found: list[Any] | Raised | Unfit = self._ray.get(self._tasks[handle], timeout=_GET_S)
        except errors.GetTimeoutError:
            return None
        except (
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.OutOfMemoryError,
            errors.ObjectLostError,
        ):
            raise Exhausted("gave up work at which its workers died") from None
        except (errors.RayTaskError, ImportError) as error:
            found = Unfit(f"cannot do the work ({_last_line(error)}); install the same there")
        del self._tasks[handle]
        return found

    def abandon(self, handles: Sequence[int]) -> None:
        """Cancels tasks, and waits for the items that workers are in the middle of."""
        tasks = [self._tasks[handle] for handle in handles]
        for task in tasks:
            self._ray.cancel(task, force=False)
        self._ray.wait(tasks, num_returns=len(tasks), timeout=ABANDON_S)
