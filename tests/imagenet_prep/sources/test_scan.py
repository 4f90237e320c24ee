"""The file of --classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagenet_prep.sources.scan import scan
from tests.kit.errors import fails
from tests.kit.sources import made


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return made(
        tmp_path / "raw", *("train/ant/1.jpg", "train/bee/1.jpg", "train/cat, wild/1.jpg"),
        *("val/ant/2.jpg", "val/wasp/2.jpg"),
    )  # fmt: skip


def chosen(raw: Path, text: str) -> Path:
    path = raw.parent / "classes.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_chosen_classes_have_labels_in_the_order_of_the_file(raw: Path) -> None:
    collection = scan(raw, classes=chosen(raw, "cat, wild\n\nant,the ant\nbee\ta bee, too\n"))
    assert collection.classes.names == ("cat, wild", "ant", "bee")
    assert dict(collection.classes.readable) == {"ant": "the ant", "bee": "a bee, too"}
    assert [(s.key, s.label) for s in collection.sources] == [
        ("train/ant/1.jpg", 1), ("train/bee/1.jpg", 2), ("train/cat, wild/1.jpg", 0),
        ("val/ant/2.jpg", 1),
    ]  # fmt: skip


def test_a_class_that_only_val_has_can_be_left_out(raw: Path) -> None:
    with fails("source.class_unknown"):
        scan(raw)
    assert len(scan(raw, classes=chosen(raw, "bee\nant\n")).sources) == 3


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("ant\nbees\n", "classes.unknown"),
        ("xyz\n", "classes.unknown"),
        ("ant\nant\tagain\n", "classes.duplicate"),
        ("\n \n", "classes.empty"),
    ],
)
def test_faulty_class_lists_are_one_message(raw: Path, text: str, code: str) -> None:
    with fails(code):
        scan(raw, classes=chosen(raw, text))


def test_a_class_list_that_is_missing_or_no_text_is_one_message(raw: Path) -> None:
    with fails("classes.missing", usage=True):
        scan(raw, classes=raw / "none.txt")
    (raw.parent / "classes.txt").write_bytes(b"caf\xe9\n")
    with fails("list.encoding"):
        scan(raw, classes=raw.parent / "classes.txt")


def test_renaming_keeps_what_the_source_knows_of_the_others(tmp_path: Path) -> None:
    src = made(tmp_path / "tiny", "train/n01/images/1.JPEG", "train/n02/images/2.JPEG")
    (src / "wnids.txt").write_text("n01\nn02\n")
    (src / "words.txt").write_text("n01\ttench\nn02\tcock\n")
    classes = scan(src, classes=chosen(src, "n02\trooster\nn01\n")).classes
    assert [classes.title(label) for label in range(2)] == ["rooster", "tench"]
