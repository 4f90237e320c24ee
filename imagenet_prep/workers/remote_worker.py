"""What a cluster's worker runs of us: a chunk of items, and whether it is fit for that.

A worker is fit when it has the same programs that bytes and bits depend on, and sees the disk
that the pictures are on.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagenet_prep import __version__


@dataclass(frozen=True, slots=True)
class Fitness:
    """What a worker must have: versions by name, and files of the shared disk.

    ``files`` are (path, its bytes, None for a folder), ``written`` are (path, text) of files
    that this run has just written, in folders that a worker will write to.
    """

    versions: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, int | None], ...]
    written: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why a worker cannot do the work, as the rest of a sentence that begins with its name."""

    reason: str


@dataclass(frozen=True, slots=True)
class Raised:
    """The exception that a function of ours raised, which a cluster must not try again."""

    error: BaseException


def versions() -> tuple[tuple[str, str], ...]:
    """The programs that make our bytes, as they are here: (name, version)."""
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


def unfit(fitness: Fitness) -> str:
    """The reason why this process cannot do the work, or nothing."""
    found = dict(versions())
    for name, version in fitness.versions:
        if found.get(name) != version:
            return (
                f"has {name} {found.get(name)} where here is {version}; install the same "
                "versions there"
            )
    remedy = "use a disk that all of them share, under the same path"
    for path, size in fitness.files:
        try:
            status = os.stat(path)  # noqa: PTH116 - as in places
        except OSError as error:
            return f"does not see {path} ({error.strerror}); {remedy}"
        if size is not None and status.st_size != size:
            return f"sees another file than this one as {path}; {remedy}"
    for path, text in fitness.written:
        try:
            seen = Path(path).read_text(encoding="ascii")
        except (OSError, ValueError):
            seen = ""
        folder = Path(path).parent
        if seen != text:
            return f"does not see what is written in {folder}; {remedy}"
        if not os.access(folder, os.W_OK):
            return f"may not write in {folder}; allow it there"
    return ""


def probe_of(fitness: Fitness) -> Callable[[], str]:
    """``unfit`` as a function that can be sent to where this package is missing.

    It is sent by value, because it is a function within a function.
    """
    version = dict(fitness.versions)["imagenet_prep"]
    parts = (fitness.versions, fitness.files, fitness.written)

    def probe() -> str:
        try:
            import imagenet_prep
        except ImportError:
            return f"has no imagenet_prep; install version {version} there"
        if imagenet_prep.__version__ != version:
            there = imagenet_prep.__version__
            return f"has imagenet_prep {there} where here is {version}; install the same there"
        try:
            from imagenet_prep.workers import remote_worker as cluster_worker

            return cluster_worker.unfit(cluster_worker.Fitness(*parts))
        except ImportError as error:
            return f"cannot import what the work needs ({error}); install the same as here"

    return probe


_fit: dict[Fitness, None] = {}  # the last few that this process was found fit for


def _unfit_once(fitness: Fitness) -> str:
    """``unfit``, also for workers that join later; only a good answer is remembered."""
    if fitness in _fit:
        return ""
    reason = unfit(fitness)
    if not reason:
        while len(_fit) >= 4:
            _fit.pop(next(iter(_fit)), None)
        _fit[fitness] = None
    return reason


def work_of(run: str, fitness: Fitness, function: Callable[[Any], Any], items: Any) -> bytes:
    """What ``run_chunk`` is given. ``run`` names the run that it is a part of."""
    return pickle.dumps((run, fitness, function, items), pickle.HIGHEST_PROTOCOL)


def run_chunk(work: bytes) -> list[Any] | Raised | Unfit:
    """``function`` of the items, whatever it comes to; doing it twice does no harm."""
    run, fitness, function, items = pickle.loads(work)
    reason = _unfit_once(fitness)
    if reason:
        return Unfit(reason)
    _running.begin(run)
    try:
        return _results(run, function, items)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is raised where it is looked at
        return Raised(_portable(error))
    finally:
        _running.end(run)


def _results(run: str, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    results = []
    for item in items:
        if _running.is_stopped(run):
            break  # nobody will look at it
        results.append(function(item))
    return results


def _portable(error: Exception) -> Exception:
    """The exception, or what it says where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - its own code, which may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _Running:
    """The chunks that this process has begun, by run, and the runs that are to end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunks: dict[str, int] = {}
        self._stopped: set[str] = set()

    def begin(self, run: str) -> None:
        with self._lock:
            self._chunks[run] = self._chunks.get(run, 0) + 1

    def end(self, run: str) -> None:
        with self._lock:
            self._chunks[run] -= 1

    def is_stopped(self, run: str) -> bool:
        return run in self._stopped

    def stop(self, run: str) -> int:
        with self._lock:
            self._stopped.add(run)
            return self._chunks.get(run, 0)


_running = _Running()


def stop_run(run: str) -> int:
    """Ends the run's chunks here after the item that they are at -> how many still go on."""
    return _running.stop(run)
