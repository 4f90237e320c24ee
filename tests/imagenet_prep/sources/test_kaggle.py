"""ImageNet as Kaggle has it: recognised at any of its folders, val labelled, test left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagenet_prep.crop.run import run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.sources.scan import scan
from tests.conftest import jpeg_bytes, smooth_pixels
from tests.kit.errors import fails
from tests.kit.sources import WNIDS, made, rows

DATA = "ILSVRC/Data/CLS-LOC"
VAL = "ILSVRC2012_val_00000002"


@pytest.fixture
def outer(tmp_path: Path) -> Path:
    src = made(
        tmp_path / "imagenet",
        *(f"{DATA}/train/{wnid}/{wnid}_{n}.JPEG" for wnid in WNIDS for n in (1, 22)),
        *(f"{DATA}/val/{VAL}.JPEG", f"{DATA}/test/ILSVRC2012_test_00000001.JPEG"),
        f"ILSVRC/Annotations/CLS-LOC/train/{WNIDS[0]}/{WNIDS[0]}_1.xml",
        "ILSVRC/ImageSets/CLS-LOC/val.txt",
    )
    lines = [f"{wnid} name of {wnid}, other" for wnid in reversed(WNIDS)]
    (src / "LOC_synset_mapping.txt").write_text("\n".join(lines))
    return src


@pytest.mark.parametrize("below", ["", "ILSVRC", DATA])
def test_it_is_recognised_at_each_of_its_folders(outer: Path, below: str) -> None:
    found = scan(outer / below)
    assert found.layout == "kaggle"
    assert len(found.sources) == 7
    assert rows(found)[0] == (
        f"train/{WNIDS[0]}/{WNIDS[0]}_1.JPEG", "train", 0, f"train/{WNIDS[0]}/{WNIDS[0]}_1.JPEG",
    )  # fmt: skip
    assert rows(found)[-1] == (f"val/{VAL}.JPEG", "val", 2, f"val/{WNIDS[2]}/{VAL}.JPEG")
    assert found.splits == {"train": 6, "val": 1}
    assert found.notices == ["test: left out, its images have no classes"]


@pytest.mark.parametrize("below", ["", "ILSVRC", DATA])
def test_the_solution_labels_val_where_it_is_there(outer: Path, below: str) -> None:
    (outer / "LOC_val_solution.csv").write_text(
        f"ImageId,PredictionString\n{VAL},{WNIDS[1]} 85 1 499 272 {WNIDS[1]} 1 1 9 9\n"
    )
    assert scan(outer / below).sources[-1].label == 1
    (outer / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{VAL},\n")
    with fails("list.row", "line 2"):
        scan(outer / below)


def test_its_list_of_classes_is_taken(outer: Path) -> None:
    classes = scan(outer, classes=outer / "LOC_synset_mapping.txt").classes
    assert classes.names == tuple(reversed(WNIDS))
    assert classes.title(0) == f"name of {WNIDS[2]}, other"


def test_an_image_without_label_is_refused(outer: Path) -> None:
    made(outer, f"{DATA}/val/strange.JPEG")
    with fails("source.no_class", "strange.JPEG"):
        scan(outer)


def test_it_is_cropped_with_the_right_labels(outer: Path, tmp_path: Path) -> None:
    for path in outer.rglob("*.JPEG"):
        path.write_bytes(jpeg_bytes(smooth_pixels(40, 50, 1)))
    report = run_crop(outer, tmp_path / "cropped", CropSettings(size=16), jobs=1)
    assert (report.ok, report.failed, report.classes) == (7, 0, 3)
    assert (tmp_path / "cropped" / "val" / WNIDS[2] / f"{VAL}.JPEG").is_file()


def test_a_folder_of_something_else_is_wrong_usage(tmp_path: Path) -> None:
    with fails("source.layout_mismatch", usage=True):
        scan(made(tmp_path / "raw", "ant/1.jpg"), layout="kaggle")
