"""Files named by class: recognised, labelled; and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from imagenet_prep.core.errors import ToolError
from imagenet_prep.sources.scan import scan
from tests.kit.errors import fails
from tests.kit.sources import made, rows


def test_files_named_by_class_are_recognised(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "dog.1.jpg", "cat.12.jpg", "cat.a.7.png", "LICENSE", "list.csv")
    found = scan(src)
    assert rows(found) == [
        ("cat.12.jpg", "train", 0, "train/cat/cat.12.JPEG"),
        ("cat.a.7.png", "train", 1, "train/cat.a/cat.a.7.JPEG"),
        ("dog.1.jpg", "train", 2, "train/dog/dog.1.JPEG"),
    ]


def test_kaggles_cats_and_dogs_lie_in_folders_within_folders(tmp_path: Path) -> None:
    src = made(
        tmp_path / "raw", "train/train/cat.1.jpg", "train/train/dog.1.jpg", "test1/test1/1.jpg"
    )
    found = scan(src)
    assert [(s.key, s.label) for s in found.sources] == [
        ("train/train/cat.1.jpg", 0), ("train/train/dog.1.jpg", 1),
    ]  # fmt: skip
    assert found.notices == ["test1/test1: left out, its images have no classes"]


def test_splits_of_files_named_by_class_and_unlabelled_test(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "train/cat.1.jpg", "train/dog.1.jpg", "val/dog.2.jpg")
    made(src, "test/1.jpg", "test/2.jpg")
    assert [s.key for s in scan(src).sources] == [
        "train/cat.1.jpg", "train/dog.1.jpg", "val/dog.2.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [
        ("IMG_0001.jpg", "DSC_0002.jpg"),  # cameras
        ("cat.1.jpg", "dog.2.jpg", "other.jpg"),
        ("cat.1.jpg", "cat.2.jpg"),
        ("1.jpg", "2.jpg"),
        ("cat.1.jpg", "dog.2.jpg", "below/x.jpg"),
    ],
)
def test_what_is_not_plainly_named_by_class_stays_folders(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    src = made(tmp_path / "raw", *names)
    try:
        found = scan(src)
        assert len(found.sources) and len(found.classes) == 1
    except ToolError as error:
        assert error.code == "source.no_class"


def test_underscores_and_hyphens_count_when_the_layout_is_named(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "Great_Dane_7.jpg", "pug-12.jpg", "cat.3.jpg", "a_b_.4.jpg")
    assert scan(src, layout="flat").classes.names == ("Great_Dane", "a_b", "cat", "pug")


def test_a_file_that_is_not_named_by_class_is_named(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "cat.1.jpg", "holiday.jpg")
    with fails("source.no_class", "holiday.jpg"):
        scan(src, layout="flat")


def test_real_files_named_by_class(shared_data: Path) -> None:
    found = scan(shared_data / "cats-dogs")
    assert found.classes.names == ("cat", "dog")
    counts = Counter((s.split, s.label) for s in found.sources)
    assert counts == {("train", 0): 100, ("train", 1): 100, ("test", 0): 50, ("test", 1): 50}
