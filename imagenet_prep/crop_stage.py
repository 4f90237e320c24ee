"""The file layer of ``crop``: raw folders -> ``cropped/``, restartable at any moment.

``crop.jsonl`` in the destination is a journal with one line per source, written as the
results arrive. Its last line about a source is believed as long as the source has the
same size and time, the settings are the same and the crop is there; everything else is
done again. While a run is unfinished a marker lies beside the journal, so that the next
stages do not take a part for the whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from imagenet_prep.artifacts import (
    JOURNAL_NAME,
    SPLITS,
    Progress,
    ToolError,
    UsageError,
    publish,
    save_classes,
)
from imagenet_prep.crop import CropSettings, PictureError, crop_picture
from imagenet_prep.parallel import Failed, Ok, map_ordered, resolve_jobs
from imagenet_prep.places import Place
from imagenet_prep.sources import Collection, Source, scan

UNFINISHED_NAME = ".crop.unfinished"
MAX_SOURCE_BYTES = 1 << 30
_FAILURES_LISTED = 1000
_Facts = tuple[int, int, str, int]  # of a crop: the source's width, height, mode; its bytes
# These say something about this machine and not about one picture.
_FATAL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the journal; ``bytes``, ``mtime_ns``, the size and ``mode`` are the source's."""

    key: str
    crop: str
    label: int
    status: str
    reason: str
    bytes: int
    mtime_ns: int
    settings: str
    width: int = 0
    height: int = 0
    mode: str = ""
    crop_bytes: int = 0


@dataclass(frozen=True)
class CropReport:
    """The outcome of a run; ``ok + failed + skipped`` is the number of sources.

    ``ok`` were cropped now, ``skipped`` earlier, ``failed`` now or earlier; ``reasons``
    counts the failures, commonest first, ``failures`` lists the first 1000.
    """

    ok: int
    failed: int
    skipped: int
    seconds: float
    reasons: dict[str, int]
    failures: list[tuple[str, str]]
    tried: int

    @property
    def images_per_second(self) -> float:
        """Pictures that this run tried, per second."""
        return self.tried / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class _Task:
    """What a worker is told about one picture."""

    key: str
    place: Place
    target: str
    bytes: int
    settings: CropSettings


@dataclass
class _Plan:
    """What an earlier run left: entries to keep; sources to do, with size and time; old crops."""

    kept: list[Entry] = field(default_factory=list)
    todo: list[tuple[Source, int, int]] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    rewrite: bool = False


def run_crop(
    src: Path,
    dst: Path,
    settings: CropSettings,
    *,
    jobs: int | None,
    max_failures: int | None,
    progress: Progress,
) -> CropReport:
    """Crops every picture below ``src`` into ``dst``; does only what is missing or changed.

    A picture that cannot be used is counted and listed. Raises ToolError when more than
    ``max_failures`` failed, when nothing could be cropped, or when the two folders lie in
    one another; OSError when ``dst`` cannot be written.
    """
    start = time.perf_counter()
    _check_places(src, dst)
    collection = scan(src)
    dst.mkdir(parents=True, exist_ok=True)
    with _unfinished(dst):
        save_classes(dst, collection.classes)
        plan = _plan(dst, collection, settings.digest())
        _forget(dst, plan)
        report = _run(dst, plan, settings, resolve_jobs(jobs), max_failures, progress)
        if report.ok + report.skipped == 0:
            reason, count = next(iter(report.reasons.items()))  # the commonest
            raise ToolError(
                f"{src}: none of its {report.failed} files was cropped; {count} of them: {reason}"
            )
    return replace(report, seconds=time.perf_counter() - start)


def list_crops(cropped: Path, split: str) -> list[tuple[str, int]]:
    """(crop path relative to ``cropped``, label) of the good crops of ``split``, sorted.

    Good is what the journal calls ok and what exists. Raises ToolError when the folder was
    not made by ``crop``, when that did not finish, or when the split has no crops.
    """
    if not cropped.is_dir():
        raise UsageError(f"{cropped}: no such folder; make it with imagenet-prep crop")
    journal = cropped / JOURNAL_NAME
    if not journal.is_file():
        raise ToolError(
            f"{cropped}: was not made by imagenet-prep crop (it has no {JOURNAL_NAME}); use that"
        )
    if (cropped / UNFINISHED_NAME).exists():
        raise ToolError(
            f"{cropped}: imagenet-prep crop has not finished there; run the same command "
            "again, it continues"
        )
    good = [entry for entry in read_journal(journal).values() if entry.status == "ok"]
    crops = sorted(
        (entry.crop, entry.label)
        for entry in good
        if entry.crop.startswith(f"{split}/") and (cropped / entry.crop).is_file()
    )
    if not crops:
        raise ToolError(f"{cropped}: has no crops of the split {split}; crop the pictures first")
    return crops


def list_splits(cropped: Path) -> tuple[str, ...]:
    """Those of train, val and test that have crops in ``cropped``."""
    entries = read_journal(cropped / JOURNAL_NAME).values()
    found = {entry.crop.partition("/")[0] for entry in entries if entry.status == "ok"}
    return tuple(split for split in SPLITS if split in found)


def settings_digest(cropped: Path) -> str | None:
    """The digest of the settings that the crops were made with; None if not one and the same."""
    entries = read_journal(cropped / JOURNAL_NAME).values()
    found = {entry.settings for entry in entries if entry.status == "ok"}
    return found.pop() if len(found) == 1 else None


def read_journal(path: Path) -> dict[str, Entry]:
    """The last line about each source, by key; damaged lines are as if never written."""
    entries: dict[str, Entry] = {}
    try:
        with path.open("rb") as file:
            for line in file:
                entry = _parse(line)
                if entry is not None:
                    entries[entry.key] = entry
    except FileNotFoundError:
        pass
    return entries


def _parse(line: bytes) -> Entry | None:
    if not line.endswith(b"\n"):
        return None  # torn: the run was killed while it wrote this
    try:
        entry = Entry(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    for name, kind in _FIELDS:
        if type(getattr(entry, name)) is not kind:
            return None
    inside = PurePosixPath(entry.crop)
    # A path from a damaged line must never lead out of the folder.
    if inside.is_absolute() or ".." in inside.parts or not entry.crop:
        return None
    return entry if entry.status in ("ok", "failed") else None


_FIELDS = [(name, {"int": int, "str": str}[kind]) for name, kind in Entry.__annotations__.items()]


def _line(entry: Entry) -> bytes:
    return json.dumps(asdict(entry), separators=(",", ":")).encode() + b"\n"


def _check_places(src: Path, dst: Path) -> None:
    if dst.exists() and not dst.is_dir():
        raise UsageError(f"{dst}: is a file; name a folder for the crops")
    source, target = src.resolve(), dst.resolve()
    if source == target or source.is_relative_to(target) or target.is_relative_to(source):
        raise UsageError(
            f"{dst}: the raw pictures in {src} and their crops must not lie in one another; "
            "name a folder beside it"
        )


@contextlib.contextmanager
def _unfinished(dst: Path) -> Iterator[None]:
    """Marks ``dst`` as unfinished until the block ends well; one run at a time.

    Takes an earlier run's place: removes what that left half-written when it was killed.
    """
    marker = dst / UNFINISHED_NAME
    continued = marker.exists()
    if not continued and not (dst / JOURNAL_NAME).exists():
        foreign = next((split for split in SPLITS if (dst / split).is_dir()), None)
        if foreign is not None:  # maybe raw pictures, which crops would replace
            raise UsageError(
                f"{dst}: has a folder {foreign} that imagenet-prep crop did not make; name a new "
                "folder for the crops"
            )
    with marker.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ToolError(
                f"{dst}: another imagenet-prep crop is writing there; wait for its end"
            ) from None
        except OSError:
            pass  # a file system without locks
        if continued:
            _remove_temporaries(dst)
        yield
        marker.unlink()


def _remove_temporaries(dst: Path) -> None:
    for top, folders, names in os.walk(dst):
        if Path(top) == dst:
            folders[:] = [name for name in folders if name in SPLITS]
        for name in names:
            if name.startswith(".") and name.endswith(".tmp"):
                Path(top, name).unlink(missing_ok=True)


def _plan(dst: Path, collection: Collection, settings: str) -> _Plan:
    """What is up to date in ``dst`` and what is to be done, in the order of the sources."""
    plan = _Plan()
    entries = read_journal(dst / JOURNAL_NAME)
    for source in collection.sources:
        size, mtime_ns = source.place.stamp()
        entry = entries.pop(source.key, None)
        if entry is None:
            plan.todo.append((source, size, mtime_ns))
        elif not _is_current(dst, entry, source, (size, mtime_ns, settings)):
            plan.stale.append(entry.crop)
            plan.todo.append((source, size, mtime_ns))
        else:
            plan.rewrite |= entry.label != source.label
            plan.kept.append(replace(entry, label=source.label))
    plan.stale.extend(entry.crop for entry in entries.values())
    return plan


def _is_current(dst: Path, entry: Entry, source: Source, now: tuple[int, int, str]) -> bool:
    if (entry.bytes, entry.mtime_ns, entry.settings) != now or entry.crop != source.crop:
        return False
    if entry.status == "failed":
        return True
    try:
        return (dst / entry.crop).stat().st_size == entry.crop_bytes
    except OSError:
        return False


def _forget(dst: Path, plan: _Plan) -> None:
    """Removes crops that no longer belong here, then writes the journal without them.

    Also when nothing is stale: a torn last line is cut off, damaged ones are dropped.
    """
    for crop in set(plan.stale) - {entry.crop for entry in plan.kept}:
        (dst / crop).unlink(missing_ok=True)
    journal = dst / JOURNAL_NAME
    lines = [_line(entry) for entry in plan.kept]
    unchanged = not plan.stale and not plan.rewrite and journal.exists()
    if unchanged and journal.stat().st_size == sum(map(len, lines)):
        return
    with publish(journal) as temporary, temporary.open("wb") as file:
        file.writelines(lines)


def _run(
    dst: Path,
    plan: _Plan,
    settings: CropSettings,
    jobs: int,
    max_failures: int | None,
    progress: Progress,
) -> CropReport:
    start = time.perf_counter()
    total = len(plan.kept) + len(plan.todo)
    failures = _Failures(max_failures)
    for entry in plan.kept:
        if entry.status == "failed":
            failures.add(entry.key, entry.reason)
    skipped = len(plan.kept) - failures.count
    progress("crop", len(plan.kept), total)
    _make_folders(dst, (source for source, _, _ in plan.todo))
    tasks = (
        _Task(source.key, source.place, str(dst / source.crop), size, settings)
        for source, size, _ in plan.todo
    )
    digest = settings.digest()
    with (
        (dst / JOURNAL_NAME).open("ab") as journal,
        contextlib.closing(map_ordered(_crop_one, tasks, jobs=jobs)) as results,
    ):
        for done, (planned, result) in enumerate(zip(plan.todo, results, strict=True), 1):
            _record(journal, planned, result, digest)
            if isinstance(result, Failed):
                failures.add(result.key, result.reason)
            progress("crop", len(plan.kept) + done, total)
    return CropReport(
        ok=total - failures.count - skipped,
        failed=failures.count,
        skipped=skipped,
        seconds=time.perf_counter() - start,
        reasons=dict(failures.reasons.most_common()),
        failures=failures.listed,
        tried=len(plan.todo),
    )


class _Failures:
    """Counts failed pictures by reason, lists the first, and raises beyond the limit."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.count = 0
        self.reasons: Counter[str] = Counter()
        self.listed: list[tuple[str, str]] = []

    def add(self, key: str, reason: str) -> None:
        self.count += 1
        self.reasons[reason] += 1
        if len(self.listed) < _FAILURES_LISTED:
            self.listed.append((key, reason))
        if self.limit is not None and self.count > self.limit:
            common, times = self.reasons.most_common(1)[0]
            raise ToolError(
                f"{self.count} pictures could not be cropped, more than the {self.limit} that "
                f"are allowed; {times} of them: {common} (see {JOURNAL_NAME})"
            )


def _make_folders(dst: Path, sources: Iterable[Source]) -> None:
    for folder in {source.crop.rpartition("/")[0] for source in sources}:
        (dst / folder).mkdir(parents=True, exist_ok=True)


def _record(
    journal: BinaryIO,
    planned: tuple[Source, int, int],
    result: Ok[_Facts] | Failed,
    settings: str,
) -> None:
    """Appends one line. The size and time are those from before the source was read."""
    source, size, mtime_ns = planned
    outcome: tuple[Any, ...]
    if isinstance(result, Failed):
        outcome = ("failed", result.reason, size, mtime_ns, settings)
    else:
        outcome = ("ok", "", size, mtime_ns, settings, *result.value)
    journal.write(_line(Entry(source.key, source.crop, source.label, *outcome)))
    journal.flush()


def _crop_one(task: _Task) -> Ok[_Facts] | Failed:
    """In a worker: one raw picture -> one crop under its final name."""
    if task.bytes > MAX_SOURCE_BYTES:
        return Failed(task.key, "larger than 1 GiB")
    try:
        data = task.place.read()
    except OSError as error:
        if error.errno in _FATAL:
            raise
        return Failed(task.key, f"cannot be read: {error.strerror}")
    try:
        crop = crop_picture(data, task.settings)
    except PictureError as error:
        return Failed(task.key, str(error))
    try:
        _write(Path(task.target), crop.jpeg)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return Failed(task.key, "the name of its crop would be too long")
    return Ok(task.key, (crop.width, crop.height, crop.mode, len(crop.jpeg)))


def _write(target: Path, data: bytes) -> None:
    """As ``publish``, without waiting for the disk, which a million small files cannot.

    A crop that a power cut has emptied has another size than the journal says, so it is
    made again.
    """
    temporary = target.with_name(f".{os.getpid()}-{next(_counter)}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(target)  # a write that fails does not say where
        raise


_counter = itertools.count()
