"""What a run of ``crop`` has to do: the sources beside what an earlier run left.

Sources and journal are read once, side by side, in the order of their keys, so that nothing
but what is to be done is kept, packed: some tens of bytes for each source.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.packed import Packed
from imagenet_prep.crop.folder import journals
from imagenet_prep.crop.journal_io import Line, Rewriting, last_lines
from imagenet_prep.dataset.journal import Entry, Part, line_start
from imagenet_prep.sources.names import without_collector
from imagenet_prep.sources.scan import Scan, Source
from imagenet_prep.storage.byte_range import WHOLE
from imagenet_prep.storage.urls import is_url

_FAILURES_LISTED = 1000


class Planned(NamedTuple):
    """A source to be cropped, its size and time, and whether an earlier crop has its name."""

    source: Source
    bytes: int
    mtime_ns: int
    again: bool


def _plain(planned: Planned) -> tuple[Any, ...]:
    source, size, mtime_ns, again = planned
    return *source, size, mtime_ns, again


def _planned(values: tuple[Any, ...]) -> Planned:
    *source, size, mtime_ns, again = values
    return Planned(Source(*source), size, mtime_ns, again)


@dataclass
class Outcomes:
    """Counts what became of sources; lists the first 1000 failures."""

    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    listed: list[tuple[str, str]] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)

    def add(self, entry: Entry) -> None:
        """Counts one."""
        if entry.status == "failed":
            self.failed += 1
            self.reasons[entry.reason] += 1
            if len(self.listed) < _FAILURES_LISTED:
                self.listed.append((entry.key, entry.reason))
        elif entry.reason:
            self.remarks[entry.reason] += 1

    def check(self, most: int | None, journal: Path) -> None:
        """Raises ToolError where more failed than ``most``; None: never."""
        if most is not None and self.failed > most:
            common, times = self.reasons.most_common(1)[0]
            raise ToolError(
                f"{self.failed} pictures could not be cropped, more than the {most} that "
                f"are allowed; {times} of them: {common} (see {journal}); allow more with "
                "--max-failures, or look at the pictures"
            )


@dataclass
class Plan:
    """What is to be done, in the order of the sources, and what is up to date.

    ``kept`` sources are, with ``sum`` of the checksums of their lines and their ``outcomes``;
    ``of`` is the number of all sources, this part's or not.
    """

    todo: Packed[Planned]
    kept: int
    sum: int
    outcomes: Outcomes
    of: int

    @property
    def total(self) -> int:
        """The sources of this run."""
        return self.kept + len(self.todo)


def plan_crops(dst: Path, collection: Scan, settings: str, part: Part | None = None) -> Plan:
    """Finds out what is to be done in ``dst``, and leaves there what is up to date and no more.

    ``settings`` is the text of the crop's settings. Crops that no longer belong there are
    removed, then the journal is written without them, if it does not say just that already.
    It has no last line while there is something to do.
    """
    files = journals(dst, part)
    known = last_lines(files)
    todo: Packed[Planned] = Packed(_plain, _planned)
    outcomes = Outcomes()
    gone: set[str] = set()
    lost = held = 0
    with Rewriting(files[0]) as journal, without_collector(), _Crops(dst) as crops:
        for source, (size, mtime_ns), line in _side_by_side(collection, known, part, gone):
            if line is not None:
                if size == mtime_ns == -1 and not is_url(source.place.file):
                    lost += line.entry is not None and line.entry.status == "ok"
                else:
                    held += 1
            if line is not None and crops.says_so(line, source, size, mtime_ns, settings):
                journal.keep(line)
                continue
            entry = line.entry if line is not None else None
            now = size, mtime_ns, settings
            if line is None or entry is None or not crops.is_current(entry, source, now):
                if entry is not None and entry.crop != source.crop:
                    gone.add(entry.crop)
                again = entry is not None and entry.crop == source.crop
                todo.append(Planned(source, size, mtime_ns, again))
                continue
            outcomes.add(entry)
            if entry.label == source.label:
                journal.keep(line)
            else:
                journal.put(entry._replace(label=source.label))
        if lost and not held:
            raise ToolError(
                f"{dst}: was made of {lost} pictures, none of which is there any more; is their "
                "disk mounted? To make crops of others, choose another folder"
            )
        _remove(dst, collection, todo, gone)
        of = len(collection.sources)
        journal.end(complete=not len(todo), of=of if part else None)
    for file in files[1:]:  # all that they said is in the first now
        file.unlink()
    return Plan(todo, journal.total, journal.sum, outcomes, of)


def _side_by_side(
    collection: Scan, known: Iterator[Line], part: Part | None, gone: set[str]
) -> Iterator[tuple[Source, tuple[int, int], Line | None]]:
    """Every source of the part with its size and time and its line in the journal, if any.

    The crops of lines whose source is no longer there are added to ``gone``.
    """
    line, file, mtime_ns = next(known, None), "", 0
    for source in collection.sources:
        key, crop, place = source.key, source.crop, source.place
        if part is not None and not part.has(crop):
            continue
        while line is not None and line.key < key:
            _add_crop(gone, line)
            line = next(known, None)
        if place.length == WHOLE or place.file != file:
            (size, mtime_ns), file = place.stamp(), place.file
        else:  # another part of the same archive
            size = place.length
        if line is not None and line.key == key:
            yield source, (size, mtime_ns), line
            line = next(known, None)
        else:
            yield source, (size, mtime_ns), None
    while line is not None:
        _add_crop(gone, line)
        line = next(known, None)


def _add_crop(gone: set[str], line: Line) -> None:
    entry = line.entry
    if entry is not None:
        gone.add(entry.crop)


class _Crops:
    """The crops in a folder, beside what a journal says of them."""

    def __init__(self, dst: Path) -> None:
        self._dst = dst

    def __enter__(self) -> _Crops:
        # Names relative to an open folder are found in two thirds of the time.
        self._folder = os.open(self._dst, os.O_RDONLY)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._folder)

    def bytes(self, crop: str) -> int:
        """The size of a crop; -1 where it is not there."""
        try:
            return os.stat(crop, dir_fd=self._folder).st_size
        except OSError:
            return -1

    def says_so(self, line: Line, source: Source, size: int, mtime_ns: int, settings: str) -> bool:
        """Whether the line is that of an unchanged source with a sound crop and no remark.

        It is of nearly all in a second run, and told without reading what the line says.
        """
        start = line_start((source.key, source.crop, source.label), size, mtime_ns, settings)
        body = line.body
        if not body.startswith(start):
            return False
        return body[body.rindex(b":") + 1 :] == b"%d" % self.bytes(source.crop)

    def is_current(self, entry: Entry, source: Source, now: tuple[int, int, str]) -> bool:
        """Whether the source is unchanged and its crop there, or it failed and would again."""
        if (entry.bytes, entry.mtime_ns, entry.settings) != now or entry.crop != source.crop:
            return False
        return entry.status == "failed" or self.bytes(entry.crop) == entry.crop_bytes


def _remove(dst: Path, collection: Scan, todo: Packed[Planned], gone: set[str]) -> None:
    """Removes the crops that are made again, and those of ``gone`` that no kept source has.

    A picture that now fails must not keep the crop of the one before it.
    """
    redone = set()
    if len(todo):
        for planned in todo:
            if planned.again:
                (dst / planned.source.crop).unlink(missing_ok=True)
            elif planned.source.crop in gone:
                redone.add(planned.source.crop)
    if gone:
        kept = {source.crop for source in collection.sources if source.crop in gone} - redone
        for crop in gone - kept:
            (dst / crop).unlink(missing_ok=True)
