"""Ray as an ``Engine``: tasks of one processor each, on a cluster or a local instance.

Ray itself does a task again whose worker or host has died, a few times. Its driver is a
process of its own (``ray_driver``), each answer of which is waited for with a bound.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.redact import shown_address
from imagenet_prep.workers import ray_driver
from imagenet_prep.workers.cluster import Engine, Exhausted, Lost, require_somebody
from imagenet_prep.workers.processes import interrupt_held
from imagenet_prep.workers.remote_worker import Fitness, Raised, Unfit

_CONNECT_S = 5
_JOIN_S = 60  # Ray itself gives up much earlier
_START_S = 120  # an instance of its own has half a dozen programs to start
_ANSWER_S = 10
_STORE_BYTES = 256 << 20  # results are small, and the disk is where pictures go
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns of its own future
    "RAY_py_gcs_connect_timeout_s": str(_CONNECT_S),  # it tries twice
}


def join(address: str | None, jobs: int) -> Engine:
    """A driver of the cluster at ``address``, or of an instance of ``jobs`` processes here."""
    with contextlib.ExitStack() as stack:
        if address is not None:
            require_somebody("Ray", address, "ray start --head")
            engine = _Ray({"address": address}, _QUIET, stack)
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="imagenet-prep-"))
            engine = _Ray(_instance(jobs, folder), {**_QUIET, **_own()}, stack)
        reason = engine.refusal(_START_S if address is None else _JOIN_S)
        if reason is None:
            engine.keep(stack.pop_all())
            return engine
    if address is None:
        raise ToolError(f"--backend ray: Ray does not start here ({reason}); try --backend dask")
    raise ToolError(
        f"--address: Ray cannot be joined at {shown_address(address)} ({reason}); name the "
        "address of its head, such as 10.0.0.1:6379 on one of its hosts and "
        "ray://10.0.0.1:10001 elsewhere, and set RAY_AUTH_MODE=token where it wants a token"
    )


def _instance(jobs: int, folder: str) -> dict[str, Any]:
    """The options of an instance for this run."""
    return {
        "address": "local",
        "num_cpus": jobs,
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": folder,
    }


def _own() -> dict[str, str]:
    """The settings by which nobody else can use an instance."""
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # it listens on loopback only
        # Otherwise Ray would put a token for everything into the user's home.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


class _Ray:
    """The process that is Ray's driver, as we ask it."""

    name = "Ray"

    def __init__(
        self, options: dict[str, Any], variables: dict[str, str], stack: contextlib.ExitStack
    ) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        spawn = multiprocessing.get_context("spawn")
        self._process = spawn.Process(target=ray_driver.serve, args=(theirs, options))
        resource_tracker.ensure_running()  # its start would let the interrupt through again
        with _environment(variables), interrupt_held():
            self._process.start()
        theirs.close()
        self._number = 0
        self._silent = False
        self._stack = contextlib.ExitStack()
        stack.callback(_end, self._process, self._connection)

    def keep(self, stack: contextlib.ExitStack) -> None:
        """What ends with the engine."""
        self._stack = stack

    def refusal(self, timeout_s: float) -> str | None:
        """Why Ray cannot be joined; None when it is."""
        try:
            kind, value = self._answer(0, timeout_s)
        except Lost:
            self._process.kill()  # it would go on trying
            return f"no answer within {timeout_s:.0f} s"
        return None if kind == ray_driver.DONE else str(value)

    def _answer(self, number: int, timeout_s: float) -> tuple[str, Any]:
        """What is answered to a request; Lost where nothing is in time."""
        try:
            while not self._silent and self._connection.poll(timeout_s):
                found, kind, value = self._connection.recv()
                if found == number:  # others were asked before an interrupt
                    return kind, value
        except (EOFError, OSError):  # Ray has ended its process
            pass
        self._silent = True
        raise Lost(self.name)

    def _ask(self, timeout_s: float, method: str, *arguments: Any) -> Any:
        self._number += 1
        try:
            if not self._silent:
                self._connection.send((self._number, method, arguments))
        except OSError:
            self._silent = True
        kind, value = self._answer(self._number, timeout_s)
        if kind == ray_driver.EXHAUSTED:
            raise Exhausted(self.name, value)
        if kind == ray_driver.LOST:
            raise Lost(self.name)
        return value

    def count(self) -> int:
        """The processors of the hosts."""
        return int(self._ask(_ANSWER_S, "count"))

    def everywhere(self, fitness: Fitness) -> dict[str, str]:
        """What the probe says on every host."""
        return dict(self._ask(ray_driver.PROBE_S + _ANSWER_S, "everywhere", fitness))

    def submit(self, work: bytes) -> Any:
        """Begins a chunk -> its number."""
        return self._ask(_ANSWER_S, "submit", work)

    def wait(self, handles: Sequence[Any], timeout_s: float) -> Any | None:
        """The first that is done, or None."""
        return self._ask(timeout_s + _ANSWER_S, "wait", handles, timeout_s)

    def result(self, handle: Any) -> list[Any] | Raised | Unfit:
        """What a chunk came to. It may be done once more if its host has just died."""
        while True:
            found: list[Any] | Raised | Unfit | None = self._ask(2 * _ANSWER_S, "result", handle)
            if found is not None:
                return found
            self.check()

    def check(self) -> None:
        """Raises when the head does not answer, or no host is left."""
        if self.count() == 0:
            raise Exhausted(self.name, "has no workers left")

    def abandon(self, run: str, handles: Sequence[Any]) -> None:  # noqa: ARG002 - one by one
        """Cancels the tasks, and waits for the items that workers are in the middle of."""
        with contextlib.suppress(Lost, Exhausted):
            self._ask(2 * ray_driver.ABANDON_S, "abandon", handles)

    def close(self) -> None:
        """Leaves the cluster; an instance of our own ends."""
        self._stack.close()


def _end(process: Any, connection: Connection) -> None:
    """Lets the driver leave, which it does when nobody asks any more; not for ever."""
    connection.close()
    process.join(ray_driver.ABANDON_S)
    if process.is_alive():
        process.kill()
        process.join(_ANSWER_S)
    with contextlib.suppress(ValueError):
        process.close()


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """More variables in the environment, for processes that are started in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
