"""``crop.jsonl``: one line per source with what became of it, and a last line "complete".

Every line carries a checksum, and the line that ends a run the number of sources and the sum
of their checksums. So a part, a changed line and a missing one are all told from the whole.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple, get_type_hints

from imagenet_prep.artifacts import JOURNAL_NAME, SPLITS, ToolError, UsageError

UNFINISHED_NAME = ".crop.unfinished"
_CHECK = b',"check":'
_REMEDY = "run the same imagenet-prep crop again, it does what is missing"


class Entry(NamedTuple):
    """What became of a source; ``bytes``, ``mtime_ns``, the size and ``mode`` are the source's.

    ``status`` is ok or failed; ``reason`` says why it failed, or what was let pass.
    """

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


_TYPES = tuple(get_type_hints(Entry).values())
_FIELDS = itemgetter(*Entry._fields)


def line_of(entry: Entry) -> tuple[bytes, int]:
    """An entry -> its line, and the line's checksum."""
    return _checked(entry._asdict())


def end_line(count: int, sum_: int) -> bytes:
    """The line that ends a run: so many sources, with this sum of their checksums."""
    return _checked({"complete": count, "sum": sum_})[0]


def _checked(value: dict[str, Any]) -> tuple[bytes, int]:
    body = json.dumps(value, separators=(",", ":")).encode()[:-1]
    check = zlib.crc32(body)
    return b"%b%b%d}\n" % (body, _CHECK, check), check


class Journal:
    """Reads a journal line by line; what its lines add up to is known afterwards.

    ``whole`` says whether it is what a run that ended well has left: every line as it was
    written, one per source, and none missing. ``damaged`` is the number of the first line
    that is not as it was written. A file that is not there is an empty journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged: int | None = None
        self.whole = False

    def __iter__(self) -> Iterator[Entry]:
        """The entry of every sound line, in order; later ones replace earlier ones."""
        lines = sum_ = 0
        ended: object = None
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            for lines, line in enumerate(file, 1):
                body, check = _sound(line)
                found = _parse(body) if body else None
                if isinstance(found, Entry):
                    sum_ += check
                    ended = None
                    yield found
                    continue
                ended = found
                if found is None and self.damaged is None:
                    self.damaged = lines
        self.whole = self.damaged is None and ended == (lines - 1, sum_)


def _sound(line: bytes) -> tuple[bytes, int]:
    """A line -> (what its checksum covers, its checksum); nothing where the two differ."""
    body, _, rest = line.rpartition(_CHECK)
    check = zlib.crc32(body)
    return (body, check) if rest == b"%d}\n" % check else (b"", 0)


def _parse(body: bytes) -> Entry | tuple[int, int] | None:
    """A line -> its entry, or (sources, sum) at the end of a run; None for anything else."""
    try:
        value = json.loads(body + b"}")
        if "complete" in value:
            return value["complete"], value["sum"]
        fields = _FIELDS(value)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if tuple(map(type, fields)) != _TYPES:
        return None
    key, crop, label, status, reason, size, mtime_ns, settings, width, height, mode, made = fields
    if status not in ("ok", "failed") or not is_inside(crop):
        return None
    # Interned: the same few words a million times.
    return Entry(
        key, crop, label, intern(status), intern(reason), size, mtime_ns, intern(settings),
        width, height, intern(mode), made,
    )  # fmt: skip


def is_inside(path: str) -> bool:
    """Whether a relative path stays below the folder that it is relative to."""
    return bool(path) and path[0] != "/" and not (".." in path and ".." in path.split("/"))


def read_journal(path: Path) -> dict[str, Entry]:
    """The entries of a journal that a run has ended, by key.

    Raises ToolError when it is not whole: a run was stopped, or the file was changed.
    """
    journal = Journal(path)
    lines = list(journal)
    entries = {entry.key: entry for entry in lines}
    if journal.damaged is not None:
        raise ToolError(f"{path}: line {journal.damaged} is damaged; {_REMEDY}")
    if not journal.whole or len(entries) != len(lines):
        raise ToolError(f"{path}: is not whole; {_REMEDY}")
    return entries


def read_finished(cropped: Path) -> dict[str, Entry]:
    """The journal of a folder that ``crop`` has finished, by key.

    Raises UsageError or ToolError when the folder was not made by ``crop``, when that did
    not finish, or when its journal is damaged.
    """
    journal = journal_of(cropped)
    if (cropped / UNFINISHED_NAME).exists():
        raise ToolError(
            f"{cropped}: imagenet-prep crop has not finished there; run the same command "
            "again, it continues"
        )
    return read_journal(journal)


def journal_of(cropped: Path) -> Path:
    """The journal in a folder; UsageError or ToolError when ``crop`` did not make that."""
    if not cropped.is_dir():
        what = "is a file, no folder" if cropped.exists() else "no such folder"
        raise UsageError(f"{cropped}: {what}; name one that imagenet-prep crop made")
    journal = cropped / JOURNAL_NAME
    if not journal.is_file():
        raise ToolError(
            f"{cropped}: was not made by imagenet-prep crop (it has no {JOURNAL_NAME}); name its "
            "--dst, or run it first"
        )
    return journal


class Crops:
    """The good crops of a folder that ``crop`` has finished: one reading of its journal.

    Good is what the journal calls ok. ``splits`` are those of train, val and test that have
    some; ``settings`` is the text of those that they were made with, None if not one and the
    same. Making one raises what ``read_finished`` does.
    """

    def __init__(self, cropped: Path) -> None:
        good = [entry for entry in read_finished(cropped).values() if entry.status == "ok"]
        found = {entry.crop.partition("/")[0] for entry in good}
        settings = {entry.settings for entry in good}
        self.folder = cropped
        self.splits = tuple(split for split in SPLITS if split in found)
        self.settings = settings.pop() if len(settings) == 1 else None
        self._good = [(entry.crop, entry.label) for entry in good]

    def of(self, split: str) -> list[tuple[str, int]]:
        """(crop path relative to the folder, label) of those of ``split``, sorted.

        Raises ToolError when the split has no crops, or one of them is no longer there.
        """
        prefix, folder = f"{split}/", f"{self.folder}/"
        crops = sorted(crop for crop in self._good if crop[0].startswith(prefix))
        if not crops:
            raise ToolError(
                f"{self.folder}: has no crops of the split {split}; crop the pictures first"
            )
        for crop, _ in crops:
            if not os.path.isfile(folder + crop):  # noqa: PTH113 - a million of them
                raise ToolError(f"{folder}{crop}: is missing or cannot be reached; {_REMEDY}")
        return crops


def list_crops(cropped: Path, split: str) -> list[tuple[str, int]]:
    """The good crops of one split; see ``Crops``."""
    return Crops(cropped).of(split)


def settings_text(cropped: Path) -> str | None:
    """The settings that the crops were made with, as text; None if not one and the same."""
    return Crops(cropped).settings
