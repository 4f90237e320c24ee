"""Journals in the order of their keys: merged, and written anew only where they differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_prep.core.errors import ToolError
from imagenet_prep.crop.journal_io import Rewriting, last_lines, whole_end
from imagenet_prep.dataset.journal import End, Entry, line_of, line_start, parse, sound

_KEYS = st.text(st.sampled_from('ab/"\\\n é蟻\U0001f40c'), min_size=1, max_size=4)


def entry(key: str, size: int = 10, reason: str = "") -> Entry:
    return Entry(key, "train/x.JPEG", 3, "ok", reason, size, 20, "size=8", 4, 5, "RGB", 6)


def lines(*entries: Entry) -> bytes:
    return b"".join(line_of(each)[0] for each in entries)


def found(*paths: Path) -> list[tuple[str, int]]:
    return [(line.key, line.entry.bytes) for line in last_lines(paths) if line.entry]


@settings(max_examples=40, deadline=None)
@given(keys=st.lists(_KEYS, max_size=12))
def test_the_last_line_about_each_key_comes_in_the_order_of_the_keys(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "crop.jsonl"
    path.write_bytes(lines(*(entry(key, at) for at, key in enumerate(keys))))
    assert found(path) == sorted({key: at for at, key in enumerate(keys)}.items())


def test_damaged_lines_are_passed_over_wherever_they_are(tmp_path: Path) -> None:
    path = tmp_path / "crop.jsonl"
    good = lines(entry("a")), lines(entry("b")), lines(entry("c"))
    bad = good[1].replace(b"20", b"21"), b'{"key":"z\n', b'{"key":"\\q","\n', b"\xff\n", b"[]\n"
    path.write_bytes(bad[1] + good[0] + bad[0] + bad[2] + bad[3] + good[2] + bad[4] + good[1][:-1])
    assert found(path) == [("a", 10), ("c", 10)]


def test_of_several_journals_the_first_is_believed(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("0", "none", "1", "2")]
    paths[0].write_bytes(lines(entry("b", 1)))
    paths[2].write_bytes(lines(entry("a", 2), entry("b", 2), entry("c", 2)))
    paths[3].write_bytes(lines(entry("c", 3), entry("d", 3)))
    assert found(*paths) == [("a", 2), ("b", 1), ("c", 2), ("d", 3)]


def test_a_line_is_what_json_would_write_and_both_ways_of_reading_agree() -> None:
    for each in (entry("a", reason="x"), entry('é"\\\n', reason="\t"), entry("~ !#[]", size=-1)):
        text, check = line_of(each)
        assert json.loads(text) == {**each._asdict(), "check": check}
        plain = json.dumps(json.loads(text), separators=(",", ":")) + "\n"
        assert plain.encode() == text
        spaced = text.replace(b'"label":3', b'"label": 3')
        assert parse(sound(text)[0]) == parse(spaced.rpartition(b',"check"')[0]) == each


def test_the_start_of_a_line_is_that_of_the_line() -> None:
    for key in ("a", 'é"\\'):
        named = entry(key)
        start = line_start((key, named.crop, named.label), 10, 20, "size=8")
        assert line_of(named)[0].startswith(start + b"4,")
        assert not line_of(named._replace(reason="r"))[0].startswith(start)


def rewritten(
    path: Path, keep: list[str], *, complete: bool = True, put: tuple[str, ...] = ()
) -> bytes:
    with Rewriting(path) as journal:
        for line in last_lines([path]):
            if line.key in keep:
                journal.keep(line)
            elif line.key in put:
                journal.put(entry(line.key, 99))
        journal.end(complete)
    return path.read_bytes()


def whole(*entries: Entry) -> bytes:
    checks = [line_of(each)[1] for each in entries]
    return lines(*entries) + End(len(entries), sum(checks)).line()


def test_a_journal_that_says_just_that_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "crop.jsonl"
    path.write_bytes(whole(entry("a"), entry("b")))
    before = path.stat()
    assert rewritten(path, ["a", "b"]) == whole(entry("a"), entry("b"))
    assert path.stat().st_ino == before.st_ino
    part = lines(entry("a"), entry("b"))
    path.write_bytes(part)
    inode = path.stat().st_ino
    assert rewritten(path, ["a", "b"], complete=False) == part
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("keep", [["a", "b"], ["a", "c"], ["b", "c"], ["c"], []])
def test_what_is_left_out_is_gone_and_the_rest_is_as_it_was(
    tmp_path: Path, keep: list[str]
) -> None:
    path = tmp_path / "crop.jsonl"
    for old in (
        whole(entry("a"), entry("b"), entry("c")),
        lines(entry("b", 1), entry("a"), entry("c"), entry("b")),
        lines(entry("a"), entry("b")) + b"{damage\n" + lines(entry("c")),
    ):
        path.write_bytes(old)
        assert rewritten(path, keep) == whole(*map(entry, keep))
        path.write_bytes(old)
        assert rewritten(path, keep, complete=False) == lines(*map(entry, keep))
    assert [each.name for each in tmp_path.iterdir()] == ["crop.jsonl"]


def test_new_lines_take_the_place_of_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "crop.jsonl"
    path.write_bytes(whole(entry("a"), entry("b"), entry("c")))
    expected = whole(entry("a"), entry("b", 99), entry("c"))
    assert rewritten(path, ["a", "c"], put=("b",)) == expected


def test_after_an_exception_the_journal_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "crop.jsonl"
    path.write_bytes(whole(entry("a"), entry("b")))
    with pytest.raises(KeyboardInterrupt), Rewriting(path) as journal:
        journal.put(entry("0"))
        raise KeyboardInterrupt
    assert path.read_bytes() == whole(entry("a"), entry("b"))
    assert [each.name for each in tmp_path.iterdir()] == ["crop.jsonl"]


def test_what_is_not_whole_is_told(tmp_path: Path) -> None:
    path = tmp_path / "crop.jsonl"
    data = whole(entry("a"), entry("b", reason="r"))
    path.write_bytes(data)
    assert whole_end(path).sources == 2
    for at in range(0, len(data), 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ToolError, match=r"damaged|not whole"):
            whole_end(path)
    first = len(line_of(entry("a"))[0])
    for part in (b"", data[first:], data[:first], data[:-3], data + lines(entry("c"))):
        path.write_bytes(part)
        with pytest.raises(ToolError, match=r"damaged|not whole"):
            whole_end(path)
