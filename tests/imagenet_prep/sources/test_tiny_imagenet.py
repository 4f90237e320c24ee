"""Tiny ImageNet as it comes and after scripts: recognised, labelled; and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from imagenet_prep.sources.scan import scan
from tests.kit.errors import fails
from tests.kit.sources import made, rows


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    src = made(
        tmp_path / "tiny",
        *("train/n02/images/n02_0.JPEG", "train/n01/images/n01_0.JPEG", "train/n01/n01_boxes.txt"),
        *("val/images/val_0.JPEG", "val/images/val_1.JPEG", "test/images/test_0.JPEG"),
    )
    (src / "wnids.txt").write_text("n02\nn01\n")
    (src / "words.txt").write_text("n00\tentity\nn01\ttench, a fish\nn02\tcock\n")
    (src / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n"
    )
    return src


def test_tiny_imagenet_is_recognised_and_its_test_is_left_out(tiny: Path) -> None:
    found = scan(tiny)
    assert rows(found) == [
        ("train/n01/images/n01_0.JPEG", "train", 0, "train/n01/n01_0.JPEG"),
        ("train/n02/images/n02_0.JPEG", "train", 1, "train/n02/n02_0.JPEG"),
        ("val/images/val_0.JPEG", "val", 1, "val/n02/val_0.JPEG"),
        ("val/images/val_1.JPEG", "val", 0, "val/n01/val_1.JPEG"),
    ]
    assert dict(found.classes.readable) == {"n01": "tench, a fish", "n02": "cock"}


def test_a_listed_image_that_is_not_there_fails_when_it_is_read(tiny: Path) -> None:
    (tiny / "val/images/val_1.JPEG").unlink()
    with pytest.raises(FileNotFoundError):
        scan(tiny).sources[3].read()


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ("val_0.JPEG\tn02\n", "source.no_class"),
        ("val_0.JPEG\tn02\nval_1.JPEG\n", "list.row"),
        ("val_0.JPEG\tn02\nval_0.JPEG\tn01\n", "list.row"),
        ("val_0.JPEG\t../n02\n", "list.row"),
        ("val_0.JPEG\tn02\nval_1.JPEG\tn01\n../x\tn02\n", "list.unsafe_path"),
        ("val_0.JPEG\tn02\nval_1.JPEG\tn77\n", "source.class_unknown"),
    ],
)
def test_wrong_annotations_are_refused(tiny: Path, lines: str, code: str) -> None:
    (tiny / "val" / "val_annotations.txt").write_text(lines)
    with fails(code):
        scan(tiny)


def test_tiny_imagenet_without_annotations_has_no_val(tiny: Path) -> None:
    (tiny / "val" / "val_annotations.txt").unlink()
    with fails("list.missing"):
        scan(tiny)


def test_tiny_imagenet_can_do_without_its_lists(tiny: Path) -> None:
    (tiny / "wnids.txt").unlink()
    (tiny / "words.txt").unlink()
    assert scan(tiny).classes.names == ("n01", "n02")


def test_a_folder_that_is_not_tiny_imagenet_is_wrong_usage(tmp_path: Path) -> None:
    with fails("source.layout_mismatch", usage=True):
        scan(made(tmp_path / "raw", "ant/1.jpg"), layout="tiny")


def test_the_real_tiny_imagenet(shared_data: Path) -> None:
    found = scan(shared_data / "tiny-imagenet-200")
    assert Counter(s.split for s in found.sources) == {"train": 2000, "val": 400}
    assert len(found.classes) == len(found.classes.readable) == 200
    assert found.classes.title(0) == "goldfish, Carassius auratus"
    first = found.sources[-1]
    assert first.read()[:2] == b"\xff\xd8"


@pytest.mark.parametrize("below", ["", "images/"])
@pytest.mark.parametrize("annotations", [True, False])
def test_after_a_script_that_moves_val_into_class_folders(
    tiny: Path, below: str, annotations: bool
) -> None:
    for name, wnid in (("val_0.JPEG", "n02"), ("val_1.JPEG", "n01")):
        (tiny / "val" / wnid / below).mkdir(parents=True)
        (tiny / "val/images" / name).rename(tiny / "val" / wnid / below / name)
    if not annotations:
        (tiny / "val/val_annotations.txt").unlink()
        (tiny / "val/images").rmdir()
    assert [row for row in rows(scan(tiny)) if row[1] == "val"] == [
        (f"val/n01/{below}val_1.JPEG", "val", 0, "val/n01/val_1.JPEG"),
        (f"val/n02/{below}val_0.JPEG", "val", 1, "val/n02/val_0.JPEG"),
    ]


def test_after_a_script_that_stopped_halfway_or_made_a_mistake(tiny: Path) -> None:
    (tiny / "val/n02").mkdir()
    (tiny / "val/images/val_0.JPEG").rename(tiny / "val/n02/val_0.JPEG")
    assert [s.key for s in scan(tiny).sources][2:] == [
        "val/images/val_1.JPEG",
        "val/n02/val_0.JPEG",
    ]
    (tiny / "val/n02").rename(tiny / "val/n01")
    with fails("source.class_conflict", "val_0.JPEG"):
        scan(tiny)
