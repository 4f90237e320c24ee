"""Dask as a ``Cluster``: futures of a client, with a local cluster where there is no address.

The scheduler runs the items of a lost worker again, and gives an item up when three workers
were lost with it (``distributed.scheduler.allowed-failures``).
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import queue
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from multiprocessing import resource_tracker
from typing import Any

from imagenet_prep.workers.cluster import Cluster, cannot_run, lost, not_joined, workers_lost
from imagenet_prep.workers.processes import interrupt_held

_ANSWER_S = 10  # the scheduler answers within milliseconds
_WORKERS_S = 60  # workers may take so long to start, or to start again
_LOGGERS = (
    "distributed", "distributed.client", "distributed.gc",
    "tornado", "tornado.application", "asyncio",
)  # fmt: skip


def join(address: str | None, jobs: int) -> Cluster:
    """A client of the scheduler at ``address``, or of a cluster of ``jobs`` processes here."""
    import dask

    with contextlib.ExitStack() as stack:
        levels = dict.fromkeys(_LOGGERS, "critical")
        stack.enter_context(dask.config.set({"logging": levels}))
        import distributed

        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        local = None
        if address is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="imagenet-prep-"))
            stack.enter_context(dask.config.set({"temporary-directory": folder}))
            try:
                local = _start(jobs)
            except RuntimeError as error:
                raise not_joined("Dask", None, str(error)) from None
            stack.callback(_close, local)
        with warnings.catch_warnings():
            # The versions that matter are compared by every worker.
            warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)
            client = _connect(local or address)
        stack.callback(_close, client)
        return _Dask(client, stack.pop_all())


def _start(jobs: int) -> Any:
    distributed: Any = importlib.import_module("distributed")
    resource_tracker.ensure_running()  # its start unblocks signals
    # Its threads and the processes that they start leave Ctrl-C to this process.
    with interrupt_held():
        return distributed.LocalCluster(
            n_workers=jobs, threads_per_worker=1, processes=True, host="127.0.0.1",
            protocol="tcp", dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False}, silence_logs=logging.CRITICAL + 1,
        )  # fmt: skip


def _connect(place: Any) -> Any:
    distributed: Any = importlib.import_module("distributed")
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def connect() -> None:
        try:
            answers.put(distributed.Client(place, timeout=_ANSWER_S, set_as_default=False))
        except (OSError, ValueError, TypeError, ImportError) as error:
            answers.put(error)

    # A server that accepts and sends nothing would block the constructor.
    threading.Thread(target=connect, daemon=True).start()
    try:
        found = answers.get(timeout=_ANSWER_S + 2)
    except queue.Empty:
        found = TimeoutError("the server there is not a Dask scheduler")
    if isinstance(found, Exception):
        raise not_joined("Dask", str(place), str(found).partition("\n")[0])
    return found


def _close(client_or_cluster: Any) -> None:
    # A client without its scheduler would look for it until the timeout.
    gone = str(client_or_cluster.status) == "connecting"
    with contextlib.suppress(OSError, TimeoutError, RuntimeError, AssertionError):
        client_or_cluster.close(timeout=1 if gone else _ANSWER_S)


class _Dask(Cluster):
    """A client, and what ends with it."""

    name = "Dask"

    def __init__(self, client: Any, stack: contextlib.ExitStack) -> None:
        super().__init__(client.get_executor(pure=False))
        self._client, self._stack = client, stack
        self._idle_since: float | None = None

    def submit(self, function: Callable[[Any], Any], item: Any) -> Any:
        """Submits an item -> its future."""
        with self._answered():
            return super().submit(function, item)

    def result(self, handle: Any) -> Any:
        """The result of an item, the errors of Dask as ToolError."""
        from distributed.scheduler import KilledWorker

        try:
            return super().result(handle)
        except KilledWorker:
            raise workers_lost(self.name, "gave up an item that ended several workers") from None
        except (ImportError, AttributeError) as error:
            raise cannot_run(self.name, error) from None
        except (CancelledError, OSError):
            raise lost(self.name) from None

    def watch(self) -> None:
        """Raises when the scheduler does not answer, or has had no workers for a minute."""
        if self._workers():
            self._idle_since = None
            return
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if now - self._idle_since > _WORKERS_S:
            raise workers_lost(self.name, "has no workers left")

    def count(self) -> int:
        """The threads of the workers; waits up to a minute for the first worker."""
        until = time.monotonic() + _WORKERS_S
        while not self._workers() and time.monotonic() < until:
            time.sleep(0.2)
        return sum(int(worker["nthreads"]) for worker in self._workers().values())

    def close(self) -> None:
        """Leaves the scheduler; a local cluster ends."""
        self._stack.close()

    def _workers(self) -> dict[str, Any]:
        with self._answered():
            identity = self._client.scheduler.identity
            return dict(self._client.sync(identity, callback_timeout=_ANSWER_S)["workers"])

    @contextlib.contextmanager
    def _answered(self) -> Iterator[None]:
        """The errors of Dask without its scheduler -> ToolError."""
        try:
            yield
        except (OSError, TimeoutError, RuntimeError, AttributeError):
            raise lost(self.name) from None
