"""The file layer of ``crop``: raw pictures -> ``cropped/``, restartable at any moment.

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
import gc
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from imagenet_prep.artifacts import (
    JOURNAL_NAME,
    SPLITS,
    Progress,
    ToolError,
    UsageError,
    publish,
    quiet,
    save_classes,
)
from imagenet_prep.crop import crop_picture
from imagenet_prep.crop_settings import CropSettings
from imagenet_prep.formats import PictureError
from imagenet_prep.journal import UNFINISHED_NAME, Entry, Journal, end_line, line_of
from imagenet_prep.parallel import Failed, Ok, map_ordered, resolve_jobs
from imagenet_prep.places import WHOLE, Place
from imagenet_prep.sources import Collection, Source, scan

MAX_SOURCE_BYTES = 1 << 30
_FAILURES_LISTED = 1000
# These say something about this machine and not about one picture.
_FATAL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@dataclass(frozen=True)
class CropReport:
    """The outcome of a run; ``ok + failed + skipped`` is the number of sources.

    ``ok`` were cropped now, ``skipped`` earlier, ``failed`` now or earlier; ``reasons``
    counts the failures, commonest first, ``failures`` lists the first 1000; ``remarks``
    counts what was let pass, among all crops.
    """

    ok: int
    failed: int
    skipped: int
    seconds: float
    reasons: dict[str, int]
    failures: list[tuple[str, str]]
    remarks: dict[str, int]
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


@dataclass(frozen=True, slots=True)
class _Made:
    """What a worker says of a crop: its source's size and mode, its bytes, a remark."""

    width: int
    height: int
    mode: str
    bytes: int
    remark: str


@dataclass
class Plan:
    """What an earlier run left: entries to keep, sources to do with size and time, crops that
    go, and whether the journal says just that already."""

    kept: list[Entry] = field(default_factory=list)
    todo: list[tuple[Source, int, int]] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    recorded: bool = False


def run_crop(
    src: Path,
    dst: Path,
    settings: CropSettings,
    *,
    layout: str | None = None,
    classes: Path | None = None,
    jobs: int | None = None,
    max_failures: int | None = None,
    progress: Progress = quiet,
) -> CropReport:
    """Crops every picture of ``src`` into ``dst``; does only what is missing or changed.

    ``layout`` and ``classes`` are those of ``sources.scan``. A picture that cannot be used
    is counted and listed. Raises ToolError when more than ``max_failures`` failed (None:
    never), when nothing could be cropped, or when the two folders lie in one another;
    OSError when ``dst`` cannot be written.
    """
    start = time.perf_counter()
    _check_places(src, dst)
    with contextlib.ExitStack() as stack:
        with _million_objects(stack):
            collection = scan(src, layout=layout, classes=classes)
            dst.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_unfinished(dst))
            save_classes(dst, collection.classes)
            plan = plan_crops(dst, collection, settings.text())
        sum_ = _forget(dst, plan)
        report = _run(dst, plan, sum_, settings, resolve_jobs(jobs), max_failures, progress)
        if report.ok + report.skipped == 0:
            reason, count = next(iter(report.reasons.items()))  # the commonest
            raise ToolError(
                f"{src}: none of its {report.failed} files was cropped; {count} of them: {reason} "
                f"(see {dst / JOURNAL_NAME}); name the pictures' folder or their --layout"
            )
    return replace(report, seconds=time.perf_counter() - start)


@contextlib.contextmanager
def _million_objects(stack: contextlib.ExitStack) -> Iterator[None]:
    """No search for garbage while they are made, and none among them until ``stack`` ends.

    None of them refers to itself, so nothing is found, in half of the time that it all takes.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        stack.callback(gc.unfreeze)
        gc.enable()


def _check_places(src: Path, dst: Path) -> None:
    for place in (dst, *dst.parents):
        if place.exists() and not place.is_dir():
            raise UsageError(f"{place}: is a file; name a folder for the crops")
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
        try:
            yield
        except BaseException:
            _remove_temporaries(dst)  # of workers that were stopped
            raise
        marker.unlink()


def _remove_temporaries(dst: Path) -> None:
    for top, folders, names in os.walk(dst):
        if Path(top) == dst:
            folders[:] = [name for name in folders if name in SPLITS]
        for name in names:
            if name.startswith(".") and name.endswith(".tmp"):
                Path(top, name).unlink(missing_ok=True)


def plan_crops(dst: Path, collection: Collection, settings: str) -> Plan:
    """What is up to date in ``dst`` and what is to be done, in the order of the sources.

    ``settings`` is the text of the crop's settings.
    """
    plan = Plan()
    journal = Journal(dst / JOURNAL_NAME)
    lines = 0
    known: dict[str, Entry] = {}
    for lines, entry in enumerate(journal, 1):  # noqa: B007 - their number is used below
        known[entry.key] = entry
    plan.recorded = journal.whole and lines == len(known)
    folder, file = f"{dst}/", ""
    for source in collection.sources:
        place = source.place
        if place.length == WHOLE or place.file != file:
            (size, mtime_ns), file = place.stamp(), place.file
        else:  # another part of the same archive
            size = place.length
        found = known.pop(source.key, None)
        if found is None:
            plan.todo.append((source, size, mtime_ns))
        elif not _is_current(folder, found, source, (size, mtime_ns, settings)):
            plan.stale.append(found.crop)
            plan.todo.append((source, size, mtime_ns))
        else:
            if found.label != source.label:
                plan.recorded = False
                found = found._replace(label=source.label)
            plan.kept.append(found)
    plan.stale.extend(entry.crop for entry in known.values())
    plan.recorded = plan.recorded and not (plan.todo or plan.stale)
    return plan


def _is_current(folder: str, entry: Entry, source: Source, now: tuple[int, int, str]) -> bool:
    if (entry.bytes, entry.mtime_ns, entry.settings) != now or entry.crop != source.crop:
        return False
    if entry.status == "failed":
        return True
    try:
        return os.stat(folder + entry.crop).st_size == entry.crop_bytes  # noqa: PTH116 - a million
    except OSError:
        return False


def _forget(dst: Path, plan: Plan) -> int:
    """Removes crops that no longer belong here, then writes the journal without them.

    Gives the sum of the checksums of its lines. It has none "complete" while there is
    something to do.
    """
    for crop in set(plan.stale) - {entry.crop for entry in plan.kept if plan.stale}:
        (dst / crop).unlink(missing_ok=True)
    if plan.recorded:
        return 0
    sum_ = 0
    with publish(dst / JOURNAL_NAME) as temporary, temporary.open("wb") as file:
        for entry in plan.kept:
            line, check = line_of(entry)
            file.write(line)
            sum_ += check
        if not plan.todo:
            file.write(end_line(len(plan.kept), sum_))
    return sum_


def _run(
    dst: Path,
    plan: Plan,
    sum_: int,
    settings: CropSettings,
    jobs: int,
    max_failures: int | None,
    progress: Progress,
) -> CropReport:
    start = time.perf_counter()
    total = len(plan.kept) + len(plan.todo)
    failures = _Failures(max_failures, dst / JOURNAL_NAME)
    remarks: Counter[str] = Counter()
    for entry in plan.kept:
        if entry.status == "failed":
            failures.add(entry.key, entry.reason)
        elif entry.reason:
            remarks[entry.reason] += 1
    skipped = len(plan.kept) - failures.count
    progress("crop", len(plan.kept), total)
    if plan.todo:
        _make_folders(dst, (source for source, _, _ in plan.todo))
        _do(dst, plan, sum_, settings, jobs, failures, remarks, progress)
    return CropReport(
        ok=total - failures.count - skipped,
        failed=failures.count,
        skipped=skipped,
        seconds=time.perf_counter() - start,
        reasons=dict(failures.reasons.most_common()),
        failures=failures.listed,
        remarks=dict(remarks.most_common()),
        tried=len(plan.todo),
    )


def _do(
    dst: Path,
    plan: Plan,
    sum_: int,
    settings: CropSettings,
    jobs: int,
    failures: _Failures,
    remarks: Counter[str],
    progress: Progress,
) -> None:
    """Crops what is to be done, and appends a line about each, and the last one, to the journal."""
    tasks = (
        _Task(source.key, source.place, str(dst / source.crop), size, settings)
        for source, size, _ in plan.todo
    )
    made_with, total = settings.text(), len(plan.kept) + len(plan.todo)
    with (
        (dst / JOURNAL_NAME).open("ab") as journal,
        contextlib.closing(map_ordered(_crop_one, tasks, jobs=jobs)) as results,
    ):
        for done, (planned, result) in enumerate(zip(plan.todo, results, strict=True), 1):
            entry = _entry(planned, result, made_with)
            line, check = line_of(entry)
            journal.write(line)
            journal.flush()
            sum_ += check
            if entry.status == "failed":
                failures.add(entry.key, entry.reason)
            elif entry.reason:
                remarks[entry.reason] += 1
            progress("crop", len(plan.kept) + done, total)
        journal.write(end_line(total, sum_))


class _Failures:
    """Counts failed pictures by reason, lists the first, and raises beyond the limit."""

    def __init__(self, limit: int | None, journal: Path) -> None:
        self.limit = limit
        self.journal = journal
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
                f"are allowed; {times} of them: {common} (see {self.journal}); allow more with "
                "--max-failures, or look at the pictures"
            )


def _make_folders(dst: Path, sources: Iterable[Source]) -> None:
    for folder in {source.crop.rpartition("/")[0] for source in sources}:
        (dst / folder).mkdir(parents=True, exist_ok=True)


def _entry(planned: tuple[Source, int, int], result: Ok[_Made] | Failed, settings: str) -> Entry:
    """A line of the journal. The size and time are those from before the source was read."""
    source, size, mtime_ns = planned
    named = (source.key, source.crop, source.label)
    if isinstance(result, Failed):
        return Entry(*named, "failed", result.reason, size, mtime_ns, settings)
    made = result.value
    return Entry(
        *named, "ok", made.remark, size, mtime_ns, settings,
        made.width, made.height, made.mode, made.bytes,
    )  # fmt: skip


def _crop_one(task: _Task) -> Ok[_Made] | Failed:
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
    return Ok(task.key, _Made(crop.width, crop.height, crop.mode, len(crop.jpeg), crop.remark))


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
