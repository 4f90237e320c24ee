"""The workers of a command: this machine's, or those of a Dask or Ray cluster.

The cluster itself gives the chunks of a lost worker to others, a bounded number of times. Here:
joining, and the check that each worker has the same versions and sees the same disk.
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
    chunked,
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
        """How many chunks run at a time; 0 without workers."""
        raise NotImplementedError

    def everywhere(self, probe: Callable[[], str]) -> dict[str, str]:
        """``probe()`` on every worker or host, by its name."""
        raise NotImplementedError

    def close(self) -> None:
        """Leaves the cluster; ends one that was started for this command."""
        raise NotImplementedError


def lost(name: str) -> ToolError:
    """The error for a cluster that does not answer."""
    problem = f"the {name} cluster does not answer any more"
    remedy = "start it again and run the same command, which continues"
    return ToolError("cluster.lost", f"{problem}; {remedy}")


def workers_lost(name: str, reason: str) -> ToolError:
    """The error for workers that were lost more often than the cluster retries."""
    remedy = "give its workers more memory, then run the same command, which continues"
    return ToolError("cluster.workers_lost", f"the {name} cluster {reason}; {remedy}")


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

    ``backend`` is local, or one of ENGINES: the cluster at ``address``, or without an address
    one of ``jobs`` processes that is started here. ``reads`` and ``writes`` are what the workers
    read (where it exists) and the folders that they write to. Raises UsageError for options
    that exclude each other or an engine that is not installed, and ToolError where no cluster
    answers, it has no workers, or a worker has other versions or does not see the disk.
    """
    if backend == "local":
        if address is not None:
            message = "--address: needs a cluster; add --backend dask or --backend ray"
            raise UsageError("cluster.address_without_backend", message)
        yield jobs
        return
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
    try:
        yield _OnCluster(cluster, _checked(cluster, reads, writes))
    finally:
        with interrupt_held():
            cluster.close()


def _join(backend: str, address: str | None, jobs: int) -> Cluster:
    if backend == "dask":
        from imagenet_prep.workers.dask import join
    else:
        from imagenet_prep.workers.ray import join
    return join(address, jobs)


def not_joined(engine: str, address: str | None, reason: str) -> ToolError:
    """The error for a cluster that cannot be joined, or a local one that does not start."""
    if address is None:
        message = f"--backend {engine.lower()}: {engine} does not start here ({reason})"
        return ToolError("cluster.start", f"{message}; try fewer --jobs, or --backend local")
    message = f"--address: no {engine} cluster answers at {shown_address(address)} ({reason})"
    command = {"Dask": "dask scheduler", "Ray": "ray start --head"}[engine]
    return ToolError("cluster.address", f"{message}; name the address that {command} prints")


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


class _OnCluster(Workers):
    """``Workers`` on a cluster."""

    def __init__(self, cluster: Cluster, fitness: Fitness) -> None:
        self._cluster, self._fitness = cluster, fitness
        self.count = cluster.count()

    def _map(
        self, function: Callable[[T], R], items: Iterable[T], chunk: int, *, ordered: bool
    ) -> Generator[R, None, None]:
        work: Any = _Work(self._cluster.name, self._fitness, function)
        chunks = ([part] for part in chunked(items, chunk))
        ahead = self.count * AHEAD
        outcomes = windowed(self._cluster, work, chunks, ahead=ahead, ordered=ordered)
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome
                yield from outcome


class Fitness(NamedTuple):
    """What a worker must have: versions; files that it sees (path, bytes; None: a folder);
    files just written, and their text, in folders that it may write to."""

    versions: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, int | None], ...] = ()
    written: tuple[tuple[str, str], ...] = ()


class _Work(NamedTuple):
    """On a worker: items -> results of ``function``, or the exception that this process raises.

    An exception is a result, so that no cluster tries its items again.
    """

    engine: str
    fitness: Fitness
    function: Callable[[Any], Any]

    def __call__(self, items: Sequence[Any]) -> list[Any] | Exception:
        reason = "" if self.fitness in _passed else unfit(self.fitness)
        if reason:
            return unfit_worker("a worker", self.engine, reason)
        _passed.add(self.fitness)
        try:
            return [self.function(item) for item in items]
        except Exception as error:  # noqa: BLE001 - raised again where the results are used
            return _portable(error)


_passed: set[Fitness] = set()
"""The checks that this process has passed: workers that join later are checked as well."""


def _portable(error: Exception) -> Exception:
    """The exception, or its text where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - its own code, which may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def unfit_worker(worker: str, engine: str, reason: str) -> ToolError:
    """The error for a worker that cannot do the work; ``reason`` continues its name."""
    return ToolError("cluster.worker_unfit", f"{worker} of the {engine} cluster {reason}")


def _checked(cluster: Cluster, reads: Sequence[Path], writes: Sequence[Path]) -> Fitness:
    """Checks every worker -> what those that join later must have; ToolError for an unfit one."""
    if cluster.count() == 0:
        message = f"the {cluster.name} cluster has no workers; start some, then run it again"
        raise ToolError("cluster.no_workers", message)
    wanted = Fitness(versions(), tuple(_example(path) for path in reads if path.exists()))
    with contextlib.ExitStack() as stack:
        written = tuple(stack.enter_context(_token(folder)) for folder in writes)
        found = cluster.everywhere(probe_of(wanted._replace(written=written)))
    for worker, reason in sorted(found.items()):
        if reason:
            raise unfit_worker(f"the worker {worker}", cluster.name, reason)
    return wanted


def _example(path: Path) -> tuple[str, int | None]:
    """A file of a folder and its bytes, or the folder where its first folders hold none."""
    if path.is_file():
        return str(path), path.stat().st_size
    for top, folders, names in itertools.islice(os.walk(path), _FOLDERS_LOOKED_AT):
        folders.sort()
        for file in (Path(top, name) for name in sorted(names)):
            # Hidden files and journals change during the run itself.
            changes = file.name.startswith((".", "crop.sqlite")) or file.suffix == ".jsonl"
            if not changes and file.is_file():
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

    from imagenet_prep.jpeg.turbo import decoder_name

    return (
        ("imagenet_prep", __version__),
        ("Pillow", PIL.__version__),
        ("libjpeg-turbo", str(features.version_feature("libjpeg_turbo"))),
        ("numpy", numpy.__version__),
        ("the JPEG decoder", decoder_name()),
    )


def cannot_run(error: object) -> str:
    """The reason of a worker that cannot import or unpickle the work."""
    return f"cannot run the program ({error}); install the same versions there"


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


def probe_of(fitness: Fitness) -> Callable[[], str]:
    """``unfit`` as a function that is sent by value, so that it runs where the package is not."""
    parts: Any = tuple(fitness)  # Fitness itself is of a module that may be missing there
    wanted = dict(fitness.versions)["imagenet_prep"]

    def probe() -> str:
        try:
            import imagenet_prep

            if imagenet_prep.__version__ != wanted:
                return f"has imagenet_prep {imagenet_prep.__version__}, not {wanted}; update it"
            from imagenet_prep.workers import cluster

            return cluster.unfit(cluster.Fitness(*parts))
        except ImportError as error:
            return f"cannot run the program ({error}); install version {wanted} there"

    return probe
