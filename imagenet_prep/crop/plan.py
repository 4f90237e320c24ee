"""What a run of ``crop`` has to do: the scan of the sources, joined with the journal in SQL.

The scan is written into a temporary table as it arrives, so memory does not grow with it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagenet_prep.containers.names import without_collector
from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset.journal import (
    EARLIER_VERSION,
    Part,
    connected,
    explained,
    failed_labels,
    is_inside,
)
from imagenet_prep.sources.scan import Source
from imagenet_prep.storage.byte_range import WHOLE

RETRIED = ("source.unreadable", "image.unsupported_here", "image.no_memory", EARLIER_VERSION)
"""Failures of this machine at this time: another run tries these sources again."""
_CLASSES_SHOWN = 3
_SCAN = """
PRAGMA page_size = 16384;
PRAGMA cache_size = -262144;
PRAGMA journal_mode = OFF;
CREATE TABLE scan (
    key TEXT PRIMARY KEY, split TEXT, class_name TEXT, label INTEGER, crop TEXT, file TEXT,
    offset INTEGER, length INTEGER, form TEXT, seen TEXT, bytes INTEGER, version
) WITHOUT ROWID;
CREATE TABLE work (key TEXT PRIMARY KEY, relabel INTEGER) WITHOUT ROWID;
CREATE TABLE dead (key TEXT PRIMARY KEY, crop TEXT) WITHOUT ROWID;
"""
# A source is current that is unchanged and has its crop, or failed and would fail again.
_COMPARE = f"""
INSERT INTO work
SELECT key, current FROM (
    SELECT scan.key, scan.split, scan.label, source.label AS label_before, coalesce(
        source.bytes = scan.bytes AND source.version = scan.version AND source.crop = scan.crop
        AND source.settings = ? AND CASE source.status
            WHEN 'ok' THEN crop_bytes(source.crop) = source.crop_bytes
            ELSE source.code NOT IN {RETRIED} END, 0) AS current
    FROM scan LEFT JOIN source USING (key)
) WHERE NOT current OR label != label_before
"""
_DEAD = """
INSERT INTO dead SELECT key, crop FROM source WHERE key NOT IN (SELECT key FROM scan)
UNION ALL SELECT key, source.crop FROM work JOIN source USING (key) WHERE NOT relabel
"""
_RELABEL = """
UPDATE source SET label = scan.label FROM work JOIN scan USING (key)
WHERE relabel AND source.key = work.key
"""
_TODO = f"""
SELECT {", ".join(f"scan.{name}" for name in Source._fields)} FROM work JOIN scan USING (key)
WHERE NOT relabel AND form {{}} LIKE 'stream%' ORDER BY
"""


@dataclass
class Plan:
    """A database with the sources of a run in its table ``scan``, and their numbers.

    ``of_all`` counts those of all parts, ``missing`` those whose file is not there. Once compared
    with the journal: ``todo`` are to be done, ``failed`` failed earlier and would fail again.
    """

    connection: sqlite3.Connection
    total: int = 0
    of_all: int = 0
    missing: int = 0
    todo: int = 0
    failed: int = 0

    @property
    def kept(self) -> int:
        """The sources that are up to date."""
        return self.total - self.todo


@contextlib.contextmanager
def scanned(sources: Iterable[Source], part: Part | None = None) -> Iterator[Plan]:
    """Writes the sources into a temporary database; raises their faults before anything else."""
    temporary = Path(tempfile.gettempdir(), "scan")
    with contextlib.closing(connected(None)) as connection:
        found = Plan(connection)
        with explained(temporary), without_collector():
            connection.executescript(_SCAN)
            connection.execute("BEGIN")
            width = ", ".join("?" * (len(Source._fields) + 2))
            rows = _rows(found, sources, part)
            connection.executemany(f"INSERT INTO scan VALUES ({width})", rows)
            connection.execute("COMMIT")
        yield found


def _rows(found: Plan, sources: Iterable[Source], part: Part | None) -> Iterator[Any]:
    """The rows of ``scan``: sources with their size and version, which change with the file."""
    total = of_all = version = 0
    file = ""
    for source in sources:
        of_all += 1
        if part is not None and not part.has(source.crop):
            continue
        total += 1
        _, _, _, _, _, place, _, length, _, seen = source
        if length != WHOLE and place == file:  # another part of the same archive
            size = length
        elif seen or "://" in place:
            (size, version), file = source.stamp(), place
        else:  # as source.stamp(), in half of the time
            size, version = _stamp(place)
            file, size = place, size if length == WHOLE or size == -1 else length
            found.missing += size == -1
        if not place.isascii():
            source = source._replace(file=_storable(place))
        yield *source, size, version
    found.total, found.of_all = total, of_all


def _storable(file: str) -> Any:
    """A path as text; as bytes where it is not UTF-8."""
    try:
        file.encode()
    except UnicodeEncodeError:
        return os.fsencode(file)
    return file


def _stamp(file: str) -> tuple[int, int]:
    try:
        status = os.stat(file)  # noqa: PTH116 - a million of them
    except OSError:
        return -1, -1  # it fails when it is read, with the reason
    return status.st_size, status.st_mtime_ns


def plan_crops(plan: Plan, dst: Path, settings: str) -> Plan:
    """Completes a plan: compares the scan with the attached journal, which keeps the rows that
    are up to date.

    ``settings`` is the text of the crop's settings. What ``todo`` gives is to be done. Crops
    that no longer belong in ``dst`` are removed. Where all is up to date, nothing is written.
    Raises ToolError where all sources that were cropped are missing.
    """
    connection = plan.connection
    if plan.missing:
        _check_missing(connection, dst)
    connection.execute("BEGIN")
    _compare(connection, dst, settings)
    connection.execute(_DEAD)
    _remove_crops(connection, dst)
    if count(connection, "SELECT (SELECT count(*) FROM work) + (SELECT count(*) FROM dead)"):
        connection.execute("DELETE FROM finished")
        connection.execute("DELETE FROM source WHERE key IN (SELECT key FROM dead)")
        connection.execute(_RELABEL)
    connection.execute("COMMIT")
    plan.todo = count(connection, "SELECT count(*) FROM work WHERE NOT relabel")
    plan.failed = count(connection, "SELECT count(*) FROM source WHERE status = 'failed'")
    return plan


def todo(connection: sqlite3.Connection) -> Iterator[Source]:
    """The sources to be cropped, sorted by key; then those that are streamed, as they lie."""
    for order in ("NOT", "scan.key"), ("", "file, offset"):
        for row in connection.execute(_TODO.format(order[0]) + order[1]):
            source = Source(*row)
            if isinstance(source.file, bytes):
                source = source._replace(file=os.fsdecode(source.file))
            yield source


def count(journal: sqlite3.Connection, query: str, *values: str) -> int:
    """The one number that a query gives."""
    return int(journal.execute(query, values).fetchone()[0])


def remarks(journal: sqlite3.Connection, status: str) -> dict[str, int]:
    """How many rows of ``status`` have which remark, commonest first: why images failed, or what
    was tolerated of those that are ok."""
    query = (
        "SELECT remark, count(*) FROM source WHERE status = ? AND remark != '' GROUP BY 1 "
        "ORDER BY 2 DESC, min(key)"
    )
    return dict(journal.execute(query, (status,)).fetchall())


def failed_classes(journal: sqlite3.Connection, names: Sequence[str]) -> list[str]:
    """A notice for each split with classes of which all images failed."""
    notices = []
    for split, labels in failed_labels(journal).items():
        some = ", ".join(names[label] for label in labels[:_CLASSES_SHOWN])
        more = ", ..." if len(labels) > _CLASSES_SHOWN else ""
        notices.append(f"{split}: all images of {len(labels)} classes failed: {some}{more}")
    return notices


def _check_missing(journal: sqlite3.Connection, dst: Path) -> None:
    """ToolError where crops would be removed because no source is there at the moment."""
    local = "scan.bytes = -1 AND scan.version = -1 AND scan.file NOT LIKE '%://%'"
    lost, held = journal.execute(
        f"SELECT total({local} AND status = 'ok'), total(NOT ({local})) "
        "FROM scan JOIN source USING (key)"
    ).fetchone()
    if lost and not held:
        raise ToolError(
            "crop.sources_missing",
            f"{dst}: all {int(lost)} source images of its crops are missing; is their disk "
            "mounted? To make crops of others, choose another folder",
        )


def _bytes(folder: int, crop: str) -> int:
    """The size of a crop; -1 where it is missing."""
    try:
        return os.stat(crop, dir_fd=folder).st_size
    except OSError:
        return -1


def _compare(connection: sqlite3.Connection, dst: Path, settings: str) -> None:
    """Fills the table ``work``."""
    folder = os.open(dst, os.O_RDONLY)  # relative names are found in two thirds of the time
    try:
        connection.create_function("crop_bytes", 1, functools.partial(_bytes, folder))
        connection.execute(_COMPARE, (settings,))
    finally:
        os.close(folder)


def _remove_crops(journal: sqlite3.Connection, dst: Path) -> None:
    """Removes the crops of ``dead`` rows that no row which stays has.

    An image that now fails must not keep an older crop.
    """
    for (crop,) in journal.execute(
        "SELECT crop FROM dead EXCEPT SELECT crop FROM source "
        "WHERE EXISTS (SELECT 1 FROM dead) AND key NOT IN (SELECT key FROM dead)"
    ):
        if is_inside(crop):
            (dst / crop).unlink(missing_ok=True)
