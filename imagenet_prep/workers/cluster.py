"""The workers of a Dask or Ray cluster -> ``parallel.Workers``.

What the two have in common is here: chunks on the way, what becomes of their outcomes, the
look at the workers before anything is done, and an end that leaves nothing running. What
differs is in ``cluster_dask`` and ``cluster_ray``, as ``Engine``. When a worker dies, the
engine itself gives its chunks to others, a few times: a chunk that is done twice comes to the
same, because whatever bears its final name is whole. When the cluster dies, nobody waits.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import secrets
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.core.redact import shown_address
from imagenet_prep.workers.processes import CHUNK, Jobs, Workers, interrupt_held, resolve_jobs
from imagenet_prep.workers.remote_worker import Fitness, Raised, Unfit, versions, work_of

T = TypeVar("T")
R = TypeVar("R")

ENGINES = {"dask": "distributed", "ray": "ray"}
"""Backend -> the module that it needs; the extra that installs it has the backend's name."""
_CHUNKS_AHEAD = 4  # per worker
_WATCH_EVERY_S = 3.0
_FOLDERS_LOOKED_AT = 1000
_CONNECT_S = 5


class Lost(ToolError):  # noqa: N818 - it reads as what happened
    """The cluster does not answer any more."""

    def __init__(self, engine: str) -> None:
        super().__init__(
            f"the {engine} cluster does not answer any more; start it again and run the same "
            "command, which continues"
        )


class Exhausted(ToolError):  # noqa: N818 - it reads as what happened
    """Workers have died, more often or more of them than the cluster makes up for."""

    def __init__(self, engine: str, reason: str) -> None:
        super().__init__(
            f"the {engine} cluster {reason}; give its workers more memory, perhaps, then run the "
            "same command, which continues"
        )


class Engine(Protocol):
    """A cluster: it runs ``run_chunk`` of some bytes on any worker, again where one died.

    Whatever cannot be said of one chunk raises ToolError: Lost, Exhausted. No method waits
    without a bound, ``result`` of what ``wait`` has given included.
    """

    name: str

    def count(self) -> int:
        """How many chunks the workers work on at a time; 0 while there is none."""

    def everywhere(self, fitness: Fitness) -> dict[str, str]:
        """What ``probe_of(fitness)`` says on every host or worker, by name."""

    def submit(self, work: bytes) -> Any:
        """Begins a chunk -> its handle."""

    def wait(self, handles: Sequence[Any], timeout_s: float) -> Any | None:
        """The first of the handles that is done, or None if none is in time."""

    def result(self, handle: Any) -> list[Any] | Raised | Unfit:
        """What a chunk that is done came to."""

    def check(self) -> None:
        """Raises when the cluster does not answer or has no workers."""

    def abandon(self, run: str, handles: Sequence[Any]) -> None:
        """Ends what is on the way, and waits a little for what workers are in the middle of."""

    def close(self) -> None:
        """Leaves the cluster; one that was started for this goes."""


class Cluster:
    """``parallel.Workers`` on an engine; ``fitness`` is what its workers are asked for."""

    def __init__(self, engine: Engine, fitness: Fitness) -> None:
        self._engine = engine
        self._fitness = fitness
        self._count = max(1, engine.count())

    @property
    def count(self) -> int:
        """How many items the workers work on at a time, when the cluster was joined."""
        return self._count

    def map_unordered(
        self, function: Callable[[T], R], items: Iterable[T], *, chunk: int = CHUNK
    ) -> Generator[R, None, None]:
        """``function`` of every item, as the results come."""
        return self._map(function, items, chunk, ordered=False)

    def map_ordered(
        self, function: Callable[[T], R], items: Iterable[T], *, chunk: int = CHUNK
    ) -> Generator[R, None, None]:
        """``function`` of every item, in the order of the items."""
        return self._map(function, items, chunk, ordered=True)

    def _map(
        self, function: Callable[[T], R], items: Iterable[T], chunk: int, *, ordered: bool
    ) -> Generator[R, None, None]:
        run = secrets.token_hex(8)
        source = iter(items)
        chunks = iter(lambda: list(itertools.islice(source, chunk)), [])
        work = (work_of(run, self._fitness, function, part) for part in chunks)
        pending: deque[Any] = deque()
        try:
            for one in itertools.islice(work, self._count * _CHUNKS_AHEAD):
                pending.append(self._engine.submit(one))
            while pending:
                handle = self._first_done([pending[0]] if ordered else list(pending))
                pending.remove(handle)
                results = self._results(handle)
                pending.extend(self._engine.submit(one) for one in itertools.islice(work, 1))
                yield from results
        finally:
            if pending:
                with interrupt_held():
                    self._engine.abandon(run, list(pending))

    def _first_done(self, handles: Sequence[Any]) -> Any:
        while True:
            handle = self._engine.wait(handles, _WATCH_EVERY_S)
            if handle is not None:
                return handle
            self._engine.check()

    def _results(self, handle: Any) -> list[Any]:
        found = self._engine.result(handle)
        if isinstance(found, Raised):
            raise found.error
        if isinstance(found, Unfit):
            raise ToolError(f"a worker of the {self._engine.name} cluster {found.reason}")
        return found


@contextlib.contextmanager
def open_workers(
    backend: str,
    address: str | None,
    jobs: int | None,
    *,
    reads: Sequence[Path],
    writes: Sequence[Path] = (),
) -> Iterator[Jobs]:
    """Who does the work of a command: workers that are there until the block ends.

    ``backend`` is local, or one of ENGINES. With ``address`` they are those of the cluster there,
    without it ``jobs`` processes that are started here. ``reads`` and ``writes`` are what
    they are to read (where it exists) and the folders to write in. Raises UsageError for
    options that do not go together or an engine that is not installed, and ToolError where
    nobody answers at the address, or a worker is not fit.
    """
    if backend == "local":
        if address is not None:
            raise UsageError(
                "--address: names a cluster, and --backend local has none; add --backend dask "
                "or ray"
            )
        yield jobs
        return
    if address is not None and jobs is not None:
        raise UsageError(
            "--jobs: the cluster at --address has the workers that it has; leave one of the two out"
        )
    if importlib.util.find_spec(ENGINES[backend]) is None:
        raise UsageError(
            f"--backend {backend}: {backend} is not installed; install the extra [{backend}] of "
            "imagenet-alexnet"
        )
    with contextlib.ExitStack() as stack:
        engine = _join(backend, address, resolve_jobs(jobs))
        stack.callback(_close, engine)
        yield _fit_workers(engine, reads, writes)


def _join(backend: str, address: str | None, jobs: int) -> Engine:
    if backend == "dask":
        from imagenet_prep.workers import dask as cluster_dask

        return cluster_dask.join(address, jobs)
    from imagenet_prep.workers import ray as cluster_ray

    return cluster_ray.join(address, jobs)


def _close(engine: Engine) -> None:
    with interrupt_held():
        engine.close()


def _fit_workers(engine: Engine, reads: Sequence[Path], writes: Sequence[Path]) -> Workers:
    """The engine's workers, each of which has been asked for what it needs."""
    if engine.count() == 0:
        raise ToolError(f"the {engine.name} cluster has no workers; start some, then run it again")
    files = tuple(_example(folder) for folder in reads if folder.exists())
    fitness = Fitness(versions(), files)
    with contextlib.ExitStack() as stack:
        written = tuple(stack.enter_context(_token(folder)) for folder in writes)
        asked = Fitness(versions(), files, written)
        for name, reason in sorted(engine.everywhere(asked).items()):
            if reason:
                raise ToolError(f"the worker {name} of the {engine.name} cluster {reason}")
    return Cluster(engine, fitness)


def require_somebody(engine: str, address: str, command: str) -> None:
    """ToolError unless somebody listens at HOST:PORT; ``command`` is what would.

    The engines themselves would try again and again, for longer than one likes to wait.
    """
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        if not parts.hostname or not parts.port:
            raise ValueError("it is not HOST:PORT")
        socket.create_connection((parts.hostname, parts.port), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ToolError(
            f"--address: no {engine} cluster answers at {shown_address(address)} "
            f"({reason}); start one, or name the address that {command} shows"
        ) from None


def _example(path: Path) -> tuple[str, int | None]:
    """A file of a folder, and its bytes; or the folder, where there is none among its first."""
    if path.is_file():
        return str(path), path.stat().st_size
    for top, folders, names in itertools.islice(os.walk(path), _FOLDERS_LOOKED_AT):
        folders.sort()
        for name in sorted(names):
            file = Path(top, name)
            # Hidden ones come and go with the run itself, and so do the journal's lines.
            if not name.startswith(".") and not name.endswith(".jsonl") and file.is_file():
                return str(file), file.stat().st_size
    return str(path), None


@contextlib.contextmanager
def _token(folder: Path) -> Iterator[tuple[str, str]]:
    """A file for a moment, where ``folder`` is or will be: its path and text."""
    place = next(path for path in (folder, *folder.parents) if path.is_dir())
    text = secrets.token_hex(8)
    path = place / f".imagenet-prep.{text}.tmp"
    try:
        path.write_text(text, encoding="ascii")
        yield str(path), text
    finally:
        path.unlink(missing_ok=True)
