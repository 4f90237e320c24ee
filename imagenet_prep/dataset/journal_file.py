"""``crop.sqlite``: one row per source image, and one row that marks the journal as complete.

SQLite's rollback journal keeps the file whole at any moment, also on a network disk, where a
write-ahead log does not work. A run deletes the row of ``finished`` before it changes anything
and writes it at its end, so an unfinished journal differs from a complete one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.files import publish

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
