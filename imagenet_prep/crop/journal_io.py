"""Journals, read and written in the order of their keys, whatever their length.

A journal is what a run or two have appended, each in the order of its sources: a few sorted
runs of lines. So the last line about every source comes out sorted by merging these, and no
more than a line of each is in memory at a time.
"""

from __future__ import annotations

import contextlib
import heapq
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, NamedTuple

from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.files import publish
from imagenet_prep.dataset.journal import REMEDY, End, Entry, line_of, parse, sound

_KEY = re.compile(rb'\{"key":("(?:[^"\\]|\\.)*")')
_KEY_STARTS = b'{"key":"'
_KEY_AT = len(_KEY_STARTS)
_PLAIN = b',"status":"ok","reason":"","bytes":'
_BUFFER_BYTES = 1 << 18


class Line(NamedTuple):
    """A sound line of a journal: its source's key, where it begins in the first of the journals
    (-1: it is in another), its bytes, those of them that its checksum covers, and that."""

    key: str
    at: int
    text: bytes
    body: bytes
    check: int

    @property
    def is_plain(self) -> bool:
        """Whether it says of a crop without a remark; cheaper than reading all of it."""
        return _PLAIN in self.body

    @property
    def entry(self) -> Entry | None:
        """What it says; None for what no run of ``crop`` has written."""
        found = parse(self.body)
        return found if isinstance(found, Entry) else None


def whole_end(path: Path) -> End:
    """What the last line of a journal says; ToolError when that is not whole."""
    total = sum_ = 0
    end: End | None = None
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            body, check = sound(text)
            found = None if _PLAIN in body or not body else parse(body)
            if _PLAIN not in body and found is None:
                raise ToolError(f"{path}: line {number} is damaged; {REMEDY}")
            end = found if isinstance(found, End) else None
            total += end is None
            sum_ += 0 if end else check
    if end is None or end[:2] != (total, sum_):
        raise ToolError(f"{path}: is not whole; {REMEDY}")
    return end


def last_lines(journals: Sequence[Path]) -> Iterator[Line]:
    """The last sound line about each source, sorted by key; one journal after the other counts.

    A line of an earlier journal counts as the later one. Journals that are not there are empty.
    """
    with contextlib.ExitStack() as stack:
        runs: list[Iterator[Line]] = []
        for number, path in enumerate(journals):
            with contextlib.suppress(FileNotFoundError):
                file = stack.enter_context(path.open("rb"))
                found = [_lines(file, *run, known=number == 0) for run in _sorted_runs(file)]
                runs = found + runs if number else found
        merged = runs[0] if len(runs) == 1 else heapq.merge(*runs, key=itemgetter(0))
        before: Line | None = None
        for line in merged:
            if before is not None and before.key != line.key:
                yield before
            before = line
        if before is not None:
            yield before


def _sorted_runs(file: BinaryIO) -> list[tuple[int, int]]:
    """(begin, end) in bytes of the parts of a journal within which the keys do not descend."""
    starts, at, before = [0], 0, ""
    for line in file:
        key = _key_of(line)
        if key is not None:
            if key < before:
                starts.append(at)
            before = key
        at += len(line)
    return list(zip(starts, [*starts[1:], at], strict=True))


def _key_of(line: bytes) -> str | None:
    """The key in a line, whether that is sound or not; None where there is none."""
    if line[:_KEY_AT] != _KEY_STARTS:
        return None
    raw = line[_KEY_AT : line.find(b'"', _KEY_AT)]
    try:
        if b"\\" not in raw:
            return raw.decode()
        quoted = _KEY.match(line)
        return str(json.loads(quoted[1])) if quoted else None
    except ValueError:
        return None


def _lines(file: BinaryIO, begin: int, end: int, *, known: bool) -> Iterator[Line]:
    """The sound lines about sources in a part of a file."""
    at = begin
    for text in io.BufferedReader(_Part(file.fileno(), begin, end), _BUFFER_BYTES):
        body, check = sound(text)
        key = _key_of(text) if body else None
        if key is not None:
            yield Line(key, at if known else -1, text, body, check)
        at += len(text)


class _Part(io.RawIOBase):
    """Bytes ``begin`` up to ``end`` of an open file, whose own position stays as it is."""

    def __init__(self, handle: int, begin: int, end: int) -> None:
        self._handle, self._at, self._end = handle, begin, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = os.preadv(self._handle, [buffer[: self._end - self._at]], self._at)
        self._at += count
        return count


class Rewriting:
    """A journal that is written anew, but only from where it differs from what is there.

    A context manager. ``keep`` and ``put`` give its lines in the order of their keys, ``end``
    what comes after them. As long as the lines kept are those of the file, one after the
    other, nothing is written; if that is so to the end, the file stays as it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.total = 0
        self.sum = 0
        self._same_bytes = 0
        self._stack = contextlib.ExitStack()
        self._file: BinaryIO | None = None

    def __enter__(self) -> Rewriting:
        return self

    def __exit__(self, *reason: object) -> None:
        self._stack.__exit__(*reason)  # type: ignore[arg-type]

    def keep(self, line: Line) -> None:
        """A line as it was."""
        self.total += 1
        self.sum += line.check
        if self._file is None and line.at == self._same_bytes:
            self._same_bytes += len(line.text)
        else:
            self._begun().write(line.text)

    def put(self, entry: Entry) -> None:
        """A new line."""
        text, check = line_of(entry)
        self.total += 1
        self.sum += check
        self._begun().write(text)

    def end(self, complete: bool, of: int | None = None) -> None:
        """With the last line, or without it where lines about other sources will follow."""
        last = End(self.total, self.sum, of).line() if complete else b""
        if self._file is not None or self._rest(len(last)) != last:
            self._begun().write(last)

    def _rest(self, most: int) -> bytes | None:
        """What the file has after the lines kept; None for no file or more than ``most``."""
        try:
            if self.path.stat().st_size - self._same_bytes > most:
                return None
            with self.path.open("rb") as file:
                file.seek(self._same_bytes)
                return file.read()
        except FileNotFoundError:
            return None

    def _begun(self) -> BinaryIO:
        """The new file, with what is the same in it."""
        if self._file is None:
            temporary = self._stack.enter_context(publish(self.path))
            self._file = self._stack.enter_context(temporary.open("wb"))
            if self._same_bytes:
                with self.path.open("rb") as old:
                    part = io.BufferedReader(_Part(old.fileno(), 0, self._same_bytes))
                    shutil.copyfileobj(part, self._file, _BUFFER_BYTES)
        return self._file
