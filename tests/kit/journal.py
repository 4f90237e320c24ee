"""What tests see of a folder of crops: the rows of its journals, and its files."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from imagenet_prep.dataset.journal import Crops, Entry, finished, journal_of, opened


def journal_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of ``crop.sqlite``, sorted by key; none where there is no table yet."""
    with contextlib.closing(sqlite3.connect(path)) as journal:
        journal.row_factory = sqlite3.Row
        with contextlib.suppress(sqlite3.OperationalError):
            return [dict(row) for row in journal.execute("SELECT * FROM source ORDER BY key")]
    return []


def list_crops(cropped: Path, split: str) -> list[tuple[str, int]]:
    """The crops of one split; see ``Crops``."""
    return Crops(cropped).of(split)


def read_finished(cropped: Path) -> dict[str, Entry]:
    """The rows of a folder that ``crop`` has finished, by key; raises what ``Crops`` does."""
    Crops(cropped)
    with opened(journal_of(cropped)) as journal:
        finished(journal, cropped)
        return {row[0]: Entry(*row) for row in journal.execute("SELECT * FROM source")}


def failures(cropped: Path) -> dict[str, str]:
    """The sources that failed, sorted, with their reasons."""
    rows = journal_rows(cropped / "crop.sqlite")
    return {row["key"]: row["remark"] for row in rows if row["status"] == "failed"}


def journal_text(path: Path) -> bytes:
    """All that a journal holds, as bytes: SQLite's own depend on the order of writing."""
    with contextlib.closing(sqlite3.connect(path)) as journal:
        return "\n".join(journal.iterdump()).encode()


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its bytes, or what it holds if it is a journal."""
    found = {}
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # a running process removed it
            if path.is_file():
                data = journal_text(path) if path.suffix == ".sqlite" else path.read_bytes()
                found[path.relative_to(folder).as_posix()] = data
    return found
