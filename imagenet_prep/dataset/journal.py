"""``crop.jsonl``: one line per source with what became of it, and a last line "complete".

Every line carries a checksum, and the line that ends a run the number of sources and the sum
of their checksums. So a part, a changed line and a missing one are all told from the whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple, get_type_hints

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.core.packed import Packed
from imagenet_prep.dataset.names import JOURNAL_NAME, SPLITS

UNFINISHED_NAME = ".crop.unfinished"
_PART_NAME = re.compile(r"crop\.([1-9]\d{0,5})-of-([1-9]\d{0,5})\.jsonl")
_CHECK = b',"check":'
REMEDY = "run the same imagenet-prep crop again, it does what is missing"


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
    return f"crop.{part}.jsonl" if part else JOURNAL_NAME


def unfinished_name(part: Part | None) -> str:
    """The name of the marker beside that journal."""
    return f".crop.{part}.unfinished" if part else UNFINISHED_NAME


def part_journals(cropped: Path) -> dict[Part, Path]:
    """The journals of parts in a folder, sorted."""
    matches = ((_PART_NAME.fullmatch(path.name), path) for path in cropped.glob("crop.*.jsonl"))
    found = {Part(int(match[1]), int(match[2])): path for match, path in matches if match}
    return dict(sorted(found.items()))


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
# A line up to its checksum as ``line_of`` writes it where nothing in it has to be escaped.
_WORD, _NUMBER = r'"([ !#-\[\]-~]*)"', r"(-?\d{1,20})"
_PLAIN = re.compile(
    r'\{"key":W,"crop":W,"label":N,"status":"(ok|failed)","reason":W,"bytes":N,"mtime_ns":N,'
    r'"settings":W,"width":N,"height":N,"mode":W,"crop_bytes":N'.replace("W", _WORD).replace(
        "N", _NUMBER
    )
)
_text = json.encoder.encode_basestring_ascii


def line_of(entry: Entry) -> tuple[bytes, int]:
    """An entry -> its line, and the line's checksum."""
    # As json.dumps would write it, in a third of the time; what is no number is no JSON.
    return _checked(
        f'{{"key":{_text(entry.key)},"crop":{_text(entry.crop)},"label":{entry.label!r},'
        f'"status":"{entry.status}","reason":{_text(entry.reason)},"bytes":{entry.bytes!r},'
        f'"mtime_ns":{entry.mtime_ns!r},"settings":{_text(entry.settings)},'
        f'"width":{entry.width!r},"height":{entry.height!r},"mode":{_text(entry.mode)},'
        f'"crop_bytes":{entry.crop_bytes!r}'.encode()
    )


def line_start(named: tuple[str, str, int], size: int, mtime_ns: int, settings: str) -> bytes:
    """How the line begins of a source (key, crop, label) that gave a crop without a remark.

    What follows are the source's width, height and mode, and the crop's bytes.
    """
    key, crop, label = named
    name = _text(key)
    return (
        f'{{"key":{name},"crop":{name if crop == key else _text(crop)},"label":{label},'
        f'"status":"ok","reason":"","bytes":{size},"mtime_ns":{mtime_ns},'
        f'"settings":{_text(settings)},"width":'.encode()
    )


class End(NamedTuple):
    """What the last line of a journal says: so many sources, with this sum of their checksums.

    ``of`` is the number of all sources where the journal is that of a part.
    """

    sources: int
    sum: int
    of: int | None = None

    def line(self) -> bytes:
        """The line."""
        more = b"" if self.of is None else b',"of":%d' % self.of
        return _checked(b'{"complete":%d,"sum":%d%b' % (self.sources, self.sum, more))[0]


def _checked(body: bytes) -> tuple[bytes, int]:
    check = zlib.crc32(body)
    return b"%b%b%d}\n" % (body, _CHECK, check), check


class Journal:
    """Reads a journal line by line; what its lines add up to is known afterwards.

    ``whole`` says whether it is what a run that ended well has left: every line as it was
    written, one per source, and none missing. ``damaged`` is the number of the first line
    that is not as it was written; ``end`` is what the last line says, if it ends a run. A file
    that is not there is an empty journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged: int | None = None
        self.whole = False
        self.end: End | None = None

    def __iter__(self) -> Iterator[Entry]:
        """The entry of every sound line, in order; later ones replace earlier ones."""
        lines = sum_ = 0
        ended: End | None = None
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            for lines, line in enumerate(file, 1):
                body, check = sound(line)
                found = parse(body) if body else None
                if isinstance(found, Entry):
                    sum_ += check
                    ended = None
                    yield found
                    continue
                ended = found
                if found is None and self.damaged is None:
                    self.damaged = lines
        self.end = ended
        self.whole = self.damaged is None and ended is not None and ended[:2] == (lines - 1, sum_)


def sound(line: bytes) -> tuple[bytes, int]:
    """A line -> (what its checksum covers, its checksum); nothing where the two differ."""
    body, _, rest = line.rpartition(_CHECK)
    check = zlib.crc32(body)
    return (body, check) if rest == b"%d}\n" % check else (b"", 0)


def parse(body: bytes) -> Entry | End | None:
    """A line without its checksum -> its entry, or the end of a run; None for anything else."""
    try:
        plain = _PLAIN.fullmatch(body.decode("ascii"))
        if plain is not None:
            key, crop, label, status, reason, size, mtime_ns, settings, *of_crop = plain.groups()
            width, height, mode, made = of_crop
            numbers = int(label), int(size), int(mtime_ns), int(width), int(height), int(made)
        else:
            value = json.loads(body + b"}")
            if "complete" in value:
                return End(value["complete"], value["sum"], value.get("of"))
            fields = _FIELDS(value)
            if tuple(map(type, fields)) != _TYPES:
                return None
            key, crop, status, reason, settings, mode = itemgetter(0, 1, 3, 4, 7, 10)(fields)
            numbers = itemgetter(2, 5, 6, 8, 9, 11)(fields)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if status not in ("ok", "failed") or not is_inside(crop):
        return None
    # Interned: the same few words a million times.
    return Entry(
        key, crop, numbers[0], intern(status), intern(reason), numbers[1], numbers[2],
        intern(settings), numbers[3], numbers[4], intern(mode), numbers[5],
    )  # fmt: skip


def is_inside(path: str) -> bool:
    """Whether a relative path stays below the folder that it is relative to."""
    return bool(path) and path[0] != "/" and not (".." in path and ".." in path.split("/"))


def read_journal(path: Path) -> dict[str, Entry]:
    """The entries of a journal that a run has ended, by key.

    Raises ToolError when it is not whole: a run was stopped, or the file was changed.
    """
    lines = list(_whole(path))
    entries = {entry.key: entry for entry in lines}
    if len(entries) != len(lines):
        raise ToolError(f"{path}: is not whole; {REMEDY}")
    return entries


def _whole(path: Path) -> Iterator[Entry]:
    """The entries of a journal in its order; then ToolError when it is not whole."""
    journal = Journal(path)
    yield from journal
    if journal.damaged is not None:
        raise ToolError(f"{path}: line {journal.damaged} is damaged; {REMEDY}")
    if not journal.whole:
        raise ToolError(f"{path}: is not whole; {REMEDY}")


def read_finished(cropped: Path) -> dict[str, Entry]:
    """The journal of a folder that ``crop`` has finished, by key.

    Raises UsageError or ToolError when the folder was not made by ``crop``, when that did
    not finish, or when its journal is damaged.
    """
    return read_journal(_finished(cropped))


def _finished(cropped: Path) -> Path:
    journal = journal_of(cropped)
    if (cropped / UNFINISHED_NAME).exists():
        raise ToolError(
            f"{cropped}: imagenet-prep crop has not finished there; run the same command "
            "again, it continues"
        )
    return journal


def journal_of(cropped: Path) -> Path:
    """The journal in a folder; UsageError or ToolError when ``crop`` did not make that."""
    if not cropped.is_dir():
        what = "is a file, no folder" if cropped.exists() else "no such folder"
        raise UsageError(f"{cropped}: {what}; name one that imagenet-prep crop made")
    journal = cropped / JOURNAL_NAME
    if not journal.is_file() and part_journals(cropped):
        raise ToolError(
            f"{cropped}: was cropped in parts, which have not been merged; run imagenet-prep merge "
            f"{cropped} when all of them are there"
        )
    if not journal.is_file():
        raise ToolError(
            f"{cropped}: was not made by imagenet-prep crop (it has no {JOURNAL_NAME}); name its "
            "--dst, or run it first"
        )
    return journal


class Crops:
    """The good crops of a folder that ``crop`` has finished: one reading of its journal.

    Good is what the journal calls ok. ``splits`` are those of train, val and test that have
    some, ``counts`` how many; ``settings`` is the text of those that they were made with, None if
    not one and the same. Making one raises what ``read_finished`` does.
    """

    def __init__(self, cropped: Path) -> None:
        journal, settings = _finished(cropped), set()
        good: dict[str, Packed[tuple[Any, ...]]] = {split: Packed(tuple, tuple) for split in SPLITS}
        for entry in _whole(journal):
            if entry.status == "ok":
                settings.add(entry.settings)
                split = entry.crop.partition("/")[0]
                if split in good:
                    good[split].append((entry.crop, entry.label))
        self.folder = cropped
        self.splits = tuple(split for split in SPLITS if len(good[split]))
        self.settings = settings.pop() if len(settings) == 1 else None
        self.counts = {split: len(good[split]) for split in self.splits}
        self._journal = journal
        self._good = good

    def of(self, split: str) -> list[tuple[str, int]]:
        """(crop path relative to the folder, label) of those of ``split``, sorted.

        Raises ToolError when the split has no crops, or one of them is no longer there.
        """
        return list(self.rows(split))

    def rows(self, split: str, *, there: bool = True) -> Iterator[tuple[str, int]]:
        """As ``of``, one after the other, so that there may be very many.

        ``there``: each is looked for, otherwise none.
        """
        if split not in self.splits:
            raise ToolError(
                f"{self.folder}: has no crops of the split {split}; crop the pictures first"
            )
        before, folder = "", f"{self.folder}/"
        for crop, label in self._good[split].rows():
            if crop == before:
                raise ToolError(f"{self._journal}: is not whole; {REMEDY}")
            if there and not os.path.isfile(folder + crop):  # noqa: PTH113 - a million of them
                raise ToolError(f"{folder}{crop}: is missing or cannot be reached; {REMEDY}")
            before = crop
            yield crop, label


def list_crops(cropped: Path, split: str) -> list[tuple[str, int]]:
    """The good crops of one split; see ``Crops``."""
    return Crops(cropped).of(split)
