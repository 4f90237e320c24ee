"""The file layer of ``crop``: raw images -> ``cropped/``, restartable at any moment.

``crop.sqlite`` in the destination is a journal with one row per source, written as the results
arrive. A row counts as long as the source has the same size and version, the settings are the
same and the crop is there; everything else is done again. While a run is unfinished a marker lies
beside the journal, so that the next stages do not take a part for the whole.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from imagenet_prep.core.errors import Progress, ToolError, quiet
from imagenet_prep.crop.decode import ImageError
from imagenet_prep.crop.folder import check_places, keep_classes, temporary_mark, unfinished
from imagenet_prep.crop.image import crop_image
from imagenet_prep.crop.plan import Plan, count, failed_classes, plan_crops, remarks, scanned, todo
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.dataset.journal import (
    Part,
    add_rows,
    attached,
    finish,
    journal_name,
    part_journals,
)
from imagenet_prep.sources.scan import Scan, Source, scan
from imagenet_prep.storage.byte_range import fetch_ahead, read_fetched
from imagenet_prep.storage.location import Location
from imagenet_prep.workers.processes import CHUNK, Jobs, Local, Workers, workers_of

MAX_SOURCE_BYTES = 1 << 30
_COMMIT_EVERY_S = 1.0  # what a kill may lose
# These say something about this machine and not about one image.
_FATAL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_OTHER_SETTINGS = "SELECT count(*) FROM source WHERE status = 'ok' AND settings != ?"
RECORD = """
INSERT OR REPLACE INTO source SELECT key, split, label, crop, iif(?2 = '', 'ok', 'failed'), ?2, ?3,
bytes, version, ?8, ?4, ?5, ?6, ?7 FROM scan WHERE key = ?1
"""


@dataclass(frozen=True)
class CropReport:
    """The outcome of a run; ``ok + failed + skipped`` is the number of sources.

    ``ok`` were cropped now, ``skipped`` earlier, ``failed`` now or earlier; ``reasons``
    counts the failures, commonest first; ``remarks``
    counts what was tolerated, among all crops; ``classes`` is the number of classes found,
    ``layout``, ``splits`` and ``notices`` are those of ``sources.scan.Scan``;
    ``failed_classes`` are notices about classes without any crop.
    """

    ok: int
    failed: int
    skipped: int
    seconds: float
    reasons: dict[str, int]
    remarks: dict[str, int]
    tried: int
    classes: int = 0
    layout: str = ""
    splits: Mapping[str, int] = field(default_factory=dict)
    notices: Sequence[str] = ()
    failed_classes: Sequence[str] = ()

    @property
    def images_per_second(self) -> float:
        """Images that this run tried, per second."""
        return self.tried / self.seconds if self.seconds > 0 else 0.0


class Outcome(NamedTuple):
    """The result for a source: ``code`` is empty for a crop; the facts are those of the source."""

    key: str
    code: str
    remark: str
    width: int = 0
    height: int = 0
    mode: str = ""
    crop_bytes: int = 0


_Item = tuple[Source, bytes | Outcome | None]
"""A source, and its bytes or its outcome where they were read before a worker had it."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What a worker needs besides the sources: where crops go, how they are made."""

    dst: Path
    settings: CropSettings
    mark: str


def run_crop(
    src: Location,
    dst: Path,
    settings: CropSettings,
    *,
    layout: str | None = None,
    classes: Location | None = None,
    splits: Mapping[str, str] | None = None,
    class_order: str | None = None,
    jobs: Jobs = None,
    max_failures: int | None = None,
    part: Part | None = None,
    progress: Progress = quiet,
    recognised: Callable[[Scan], None] | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> CropReport:
    """Crops every image of ``src`` into ``dst``; does only what is missing or changed.

    ``layout``, ``classes``, ``splits`` and ``class_order`` are those of ``sources.scan``. With
    ``part`` only the sources of that part, with a journal of its own; a run without takes over
    the rows of the parts. ``recognised`` is called with what was found, before any work, and
    ``notice`` where crops of other settings will be replaced. An image that cannot be used is
    counted and listed. Raises ToolError when more than ``max_failures``
    failed (None: never), when nothing could be cropped, or when the two folders lie in one
    another; OSError when ``dst`` cannot be written.
    """
    start = time.perf_counter()
    check_places(src, dst)
    collection = scan(src, layout=layout, classes=classes, splits=splits, class_order=class_order)
    workers, path = workers_of(jobs), dst / journal_name(part)
    with contextlib.ExitStack() as stack:
        plan = stack.enter_context(scanned(collection, part))
        if recognised is not None:
            recognised(collection)
        dst.mkdir(parents=True, exist_ok=True)
        stack.enter_context(unfinished(dst, part, cluster=not isinstance(workers, Local)))
        stack.enter_context(attached(plan.connection, path, "journal", create=True))
        keep_classes(dst, collection.classes, part)
        others = [] if part else list(part_journals(dst).values())
        add_rows(plan.connection, others)
        if stale := count(plan.connection, _OTHER_SETTINGS, settings.text()):
            notice(f"{stale:,} crops in {dst} have other settings and are made again")
        plan_crops(plan, dst, settings.text())
        for other in others:
            other.unlink()
        progress("crop", plan.kept, plan.total)
        if plan.todo:
            job = _Job(dst, settings, temporary_mark(part))
            _do(job, plan, workers, max_failures, progress)
        report = _report(plan, collection, start)
        _check(report, src, dst, max_failures, part)
        finish(plan.connection, plan.total, plan.of_all)
        return report


def _report(plan: Plan, collection: Scan, start: float) -> CropReport:
    journal = plan.connection
    reasons = remarks(journal, "failed")
    failed, skipped = sum(reasons.values()), plan.kept - plan.failed
    whole = plan.total == plan.of_all  # another part may have other images of a class
    names = collection.classes.names
    return CropReport(
        ok=plan.total - failed - skipped,
        failed=failed,
        skipped=skipped,
        seconds=time.perf_counter() - start,
        reasons=reasons,
        remarks=remarks(journal, "ok"),
        tried=plan.todo,
        classes=len(collection.classes),
        layout=collection.layout,
        splits=collection.splits,
        notices=collection.notices,
        failed_classes=failed_classes(journal, names) if failed and whole else (),
    )


def _check(
    report: CropReport, src: Location, dst: Path, most: int | None, part: Part | None
) -> None:
    """ToolError where too many images failed, or all of a whole run (a small part may)."""
    reason, times = next(iter(report.reasons.items()), ("", 0))  # the commonest
    shown = f"{times} of them: {reason} (imagenet-prep failures {dst} lists them)"
    if most is not None and report.failed > most:
        raise ToolError(
            "crop.too_many_failures",
            f"{report.failed} images could not be cropped, more than the {most} that are allowed; "
            f"{shown}; allow more with --max-failures, or look at the images",
        )
    if part is None and report.failed and report.ok + report.skipped == 0:
        raise ToolError(
            "crop.nothing_cropped",
            f"{src}: none of its {report.failed} files was cropped; {shown}; name the folder of "
            "the images or their --layout",
        )


def _do(
    job: _Job,
    plan: Plan,
    workers: Workers,
    max_failures: int | None,
    progress: Progress,
) -> None:
    """Crops what is to be done, and writes a row for each source as its result arrives."""
    journal = plan.connection
    if isinstance(workers, Local) and plan.todo <= CHUNK:
        workers = Local(1)  # a process takes longer to start
    groups = _groups(todo(journal))
    crop, made_with = functools.partial(_crop_group, job), job.settings.text()
    failed, done, commit_at = plan.failed, plan.kept, time.monotonic() + _COMMIT_EVERY_S
    with (
        contextlib.closing(workers.map(crop, groups)) as results,
        _committed(journal),
    ):
        for outcomes in results:
            journal.executemany(RECORD, [(*outcome, made_with) for outcome in outcomes])
            failed += sum(outcome.code != "" for outcome in outcomes)
            if time.monotonic() >= commit_at:
                journal.execute("COMMIT")
                journal.execute("BEGIN")
                commit_at = time.monotonic() + _COMMIT_EVERY_S
            if max_failures is not None and failed > max_failures:
                return
            done += len(outcomes)
            progress("crop", done, plan.total)


@contextlib.contextmanager
def _committed(journal: sqlite3.Connection) -> Iterator[None]:
    """A transaction that is committed also after an exception: each row is true by itself."""
    journal.execute("BEGIN")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # a full disk: the first exception tells that
            journal.execute("COMMIT")
        raise
    journal.execute("COMMIT")


def _groups(sources: Iterator[Source]) -> Iterator[list[_Item]]:
    """What workers take at a time. Sources that are streamed are read here, in their order."""
    while group := list(itertools.islice(sources, CHUNK)):
        yield [(source, _read(source) if source.is_streamed else None) for source in group]


def _crop_group(job: _Job, items: list[_Item]) -> list[Outcome]:
    """In a worker: raw images -> crops under their final names."""
    fetch_ahead(source.place for source, data in items if data is None)
    return [_crop_one(job, *item) for item in items]


def _read(source: Source) -> bytes | Outcome:
    """The bytes of a source, or the outcome where they cannot be read."""
    if source.stamp()[0] > MAX_SOURCE_BYTES:
        return Outcome(source.key, "source.too_large", "larger than 1 GiB")
    try:
        return read_fetched(source.place)
    except OSError as error:
        if error.errno in _FATAL:
            raise
        # EINVAL: what lies there is not a file, or a part of an archive that cannot be used.
        code = "source.unusable" if error.errno == errno.EINVAL else "source.unreadable"
        return Outcome(source.key, code, f"cannot be read: {error.strerror}")


def _crop_one(job: _Job, source: Source, data: bytes | Outcome | None) -> Outcome:
    key, data = source.key, _read(source) if data is None else data
    if isinstance(data, Outcome):
        return data
    try:
        crop = crop_image(data, job.settings)
    except ImageError as error:
        return Outcome(key, error.code, str(error))
    try:
        _write(job.dst / source.crop, crop.jpeg, job.mark)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return Outcome(key, "crop.name_too_long", "the name of its crop would be too long")
    return Outcome(key, "", crop.remark, crop.width, crop.height, crop.mode, len(crop.jpeg))


def _write(target: Path, data: bytes, mark: str) -> None:
    """As ``publish``, without waiting for the disk, which a million small files cannot afford.

    A crop that a power cut has emptied has another size than its row, so it is made again.
    """
    temporary = target.with_name(f"{mark}{_writer}-{next(_counter)}.tmp")
    try:
        try:
            temporary.write_bytes(data)
        except FileNotFoundError:  # the first crop of its folder
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(target)  # a write that fails does not name it
        raise


_counter = itertools.count()
_writer = f"{os.getpid()}-{secrets.token_hex(4)}"  # on another machine there is the same number
