"""The workers of a command: this machine's, or those of a Dask or Ray cluster.

The cluster itself runs the items of a lost worker again, a bounded number of times. Here:
joining, and the check of every worker before its first item, also of one that joins later: it
must have the same versions and see the same disk, or its results would differ.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import pickle
import secrets
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from imagenet_prep import __version__
from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.core.redact import shown_address
from imagenet_prep.workers.processes import (
    AHEAD,
    Jobs,
    Pool,
    Workers,
    interrupt_held,
    resolve_jobs,
    windowed,
)

T = TypeVar("T")
R = TypeVar("R")

ENGINES = {"dask": "distributed", "ray": "ray"}
"""Backend -> the module that it needs; the extra that installs it has the backend's name."""
_FOLDERS_LOOKED_AT = 1000
_CONNECT_S = 5


class Cluster(Pool):
    """A cluster that was joined; all methods raise ToolError, in bounded time, when it is lost."""

    name = ""

    def count(self) -> int:
        """How many items run at a time; 0 without workers."""
        raise NotImplementedError

    def close(self) -> None:
        """Leaves the cluster; ends one that was started for this command."""
        raise NotImplementedError


@contextlib.contextmanager
def open_workers(
    backend: str,
    address: str | None,
    jobs: int | None,
    *,
    reads: Sequence[Path],
    writes: Sequence[Path] = (),
) -> Iterator[Jobs]:
    """The workers of a command, until the block ends.

    ``backend`` is one of ENGINES: the cluster at ``address``, or without an address one of
    ``jobs`` processes that is started here. ``reads`` and ``writes`` are what the workers
    read (where it exists) and the folders that they write to. Raises UsageError for options
    that exclude each other or an engine that is not installed, and ToolError where no cluster
    answers or it has no workers; a map raises ToolError (``cluster.worker_unfit``) for a worker
    with other versions or without the disk.
    """
    if address is not None and jobs is not None:
        message = "--jobs: the cluster at --address has its own workers; leave out one of the two"
        raise UsageError("cluster.jobs_with_address", message)
    if importlib.util.find_spec(ENGINES[backend]) is None:
        message = f"--backend {backend}: {backend} is not installed"
        remedy = f"install the extra [{backend}] of imagenet-alexnet"
        raise UsageError("cluster.not_installed", f"{message}; {remedy}")
    if address is not None:
        _require_listener(backend.title(), address)
    cluster = _join(backend, address, resolve_jobs(jobs))
    with contextlib.ExitStack() as stack:
        stack.callback(_close, cluster)
        if cluster.count() == 0:
            message = f"the {cluster.name} cluster has no workers; start some, then run it again"
            raise ToolError("cluster.no_workers", message)
        files = tuple(_example(path) for path in reads if path.exists())
        written = tuple(stack.enter_context(_token(folder)) for folder in writes)
        yield _OnCluster(cluster, Fitness(versions(), files, written))


def _join(backend: str, address: str | None, jobs: int) -> Cluster:
    if backend == "dask":
        from imagenet_prep.workers.dask import join
    else:
        from imagenet_prep.workers.ray import join
    return join(address, jobs)


def _close(cluster: Cluster) -> None:
    with interrupt_held():
        cluster.close()


def _require_listener(engine: str, address: str) -> None:
    """ToolError unless something listens at HOST:PORT: the engines would retry for minutes."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        if not parts.hostname or not parts.port:
            raise ValueError("it is not HOST:PORT")
        socket.create_connection((parts.hostname, parts.port), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise not_joined(engine, address, reason) from None


def not_joined(engine: str, address: str | None, reason: str) -> ToolError:
    """The error for a cluster that cannot be joined, or a local one that does not start."""
    if address is None:
        message = f"--backend {engine.lower()}: {engine} does not start here ({reason})"
        return ToolError("cluster.start", f"{message}; try fewer --jobs, or --backend local")
    message = f"--address: no {engine} cluster answers at {shown_address(address)} ({reason})"
    command = {"Dask": "dask scheduler", "Ray": "ray start --head"}[engine]
    return ToolError("cluster.address", f"{message}; name the address that {command} prints")


def lost(engine: str) -> ToolError:
    """The error for a cluster that does not answer."""
    problem = f"the {engine} cluster does not answer any more"
    remedy = "start it again and run the same command, which continues"
    return ToolError("cluster.lost", f"{problem}; {remedy}")


def workers_lost(engine: str, reason: str) -> ToolError:
    """The error for workers that were lost more often than the cluster retries."""
    remedy = "give its workers more memory, then run the same command, which continues"
    return ToolError("cluster.workers_lost", f"the {engine} cluster {reason}; {remedy}")


def unfit_worker(engine: str, reason: str) -> ToolError:
    """The error for a worker that cannot do the work; ``reason`` continues the message."""
    return ToolError("cluster.worker_unfit", f"a worker of the {engine} cluster {reason}")


def cannot_run(engine: str, error: object) -> ToolError:
    """The error for a worker that cannot import the program."""
    reason = f"cannot run imagenet_prep {__version__} ({error}); install the same versions there"
    return unfit_worker(engine, reason)


class _OnCluster(Workers):
    """``Workers`` on a cluster."""

    def __init__(self, cluster: Cluster, fitness: Fitness) -> None:
        self._cluster, self._fitness = cluster, fitness
        self.count = cluster.count()

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
        """See ``Workers``."""
        work: Any = _Work(self._cluster.name, self._fitness, function)
        outcomes = windowed(self._cluster, work, items, ahead=self.count * AHEAD)
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome


class Fitness(NamedTuple):
    """What a worker must have: versions; files that it sees (path, bytes; None: a folder);
    files just written, and their text, in folders that it may write to."""

    versions: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, int | None], ...] = ()
    written: tuple[tuple[str, str], ...] = ()


class _Work(NamedTuple):
    """On a worker: an item -> the result of ``function``, or the exception to raise here.

    An exception is a result, so that no cluster runs its item again.
    """

    engine: str
    fitness: Fitness
    function: Callable[[Any], Any]

    def __call__(self, item: Any) -> Any:
        if self.fitness not in _passed:
            reason = unfit(self.fitness)
            if reason:
                return unfit_worker(self.engine, f"on {socket.gethostname()} {reason}")
            _passed.add(self.fitness)
        try:
            return self.function(item)
        except Exception as error:  # noqa: BLE001 - raised again where the results are used
            return _portable(error)


_passed: set[Fitness] = set()
"""The checks that this process has passed."""


def _portable(error: Exception) -> Exception:
    """The exception, or its text where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - its own code, which may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _example(path: Path) -> tuple[str, int | None]:
    """A file of a folder and its bytes, or the folder where its first folders hold none."""
    if path.is_file():
        return str(path), path.stat().st_size
    for top, folders, names in itertools.islice(os.walk(path), _FOLDERS_LOOKED_AT):
        folders.sort()
        for file in (Path(top, name) for name in sorted(names)):
            # Hidden files and journals change during the run itself.
            if not file.name.startswith((".", "crop.")) and file.is_file():
                return str(file), file.stat().st_size
    return str(path), None


@contextlib.contextmanager
def _token(folder: Path) -> Iterator[tuple[str, str]]:
    """A file in ``folder``, or where that will be, until the block ends: its path and text."""
    place = next(path for path in (folder, *folder.parents) if path.is_dir())
    text = secrets.token_hex(8)
    path = place / f".imagenet-prep.{text}.tmp"
    try:
        path.write_text(text, encoding="ascii")
        yield str(path), text
    finally:
        path.unlink(missing_ok=True)


def versions() -> tuple[tuple[str, str], ...]:
    """The programs that determine the bytes of a result, here: (name, version)."""
    import numpy
    import PIL
    from PIL import features

    return (
        ("imagenet_prep", __version__),
        ("Pillow", PIL.__version__),
        ("libjpeg-turbo", str(features.version_feature("libjpeg_turbo"))),
        ("numpy", numpy.__version__),
    )


def unfit(fitness: Fitness) -> str:
    """Why this process cannot do the work, as the end of a message; empty when it can."""
    here = dict(versions())
    for name, wanted in fitness.versions:
        if here.get(name) != wanted:
            return f"has {name} {here.get(name)}, not {wanted}; install the same versions there"
    remedy = "use a disk that all workers share, under the same path"
    for path, size in fitness.files:
        try:
            status = os.stat(path)  # noqa: PTH116 - a string
        except OSError as error:
            return f"does not see {path} ({error.strerror}); {remedy}"
        if size is not None and status.st_size != size:
            return f"sees another file as {path}; {remedy}"
    for path, text in fitness.written:
        folder = Path(path).parent
        try:
            same = Path(path).read_text(encoding="ascii") == text
        except (OSError, ValueError):
            same = False
        if not same:
            return f"does not see what is written in {folder}; {remedy}"
        if not os.access(folder, os.W_OK):
            return f"may not write in {folder}; change its permissions"
    return ""
