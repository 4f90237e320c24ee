"""Journals of earlier versions, ``crop.jsonl`` -> ``crop.sqlite``, once.

Each line is a JSON object whose last member, "check", is the CRC-32 of what precedes it; the last
line of a finished run counts the others and has the sum of their checksums.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from imagenet_prep.dataset.journal import EARLIER_VERSION, PUT, Entry, finish, replacing

_CHECK = b',"check":'


def take_over(journals: Iterable[Path]) -> None:
    """Old journals, also of parts -> ``.sqlite`` beside each.

    An old file is renamed to ``crop.jsonl.old``. Lines that are not as they were written are left
    out, and then the new journal is not complete: the next run of ``crop`` does what is missing.
    """
    for old in journals:
        new = old.with_suffix(".sqlite")
        if not new.exists():
            with replacing(new) as journal:
                journal.execute("BEGIN")
                lines = _Lines(old)
                journal.executemany(PUT, lines)
                (count,) = journal.execute("SELECT count(*) FROM source").fetchone()
                if lines.end is not None and lines.end["complete"] == count:
                    finish(journal, count, lines.end.get("of", count))
                journal.execute("COMMIT")
        with contextlib.suppress(FileNotFoundError):  # another process was first
            old.rename(old.with_suffix(".jsonl.old"))


class _Lines:
    """The rows of an old journal; ``end`` is its last line where all of it is as written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.end: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Entry]:
        count = total = 0
        end, sound = None, True
        with self._path.open("rb") as file:
            for line in file:
                end = None
                body, _, rest = line.rpartition(_CHECK)
                check = zlib.crc32(body)
                if rest != b"%d}\n" % check:
                    sound = False
                    continue
                value = json.loads(body + b"}")
                if "complete" in value:
                    end = value
                else:
                    count, total = count + 1, total + check
                    yield _entry(value)
        if sound and end and (end["complete"], end["sum"]) == (count, total):
            self.end = end


def _entry(value: dict[str, Any]) -> Entry:
    failed = value["status"] == "failed"
    return Entry(
        value["key"], value["crop"].partition("/")[0], value["label"], value["crop"],
        value["status"], EARLIER_VERSION if failed else "", value["reason"], value["bytes"],
        value["mtime_ns"], value["settings"], value["width"], value["height"], value["mode"],
        value["crop_bytes"],
    )  # fmt: skip
