"""``crop.jsonl``: a part, a changed line and a missing one are told from the whole."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset.journal import (
    UNFINISHED_NAME,
    End,
    Entry,
    Journal,
    is_inside,
    line_of,
    list_crops,
    read_journal,
)
from imagenet_prep.dataset.names import JOURNAL_NAME

MUTATIONS = 500


def entry(index: int, **fields: Any) -> Entry:
    key = f"train/ant/{index}.jpg"
    made = Entry(key, f"train/ant/{index}.JPEG", index, "ok", "", 10 + index, 20, "size=8")
    return made._replace(**fields)


ENTRIES = [
    entry(0),
    entry(1, status="failed", reason="empty file"),
    entry(2, key='träin/\n\\x"é.jpg'),
]


def journal_of(entries: list[Entry], end: bool = True) -> bytes:
    lines, checks = zip(*map(line_of, entries), strict=True)
    last = End(len({e.key for e in entries}), sum(checks)).line() if end else b""
    return b"".join(lines) + last


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / JOURNAL_NAME
    file.write_bytes(journal_of(ENTRIES))
    return file


def test_what_is_written_is_read(path: Path) -> None:
    assert read_journal(path) == {made.key: made for made in ENTRIES}


def test_two_lines_about_a_source_are_not_what_a_run_leaves(path: Path) -> None:
    twice = [*ENTRIES, entry(0, bytes=99)]
    lines, checks = zip(*map(line_of, twice), strict=True)
    path.write_bytes(b"".join([*lines, End(4, sum(checks)).line()]))
    assert list(Journal(path)) == twice
    with pytest.raises(ToolError, match="is not whole"):
        read_journal(path)


def test_a_journal_whose_run_was_stopped_is_not_whole(path: Path) -> None:
    for part in (journal_of(ENTRIES, end=False), journal_of(ENTRIES) + line_of(entry(7))[0], b""):
        path.write_bytes(part)
        with pytest.raises(ToolError, match="is not whole"):
            read_journal(path)


def test_a_line_that_is_gone_or_exchanged_is_noticed(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    for wrong in (lines[1:], lines[:1] + lines[2:], [line_of(entry(9))[0], *lines[1:]]):
        path.write_bytes(b"".join(wrong))
        with pytest.raises(ToolError, match="is not whole"):
            read_journal(path)


def test_every_changed_byte_and_every_truncation_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    chance = random.Random(5)
    for number in range(MUTATIONS):
        data = bytearray(whole)
        at = chance.randrange(len(data))
        if number % 3 == 0:
            del data[at:]
        elif number % 3 == 1:
            data[at] ^= 1 << chance.randrange(8)
        else:
            end = min(at + chance.randrange(1, 40), len(data))
            del data[at:end]
        path.write_bytes(data)
        with pytest.raises(ToolError, match=str(path)):
            read_journal(path)


def test_lines_of_another_kind_are_damaged_and_named(path: Path) -> None:
    whole = path.read_bytes()
    outside = line_of(entry(5, crop="../../precious.JPEG"))[0]
    typed = line_of(entry(5, label="5"))[0]
    for line in (b"[]\n", b'{"key":1}\n', b"\x00\xff{\n", outside, typed):
        path.write_bytes(line + whole)
        journal = Journal(path)
        assert len(list(journal)) == len(ENTRIES)
        assert journal.damaged == 1
        with pytest.raises(ToolError, match="line 1 is damaged"):
            read_journal(path)


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        *[("a/b", True), ("a..b/c", True), ("...", True)],
        *[("", False), ("/a", False), ("..", False), ("a/../b", False)],
    ],
)
def test_only_paths_below_the_folder_are_inside(path: str, inside: bool) -> None:
    assert is_inside(path) == inside


def test_crops_are_not_listed_while_a_run_is_unfinished(path: Path) -> None:
    good = [(entry.crop, entry.label) for entry in ENTRIES if entry.status == "ok"]
    for name, _ in good:
        crop = path.parent / name
        crop.parent.mkdir(parents=True, exist_ok=True)
        crop.write_bytes(b"x")
    assert list_crops(path.parent, "train") == good
    (path.parent / UNFINISHED_NAME).touch()
    with pytest.raises(ToolError, match="has not finished"):
        list_crops(path.parent, "train")
