"""``crop.sqlite``: one row per source image, and one row that marks the journal as complete.

SQLite's rollback journal keeps the file whole at any moment, also on a network disk, where a
write-ahead log does not work. A run deletes the row of ``finished`` before it changes anything
and writes it at its end, so an unfinished journal differs from a complete one. The stages after
``crop`` read it through ``Crops``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.core.files import publish
from imagenet_prep.dataset.names import JOURNAL_NAME, SPLITS

REMEDY = "run the same imagenet-prep crop again, it does what is missing"
EARLIER_VERSION = "crop.earlier_version"
"""The code of failures in a ``crop.jsonl``: the next run tries those sources again."""
_FORMAT = 1
_WAIT_S = 30.0  # for another process that is committing
SCHEMA = f"""
BEGIN;
CREATE TABLE source (
    key TEXT PRIMARY KEY, split TEXT NOT NULL, label INTEGER NOT NULL, crop TEXT NOT NULL,
    status TEXT NOT NULL, code TEXT NOT NULL, remark TEXT NOT NULL,
    bytes INTEGER NOT NULL, version NOT NULL, settings TEXT NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL, mode TEXT NOT NULL, crop_bytes INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE finished (
    id INTEGER PRIMARY KEY CHECK (id = 1), sources INTEGER NOT NULL, of_all INTEGER NOT NULL
);
PRAGMA user_version = {_FORMAT};
COMMIT;
"""
_LOCK_ERRORS = (
    *("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL", "SQLITE_NOLFS"),
    *("SQLITE_IOERR_LOCK", "SQLITE_IOERR_UNLOCK", "SQLITE_IOERR_RDLOCK"),
    "SQLITE_IOERR_CHECKRESERVEDLOCK",
)
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR", "SQLITE_TOOBIG")
_DISK_ERRORS = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_PERM")


class Entry(NamedTuple):
    """A row: a source and its result, in the order of the table's columns.

    ``status`` is ok or failed. ``code`` is the failure's (``image.truncated``), empty for ok;
    ``remark`` is its text, or what was tolerated. ``bytes``, ``version`` (mtime in ns, or
    what a server uses instead), ``width``, ``height`` and ``mode`` are the source's.
    """

    key: str
    split: str
    label: int
    crop: str
    status: str
    code: str
    remark: str
    bytes: int
    version: int | str
    settings: str
    width: int = 0
    height: int = 0
    mode: str = ""
    crop_bytes: int = 0


PUT = f"INSERT OR REPLACE INTO source VALUES ({', '.join('?' * len(Entry._fields))})"


@contextlib.contextmanager
def opened(path: Path, *, create: bool = False) -> Iterator[sqlite3.Connection]:
    """A journal, in autocommit mode; with ``create`` it is made where there is none.

    Raises ToolError: crop.journal_unlockable where the disk has no locks or another process keeps
    one, crop.journal_damaged for a file that is no journal; OSError for a full or read-only disk.
    The same holds for SQLite's errors inside the block.
    """
    with explained(path), contextlib.closing(connected(path, create=create)) as journal:
        version = journal.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and create:
            journal.executescript(SCHEMA)
        elif version == 0:
            raise incomplete(path)  # a run was stopped before it wrote anything
        elif version != _FORMAT:
            raise damaged(path, f"format {version}, this version reads {_FORMAT}")
        if path.stat().st_size % journal.execute("PRAGMA page_size").fetchone()[0]:
            raise damaged(path, "its end is missing")
        yield journal


def connected(path: Path | None, *, create: bool = False) -> sqlite3.Connection:
    """A connection to a file; None: to a temporary database that vanishes with it."""
    journal = sqlite3.connect(
        "" if path is None else _uri(path, "rwc" if create else "rw"),
        uri=True, timeout=_WAIT_S, isolation_level=None, check_same_thread=False,
    )  # fmt: skip
    journal.execute("PRAGMA cache_size = -65536")  # KiB
    return journal


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(str(path.absolute()))}?mode={mode}"


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns SQLite's errors inside the block into ToolError or OSError."""
    try:
        yield
    except UnicodeDecodeError as error:  # of an error message that quotes damaged text
        raise damaged(path, str(error)) from None
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(_LOCK_ERRORS):
            raise unlockable(path.parent, str(error)) from None
        if name.startswith("SQLITE_FULL"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        if name.startswith(_DISK_ERRORS):
            raise _disk_error(path, error) from None
        if name.startswith(_DAMAGE) or (isinstance(error, sqlite3.OperationalError) and not name):
            raise damaged(path, str(error)) from None
        raise


def unlockable(folder: Path, reason: str) -> ToolError:
    """The error for a disk where SQLite cannot lock its file."""
    return ToolError(
        "crop.journal_unlockable",
        f"{folder}: the journal of crops cannot be locked there ({reason}); end other programs "
        "that use it, or mount the network disk with locks, or crop to a local disk and copy "
        "the folder",
    )


def damaged(path: Path, reason: str) -> ToolError:
    """The error for a file that is no journal, or no longer."""
    return ToolError(
        "crop.journal_damaged",
        f"{path}: the journal is damaged ({reason}); delete it and run imagenet-prep crop again, "
        "which makes every crop again",
    )


def incomplete(path: Path) -> ToolError:
    """The error for the journal of a run that has not ended."""
    return ToolError("crop.journal_incomplete", f"{path}: is not complete; {REMEDY}")


def _disk_error(path: Path, error: sqlite3.Error) -> OSError:
    """What the disk answers to a new file beside the journal: SQLite does not pass it on."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(bytes(4096))
            file.flush()
        with path.open("r+b"):
            pass
    except OSError as found:
        found.filename = str(path)
        return found
    return OSError(errno.EIO, str(error), str(path))


@contextlib.contextmanager
def attached(
    connection: sqlite3.Connection, path: Path, name: str = "other", *, create: bool = False
) -> Iterator[str]:
    """Adds a journal to a connection inside the block, where its tables are ``name.source`` and
    so on; raises what ``opened`` does."""
    with opened(path, create=create):
        connection.execute(f"ATTACH ? AS {name}", (_uri(path, "rw"),))
        yield name
        connection.execute(f"DETACH {name}")  # after an exception the connection is closed


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[sqlite3.Connection]:
    """A new journal that takes the place of ``path`` after the block, as a whole or not at all."""
    with publish(path) as temporary:
        with opened(temporary, create=True) as journal:
            journal.execute("PRAGMA journal_mode = OFF")
            yield journal
        # What a killed run left beside the old file would be rolled back into the new one.
        if path.exists():
            with contextlib.suppress(ToolError), opened(path):
                pass
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)


def add_rows(journal: sqlite3.Connection, others: Iterable[Path]) -> None:
    """Adds the rows of other journals; of two about one source the one that is there stays."""
    for path in others:
        with attached(journal, path) as name:
            journal.execute(f"INSERT OR IGNORE INTO source SELECT * FROM {name}.source")


def finish(journal: sqlite3.Connection, sources: int, of_all: int) -> None:
    """Marks a journal of ``sources`` rows as complete; ``of_all`` counts those of all parts."""
    row = (sources, of_all)
    if journal.execute("SELECT sources, of_all FROM finished").fetchall() != [row]:
        journal.execute("INSERT OR REPLACE INTO finished VALUES (1, ?, ?)", row)


def finished(journal: sqlite3.Connection, path: Path) -> tuple[int, int]:
    """(sources, sources of all parts) of a complete journal; ToolError for another."""
    rows = journal.execute("SELECT sources, of_all FROM finished").fetchall()
    count = journal.execute("SELECT count(*) FROM source").fetchone()[0]
    if len(rows) != 1 or rows[0][0] != count:
        raise incomplete(path)
    return int(rows[0][0]), int(rows[0][1])


UNFINISHED_NAME = ".crop.unfinished"
_PART_NAME = re.compile(r"crop\.([1-9]\d{0,5})-of-([1-9]\d{0,5})\.sqlite")


class Part(NamedTuple):
    """Part ``number`` (from 1) of ``parts`` of the sources, cropped by a run of its own.

    A source belongs to a part by its crop's name alone: one more or less moves no other, and
    every machine decides alike.
    """

    number: int
    parts: int

    def __str__(self) -> str:
        return f"{self.number}-of-{self.parts}"

    def has(self, crop: str) -> bool:
        """Whether the source of this crop belongs to this part."""
        digest = hashlib.sha256(crop.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8]) % self.parts == self.number - 1


def journal_name(part: Part | None) -> str:
    """The name of the journal of a whole run, or of a part's."""
    return f"crop.{part}.sqlite" if part else JOURNAL_NAME


def unfinished_name(part: Part | None) -> str:
    """The name of the marker beside that journal."""
    return f".crop.{part}.unfinished" if part else UNFINISHED_NAME


def part_journals(cropped: Path) -> dict[Part, Path]:
    """The journals of parts in a folder, sorted; journals of earlier versions are taken over."""
    old = {*cropped.glob("crop.jsonl"), *cropped.glob("crop.*-of-*.jsonl")}
    if old:
        from imagenet_prep.dataset.journal_legacy import take_over

        take_over(sorted(old))
    matches = ((_PART_NAME.fullmatch(path.name), path) for path in cropped.glob("crop.*.sqlite"))
    found = {Part(int(match[1]), int(match[2])): path for match, path in matches if match}
    return dict(sorted(found.items()))


@contextlib.contextmanager
def all_rows(cropped: Path) -> Iterator[sqlite3.Connection]:
    """A journal with the rows of a folder, also where a run or a merge is still to be done."""
    parts = [*part_journals(cropped).values()]
    if not parts:
        with opened(journal_of(cropped)) as journal:
            yield journal
        return
    with contextlib.closing(connected(None)) as journal:
        journal.executescript(SCHEMA)
        add_rows(journal, [path for path in (cropped / JOURNAL_NAME, *parts) if path.exists()])
        yield journal


def journal_of(cropped: Path) -> Path:
    """The journal in a folder; UsageError or ToolError when ``crop`` did not make that."""
    if not cropped.is_dir():
        what = "is a file, not a folder" if cropped.exists() else "no such folder"
        raise UsageError("crop.no_folder", f"{cropped}: {what}; name one that crop made")
    parts, journal = part_journals(cropped), cropped / JOURNAL_NAME
    if journal.is_file():
        return journal
    if parts:
        raise ToolError(
            "crop.parts_not_merged",
            f"{cropped}: was cropped in parts that have not been merged; run imagenet-prep merge "
            f"{cropped} when all of them are there",
        )
    raise ToolError(
        "crop.no_journal",
        f"{cropped}: was not made by imagenet-prep crop (it has no {JOURNAL_NAME}); name its "
        "--dst, or run it first",
    )


def _finished(cropped: Path) -> Path:
    journal = journal_of(cropped)
    if (cropped / UNFINISHED_NAME).exists():
        raise ToolError(
            "crop.unfinished",
            f"{cropped}: imagenet-prep crop has not finished there; run the same command again, "
            "it continues",
        )
    return journal


class Crops:
    """The crops of a folder that ``crop`` has finished.

    ``splits`` are those of train, val and test that have crops, ``counts`` how many each;
    ``settings`` is the text of the settings that all were made with, None if they differ;
    ``failed_labels`` are by split the classes whose images all failed.
    Raises UsageError or ToolError when the folder was not made by ``crop``, when that did not
    finish, or when its journal is damaged.
    """

    def __init__(self, cropped: Path) -> None:
        self.folder = cropped
        self._journal = _finished(cropped)
        with opened(self._journal) as journal:
            finished(journal, self._journal)
            found = journal.execute(
                "SELECT split, settings, count(*) FROM source WHERE status = 'ok' GROUP BY 1, 2"
            ).fetchall()
            self.failed_labels = failed_labels(journal)
        settings = {row[1] for row in found}
        self.settings = settings.pop() if len(settings) == 1 else None
        counts = {split: sum(row[2] for row in found if row[0] == split) for split in SPLITS}
        self.counts = {split: count for split, count in counts.items() if count}
        self.splits = tuple(self.counts)

    def of(self, split: str) -> list[tuple[str, int]]:
        """(crop path relative to the folder, label) of those of ``split``, sorted.

        Raises ToolError when the split has no crops, or one of them is no longer there.
        """
        return list(self.rows(split))

    def rows(self, split: str, *, there: bool = True) -> Iterator[tuple[str, int]]:
        """As ``of``, streamed from the disk; with ``there`` False the crops are not looked for."""
        if split not in self.counts:
            raise ToolError(
                "crop.no_split",
                f"{self.folder}: has no crops of the split {split}; crop its images first",
            )
        before, folder = "", f"{self.folder}/"
        with opened(self._journal) as journal:
            for crop, label in journal.execute(
                "SELECT crop, label FROM source WHERE status = 'ok' AND split = ? ORDER BY crop",
                (split,),
            ):
                if crop == before or not is_inside(crop):
                    raise incomplete(self._journal)
                if there and not os.path.isfile(folder + crop):  # noqa: PTH113 - a million of them
                    raise ToolError(
                        "crop.missing", f"{folder}{crop}: is missing or cannot be reached; {REMEDY}"
                    )
                before = crop
                yield crop, label


def failed_labels(journal: sqlite3.Connection) -> dict[str, list[int]]:
    """Split -> the labels of the classes of which every image failed, sorted."""
    found: dict[str, list[int]] = {}
    for split, label in journal.execute(
        "SELECT split, label FROM source GROUP BY 1, 2 HAVING max(status = 'ok') = 0 ORDER BY 1, 2"
    ):
        found.setdefault(split, []).append(label)
    return found


def is_inside(path: str) -> bool:
    """Whether a relative path stays below the folder that it is relative to."""
    return bool(path) and path[0] != "/" and not (".." in path and ".." in path.split("/"))
