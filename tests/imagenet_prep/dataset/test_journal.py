"""``crop.sqlite``: parts and damage are noticed; ``crop.jsonl`` is taken over."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset.journal import (
    PUT,
    UNFINISHED_NAME,
    Crops,
    Entry,
    Part,
    all_rows,
    finish,
    is_inside,
    opened,
    part_journals,
)
from imagenet_prep.dataset.names import JOURNAL_NAME
from tests.kit.errors import fails
from tests.kit.journal import journal_rows, list_crops, read_finished

MUTATIONS = 300


def entry(index: int, **fields: Any) -> Entry:
    names = f"train/ant/{index}.jpg", "train", 0, f"train/ant/{index}.JPEG"
    return Entry(*names, "ok", "", "", 10 + index, 20, "size=8")._replace(**fields)


ENTRIES = [
    entry(0),
    entry(1, status="failed", code="image.empty", remark="empty file"),
    entry(2, key='träin/\n\\x"é.jpg', label=1, version="an-etag"),
    entry(3, split="val", crop="val/ant/3.JPEG"),
]


def write(path: Path, entries: Sequence[Entry] = ENTRIES, sources: int | None = None) -> Path:
    with opened(path, create=True) as journal:
        journal.executemany(PUT, entries)
        finish(journal, len(entries) if sources is None else sources, len(entries))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    for made in ENTRIES:
        crop = tmp_path / made.crop
        crop.parent.mkdir(parents=True, exist_ok=True)
        crop.write_bytes(b"x")
    return write(tmp_path / JOURNAL_NAME)


def test_what_is_written_is_read(path: Path) -> None:
    assert read_finished(path.parent) == {made.key: made for made in ENTRIES}
    crops = Crops(path.parent)
    assert (crops.splits, crops.counts) == (("train", "val"), {"train": 2, "val": 1})
    assert crops.of("train") == [("train/ant/0.JPEG", 0), ("train/ant/2.JPEG", 1)]


def test_crops_are_not_listed_while_a_run_is_unfinished(path: Path) -> None:
    (path.parent / UNFINISHED_NAME).touch()
    with fails("crop.unfinished"):
        list_crops(path.parent, "train")
    (path.parent / UNFINISHED_NAME).unlink()
    with opened(path) as journal:
        journal.execute("DELETE FROM finished")
    with fails("crop.journal_incomplete"):
        list_crops(path.parent, "train")


@pytest.mark.parametrize("sources", [0, 3, 5])
def test_a_journal_with_another_number_of_rows_is_incomplete(tmp_path: Path, sources: int) -> None:
    write(tmp_path / JOURNAL_NAME, sources=sources)
    with fails("crop.journal_incomplete"):
        Crops(tmp_path)


def test_two_sources_with_one_crop_are_not_listed(tmp_path: Path) -> None:
    write(tmp_path / JOURNAL_NAME, [entry(0), entry(1, crop="train/ant/0.JPEG")])
    with fails("crop.journal_incomplete"):
        list(Crops(tmp_path).rows("train", there=False))


def test_damage_is_one_error_or_leaves_whole_rows(path: Path) -> None:
    """Any damage gives a ToolError, or rows with the types and the number of those written."""
    whole, chance, told = path.read_bytes(), random.Random(5), 0
    for number in range(MUTATIONS):
        data = bytearray(whole)
        at = chance.randrange(len(data))
        if number % 2:
            del data[at:]
        else:
            data[at : at + 64] = chance.randbytes(64)
        path.write_bytes(data)
        try:
            assert len(read_finished(path.parent)) == len(ENTRIES)
        except ToolError as error:
            told += 1
            assert error.code in ("crop.journal_damaged", "crop.journal_incomplete")
            assert str(path) in str(error)
    assert told > MUTATIONS / 2


def test_a_transaction_that_was_killed_leaves_the_rows_before_it(path: Path) -> None:
    """The files as a kill leaves them: a half-written database beside its rollback journal."""
    before = journal_rows(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as running:
        running.execute("PRAGMA cache_size = 1")  # changed pages reach the file before the commit
        running.execute("BEGIN")
        running.executemany(PUT, [entry(n, remark="x" * 500) for n in range(200)])
        copy = path.parent / "copy"
        copy.mkdir()
        for file in (path, path.with_name(path.name + "-journal")):
            (copy / file.name).write_bytes(file.read_bytes())
        running.execute("ROLLBACK")
    assert (copy / JOURNAL_NAME).stat().st_size > 50_000
    assert list(read_finished(copy)) == [row["key"] for row in before]
    assert journal_rows(copy / JOURNAL_NAME) == before


def test_a_folder_that_crop_did_not_make_is_an_error(tmp_path: Path) -> None:
    with fails("crop.no_journal"):
        Crops(tmp_path)
    with fails("crop.no_folder", usage=True):
        Crops(tmp_path / "none")


def test_unmerged_parts_are_read_together(tmp_path: Path) -> None:
    write(tmp_path / "crop.1-of-2.sqlite", ENTRIES[:2])
    write(tmp_path / "crop.2-of-2.sqlite", ENTRIES[2:])
    assert list(part_journals(tmp_path)) == [Part(1, 2), Part(2, 2)]
    with all_rows(tmp_path) as journal:
        assert sorted(journal.execute("SELECT * FROM source")) == sorted(map(tuple, ENTRIES))
    with fails("crop.parts_not_merged"):
        Crops(tmp_path)


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        *[("a/b", True), ("a..b/c", True), ("...", True)],
        *[("", False), ("/a", False), ("..", False), ("a/../b", False)],
    ],
)
def test_only_paths_below_the_folder_are_inside(path: str, inside: bool) -> None:
    assert is_inside(path) == inside


def legacy_line(value: dict[str, Any]) -> bytes:
    body = json.dumps(value, separators=(",", ":")).encode()[:-1]
    return b'%b,"check":%d}\n' % (body, zlib.crc32(body))


def legacy_journal(entries: Sequence[Entry]) -> list[bytes]:
    """The lines that earlier versions wrote."""
    lines = []
    for made in entries:
        value = made._asdict()
        value["reason"], value["mtime_ns"] = value.pop("remark"), value.pop("version")
        lines.append(legacy_line({k: v for k, v in value.items() if k not in ("split", "code")}))
    total = sum(zlib.crc32(line.rpartition(b',"check":')[0]) for line in lines)
    return [*lines, legacy_line({"complete": len(lines), "sum": total})]


def test_a_journal_of_an_earlier_version_is_taken_over_once(tmp_path: Path) -> None:
    lines = legacy_journal([*ENTRIES[:2], *ENTRIES[3:]])
    (tmp_path / "crop.jsonl").write_bytes(b"".join(lines))
    found = read_finished(tmp_path)
    assert found[ENTRIES[0].key] == ENTRIES[0]
    assert found[ENTRIES[1].key] == ENTRIES[1]._replace(code="crop.earlier_version")
    assert found[ENTRIES[3].key] == ENTRIES[3] and len(found) == 3
    assert (tmp_path / "crop.jsonl.old").read_bytes() == b"".join(lines)
    assert not (tmp_path / "crop.jsonl").exists()
    assert read_finished(tmp_path) == found


def test_damaged_lines_of_an_earlier_version_are_left_out(tmp_path: Path) -> None:
    lines = legacy_journal([*ENTRIES[:2], *ENTRIES[3:]])
    changed = [lines[0].replace(b"ant", b"bee"), *lines[1:]]
    for number, wrong in enumerate(
        (
            lines[:-1],
            lines[1:],
            changed,
            [b"\x00{\n", *lines],
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "crop.jsonl").write_bytes(b"".join(wrong))
        with fails("crop.journal_incomplete"):
            Crops(folder)
        expected = 3 if number in (0, 3) else 2
        assert len(journal_rows(folder / JOURNAL_NAME)) == expected
