"""The file layer of ``crop``: raw pictures -> ``cropped/``, restartable at any moment.

``crop.jsonl`` in the destination is a journal with one line per source, written as the
results arrive. Its last line about a source is believed as long as the source has the
same size and time, the settings are the same and the crop is there; everything else is
done again, and so is what could not be read. While a run is unfinished a marker lies
beside the journal, so that the next stages do not take a part for the whole.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from imagenet_prep.core.errors import Progress, ToolError, quiet
from imagenet_prep.crop.folder import check_places, keep_classes, temporary_mark, unfinished
from imagenet_prep.crop.formats import MachineError, PictureError
from imagenet_prep.crop.image import crop_picture
from imagenet_prep.crop.plan import Plan, Planned, plan_crops
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.dataset.journal import End, Entry, Part, journal_name, line_of
from imagenet_prep.sources.scan import Source, scan
from imagenet_prep.storage import prefetch
from imagenet_prep.storage.byte_range import Place
from imagenet_prep.storage.location import Location
from imagenet_prep.storage.prefetch import worth_fetching
from imagenet_prep.workers.processes import CHUNK, Failed, Jobs, Local, Ok, Workers, workers_of

MAX_SOURCE_BYTES = 1 << 30
UNREAD = -2
"""The time of a source that could not be read: no source has it, so it is tried again."""
# These say something about this machine and not about one picture.
_FATAL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@dataclass(frozen=True)
class CropReport:
    """The outcome of a run; ``ok + failed + skipped`` is the number of sources.

    ``ok`` were cropped now, ``skipped`` earlier, ``failed`` now or earlier; ``reasons``
    counts the failures, commonest first, ``failures`` lists the first 1000; ``remarks``
    counts what was let pass, among all crops; ``classes`` is the number of classes found.
    """

    ok: int
    failed: int
    skipped: int
    seconds: float
    reasons: dict[str, int]
    failures: list[tuple[str, str]]
    remarks: dict[str, int]
    tried: int
    classes: int = 0

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
    mark: str
    ahead: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class _Made:
    """What a worker says of a crop: its source's size and mode, its bytes, a remark."""

    width: int
    height: int
    mode: str
    bytes: int
    remark: str


class _Unread(Failed):
    """It was not read or not decoded here, which says nothing of what it is."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class _Job:
    """What a run is about."""

    dst: Path
    settings: CropSettings
    part: Part | None
    max_failures: int | None

    @property
    def journal(self) -> Path:
        return self.dst / journal_name(self.part)


def run_crop(
    src: Location,
    dst: Path,
    settings: CropSettings,
    *,
    layout: str | None = None,
    classes: Location | None = None,
    jobs: Jobs = None,
    max_failures: int | None = None,
    part: Part | None = None,
    progress: Progress = quiet,
) -> CropReport:
    """Crops every picture of ``src`` into ``dst``; does only what is missing or changed.

    ``layout`` and ``classes`` are those of ``sources.scan``. With ``part`` only the sources of
    that part, with a journal of its own; a run without takes over what the parts' say. A
    picture that cannot be used is counted and listed. Raises ToolError when more than
    ``max_failures`` failed (None: never), when nothing could be cropped, or when the two
    folders lie in one another; OSError when ``dst`` cannot be written.
    """
    start = time.perf_counter()
    check_places(src, dst)
    collection = scan(src, layout=layout, classes=classes)
    _ = collection.sources  # all faults of the source before anything is written
    dst.mkdir(parents=True, exist_ok=True)
    workers = workers_of(jobs)
    with unfinished(dst, part, cluster=not isinstance(workers, Local)):
        keep_classes(dst, collection.classes, part)
        plan = plan_crops(dst, collection, settings.text(), part)
        job = _Job(dst, settings, part, max_failures)
        report = _run(job, plan, workers, progress)
        # All of a small part may fail where the whole does not.
        if part is None and report.failed and report.ok + report.skipped == 0:
            reason, count = next(iter(report.reasons.items()))  # the commonest
            raise ToolError(
                f"{src}: none of its {report.failed} files was cropped; {count} of them: {reason} "
                f"(see {job.journal}); name the pictures' folder or their --layout"
            )
    found = len(collection.classes.names)
    return replace(report, seconds=time.perf_counter() - start, classes=found)


def _run(job: _Job, plan: Plan, workers: Workers, progress: Progress) -> CropReport:
    start = time.perf_counter()
    outcomes = plan.outcomes
    outcomes.check(job.max_failures, job.journal)
    skipped = plan.kept - outcomes.failed
    progress("crop", plan.kept, plan.total)
    if len(plan.todo):
        _make_folders(job.dst, (planned.source for planned in plan.todo))
        _do(job, plan, workers, progress)
    return CropReport(
        ok=plan.total - outcomes.failed - skipped,
        failed=outcomes.failed,
        skipped=skipped,
        seconds=time.perf_counter() - start,
        reasons=dict(outcomes.reasons.most_common()),
        failures=outcomes.listed,
        remarks=dict(outcomes.remarks.most_common()),
        tried=len(plan.todo),
    )


def _do(job: _Job, plan: Plan, workers: Workers, progress: Progress) -> None:
    """Crops what is to be done, and appends a line about each, and the last one, to the journal."""
    tasks = _tasks(job, plan.todo, temporary_mark(job.part))
    made_with, sum_ = job.settings.text(), plan.sum
    with (
        job.journal.open("ab") as journal,
        contextlib.closing(workers.map_ordered(_crop_one, tasks)) as results,
    ):
        for done, (planned, result) in enumerate(zip(plan.todo, results, strict=True), 1):
            entry = _entry(planned, result, made_with)
            line, check = line_of(entry)
            journal.write(line)
            journal.flush()
            sum_ += check
            plan.outcomes.add(entry)
            plan.outcomes.check(job.max_failures, job.journal)
            progress("crop", plan.kept + done, plan.total)
        journal.write(End(plan.total, sum_, plan.of if job.part else None).line())


def _tasks(job: _Job, todo: Iterable[Planned], mark: str) -> Iterator[_Task]:
    """What workers are told; the first of those that a worker gets at once, what it can fetch."""
    planned = iter(todo)
    while group := list(itertools.islice(planned, CHUNK)):
        ahead = worth_fetching(source.place for source, _, _, _ in group)
        for source, size, _, _ in group:
            target = str(job.dst / source.crop)
            yield _Task(source.key, source.place, target, size, job.settings, mark, ahead)
            ahead = ()


def _make_folders(dst: Path, sources: Iterable[Source]) -> None:
    for folder in {source.crop.rpartition("/")[0] for source in sources}:
        (dst / folder).mkdir(parents=True, exist_ok=True)


def _entry(planned: Planned, result: Ok[_Made] | Failed, settings: str) -> Entry:
    """A line of the journal. The size and time are those from before the source was read."""
    source, size, mtime_ns, _ = planned
    named = (source.key, source.crop, source.label)
    if isinstance(result, Failed):
        mtime_ns = UNREAD if isinstance(result, _Unread) else mtime_ns
        return Entry(*named, "failed", result.reason, size, mtime_ns, settings)
    made = result.value
    return Entry(
        *named, "ok", made.remark, size, mtime_ns, settings,
        made.width, made.height, made.mode, made.bytes,
    )  # fmt: skip


def _crop_one(task: _Task) -> Ok[_Made] | Failed:
    """In a worker: one raw picture -> one crop under its final name."""
    if task.ahead:
        prefetch.fetch(task.ahead)
    if task.bytes > MAX_SOURCE_BYTES:
        return Failed(task.key, "larger than 1 GiB")
    try:
        data = prefetch.read(task.place)
    except OSError as error:
        if error.errno in _FATAL:
            raise
        # EINVAL: what lies there is no file, or a part of an archive that is none.
        failed = Failed if error.errno == errno.EINVAL else _Unread
        return failed(task.key, f"cannot be read: {error.strerror}")
    try:
        crop = crop_picture(data, task.settings)
    except MachineError as error:
        return _Unread(task.key, str(error))
    except PictureError as error:
        return Failed(task.key, str(error))
    try:
        _write(Path(task.target), crop.jpeg, task.mark)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return Failed(task.key, "the name of its crop would be too long")
    return Ok(task.key, _Made(crop.width, crop.height, crop.mode, len(crop.jpeg), crop.remark))


def _write(target: Path, data: bytes, mark: str) -> None:
    """As ``publish``, without waiting for the disk, which a million small files cannot.

    A crop that a power cut has emptied has another size than the journal says, so it is
    made again.
    """
    temporary = target.with_name(f"{mark}{_writer}-{next(_counter)}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(target)  # a write that fails does not say where
        raise


_counter = itertools.count()
_writer = f"{os.getpid()}-{secrets.token_hex(4)}"  # on another machine there is the same number
