"""Dask (distributed) as an ``Engine``: futures of a client, and a local cluster of processes.

The scheduler gives the chunks of a worker that died to others, and gives a chunk up when
three workers have died at it (``distributed.scheduler.allowed-failures``).
"""

from __future__ import annotations

import contextlib
import logging
import queue
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any

from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.redact import shown_address
from imagenet_prep.workers.cluster import Engine, Exhausted, Lost, require_somebody
from imagenet_prep.workers.processes import interrupt_held
from imagenet_prep.workers.remote_worker import (
    Fitness,
    Raised,
    Unfit,
    probe_of,
    run_chunk,
    stop_run,
)

_CONNECT_S = 10
_ANSWER_S = 10  # the scheduler answers within milliseconds
_PROBE_S = 60  # a worker may have to import for the first time, from a busy disk
_WORKERS_S = 60  # that workers may take to come, or to come again
_ABANDON_S = 10
_SPEAKERS = ("distributed", "distributed.client", "distributed.gc", "tornado", "asyncio")
_SILENT = logging.CRITICAL + 1


def join(address: str | None, jobs: int) -> Engine:
    """A client of the scheduler at ``address``, or of a cluster of ``jobs`` processes here."""
    if address is not None:
        require_somebody("Dask", address, "dask scheduler")
    import dask

    levels = dict.fromkeys(_SPEAKERS, "critical")
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({"logging": levels}))
        import distributed

        for name in _SPEAKERS:
            logging.getLogger(name).setLevel(_SILENT)
        cluster = None
        if address is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="imagenet-prep-"))
            stack.enter_context(dask.config.set({"temporary-directory": folder}))
            try:
                cluster = _start(jobs)
            except RuntimeError as error:  # whatever a process of its own did not start for
                raise ToolError(
                    f"--backend dask: Dask does not start here ({error}); try fewer --jobs, or "
                    "--backend local"
                ) from None
            stack.callback(_close, cluster)
        with warnings.catch_warnings():
            # Other versions of Dask; what matters to us is asked by ourselves.
            warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)
            client = _connect(cluster or str(address))
        stack.callback(_close, client)
        return _Dask(client, stack.pop_all())


def _start(jobs: int) -> Any:
    import distributed

    local: Any = distributed.LocalCluster
    resource_tracker.ensure_running()  # its start would let the interrupt through again
    # Its threads and the processes that they start leave Ctrl-C to this one.
    with interrupt_held():
        return local(
            n_workers=jobs,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            protocol="tcp",
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            silence_logs=_SILENT,
        )


def _connect(place: Any) -> Any:
    import distributed

    client: Any = distributed.Client
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def connect() -> None:
        try:
            answers.put(client(place, timeout=_CONNECT_S, set_as_default=False))
        except (OSError, ValueError, TypeError, ImportError) as error:
            answers.put(error)

    # Somebody else than Dask, who listens and says nothing, would be waited for for ever.
    threading.Thread(target=connect, daemon=True).start()
    try:
        found = answers.get(timeout=_CONNECT_S + 2)
    except queue.Empty:
        found = TimeoutError("what listens there does not talk as Dask does")
    if not isinstance(found, Exception):
        return found
    reason = str(found).partition("\n")[0]
    raise ToolError(
        f"--address: no Dask cluster answers at {shown_address(str(place))} ({reason}); "
        "start one, or name the address that dask scheduler shows"
    )


def _close(client_or_cluster: Any) -> None:
    # A client that has lost its scheduler would look for it all the time that it is given.
    lost = str(client_or_cluster.status) == "connecting"
    with contextlib.suppress(OSError, TimeoutError, RuntimeError, AssertionError):
        client_or_cluster.close(timeout=1 if lost else _ABANDON_S)


class _Dask:
    """A client, and what ends with it."""

    name = "Dask"

    def __init__(self, client: Any, stack: contextlib.ExitStack) -> None:
        self._client = client
        self._stack = stack
        self._done = threading.Condition()
        self._finished: set[str] = set()  # keys
        self._idle_since: float | None = None

    def count(self) -> int:
        """The threads of the workers; waits a while for the first one."""
        until = time.monotonic() + _WORKERS_S
        while not self._workers() and time.monotonic() < until:
            time.sleep(0.2)
        return sum(int(worker["nthreads"]) for worker in self._workers().values())

    def _workers(self) -> dict[str, Any]:
        with self._answered():
            client = self._client
            found = client.sync(client.scheduler.identity, callback_timeout=_ANSWER_S)
            return dict(found["workers"])

    @contextlib.contextmanager
    def _answered(self) -> Iterator[None]:
        """What Dask raises where the scheduler is gone, or is silent for too long, is Lost."""
        try:
            yield
        except (OSError, TimeoutError, RuntimeError, AttributeError) as error:
            if isinstance(error, ToolError):
                raise
            raise Lost(self.name) from None

    def everywhere(self, fitness: Fitness) -> dict[str, str]:
        """What the probe says on every worker."""
        probe = probe_of(fitness)
        with self._answered():
            client = self._client
            found = client.sync(client._run, probe, on_error="return", callback_timeout=_PROBE_S)
        return {name: _said(said) for name, said in found.items()}

    def submit(self, work: bytes) -> Any:
        """Begins a chunk -> its future."""
        with self._answered():
            future = self._client.submit(run_chunk, work, pure=False)
            future.add_done_callback(self._note)
            return future

    def _note(self, future: Any) -> None:
        with self._done:
            self._finished.add(future.key)
            self._done.notify_all()

    def wait(self, handles: Sequence[Any], timeout_s: float) -> Any | None:
        """The first future that is done, or None."""
        with self._done:
            self._done.wait_for(
                lambda: any(future.key in self._finished for future in handles), timeout_s
            )
            return next((f for f in handles if f.key in self._finished), None)

    def result(self, handle: Any) -> list[Any] | Raised | Unfit:
        """What a future came to. It may be computed once more if its worker has just died."""
        from concurrent.futures import CancelledError

        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker

        while True:
            try:
                found: list[Any] | Raised | Unfit = handle.result(timeout=_ANSWER_S)
            except TimeoutError:
                self.check()
                continue
            except KilledWorker:
                raise Exhausted(self.name, "gave up work at which several workers died") from None
            except (CancelledError, FutureCancelledError, OSError):
                raise Lost(self.name) from None
            except ImportError as error:
                return Unfit(f"cannot import what the work needs ({error}); install it there")
            with self._done:
                self._finished.discard(handle.key)
            return found

    def check(self) -> None:
        """Raises when the scheduler does not answer, or has had no workers for a while."""
        if self._workers():
            self._idle_since = None
            return
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if now - self._idle_since > _WORKERS_S:
            raise Exhausted(self.name, "has no workers left")

    def abandon(self, run: str, handles: Sequence[Any]) -> None:
        """Cancels the futures, and waits for the items that workers are in the middle of."""
        until = time.monotonic() + _ABANDON_S
        client = self._client
        if client.status != "running":
            return
        with contextlib.suppress(Lost), self._answered():
            client.sync(client._cancel, list(handles), force=True, callback_timeout=_ANSWER_S)
            while time.monotonic() < until:
                going = client.sync(
                    client._run, stop_run, run, on_error="return", callback_timeout=_ANSWER_S
                )
                if not any(isinstance(chunks, int) and chunks for chunks in going.values()):
                    return
                time.sleep(0.05)

    def close(self) -> None:
        """Leaves the scheduler; a cluster of our own ends."""
        self._stack.close()


def _said(said: Any) -> str:
    """A probe's answer, or the exception that came in its place, as a reason."""
    if isinstance(said, str):
        return said
    return f"cannot run this program ({said}); install the same versions there"
