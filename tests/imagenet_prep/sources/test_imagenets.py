"""ImageNet from Kaggle and in its archives, Tiny ImageNet: keys, labels; and what is refused."""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from imagenet_prep.crop.run import run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.sources.scan import scan
from tests.conftest import jpeg_bytes, smooth_pixels
from tests.kit.errors import fails
from tests.kit.sources import (
    WNIDS,
    contents,
    made,
    rows,
    tar_bytes,
    train_tar,
    val_tar,
)

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


A, B, C = WNIDS
TRAIN = {
    B: {f"{B}_10.JPEG": b"ten", f"{B}_9.JPEG": b"nine" * 400},
    A: {f"{A}_1.JPEG": b"one"},
    C: {f"{C}_3.JPEG": b"three"},
}
VAL_NAME = "ILSVRC2012_val_{:08d}.JPEG"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The archives of train and val."""
    src = tmp_path / "raw"
    src.mkdir()
    train_tar(src, TRAIN)
    val_tar(src, [b"first", b"second"])
    return src


def only_train(folder: Path, members: dict[str, bytes]) -> Path:
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(members))
    (folder / "ILSVRC2012_img_val.tar").unlink()
    return folder


def test_the_archives_are_read_in_place(folder: Path) -> None:
    before = sorted(entry.name for entry in folder.iterdir())
    found = scan(folder)
    assert (found.layout, found.classes.names) == ("ilsvrc", WNIDS)
    assert found.classes.title(0) == "sea snake"
    expected = [
        ("train", 0, A, f"{A}_1.JPEG", b"one"),
        ("train", 1, B, f"{B}_10.JPEG", b"ten"),
        ("train", 1, B, f"{B}_9.JPEG", b"nine" * 400),
        ("train", 2, C, f"{C}_3.JPEG", b"three"),
        ("val", 0, A, VAL_NAME.format(1), b"first"),
        ("val", 2, C, VAL_NAME.format(2), b"second"),
    ]
    paths = [f"{split}/{wnid}/{name}" for split, _, wnid, name, _ in expected]
    assert rows(found) == [
        (path, row[0], row[1], path) for path, row in zip(paths, expected, strict=True)
    ]
    assert list(contents(found).values()) == [row[-1] for row in expected]
    assert sorted(entry.name for entry in folder.iterdir()) == before


def test_unpacked_folders_have_the_same_keys(folder: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    for source in scan(folder).sources:
        path = unpacked / source.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read())
    assert rows(scan(unpacked)) == rows(scan(folder))


def test_train_and_val_can_be_alone(folder: Path) -> None:
    both = rows(scan(folder))
    train = scan(folder / "ILSVRC2012_img_train.tar")
    assert rows(train) == [row for row in both if row[1] == "train"]
    val = scan(folder / "ILSVRC2012_img_val.tar")
    assert [(s.label, s.class_name) for s in val.sources] == [(65, A), (970, C)]
    assert len(val.classes) == 1000


@pytest.mark.parametrize("below", ["", "train/"])
@pytest.mark.parametrize("unpacked", [False, True])
def test_class_tars_taken_out_of_the_archive(folder: Path, below: str, unpacked: bool) -> None:
    expected = rows(scan(folder))
    with tarfile.open(folder / "ILSVRC2012_img_train.tar") as tar:
        tar.extractall(folder / below, filter="data")
    (folder / "ILSVRC2012_img_train.tar").unlink()
    if unpacked:
        with tarfile.open(folder / "ILSVRC2012_img_val.tar") as tar:
            tar.extractall(folder / "val", filter="data")
        (folder / "ILSVRC2012_img_val.tar").unlink()
        expected = [(key.replace("val/" + crop.split("/")[1], "val"), split, label, crop)
                    for key, split, label, crop in expected]  # fmt: skip
    assert rows(scan(folder)) == expected


def test_unpacked_train_beside_the_archive_of_val(folder: Path) -> None:
    expected = rows(scan(folder))
    for source in scan(folder / "ILSVRC2012_img_train.tar").sources:
        path = made(folder, source.key) / source.key
        path.write_bytes(source.read())
    (folder / "ILSVRC2012_img_train.tar").unlink()
    assert rows(scan(folder)) == expected


def test_a_folder_without_archives_is_wrong_usage(tmp_path: Path) -> None:
    with fails("source.layout_mismatch", "ilsvrc", usage=True):
        scan(tmp_path, layout="ilsvrc")


def test_an_image_that_val_does_not_have_is_named(folder: Path) -> None:
    data = tar_bytes({"ILSVRC2012_val_00050001.JPEG": b"x"})
    (folder / "ILSVRC2012_img_val.tar").write_bytes(data)
    with fails("source.no_class", "val_00050001.JPEG"):
        _ = scan(folder).sources


def test_a_train_archive_that_is_cut_off_is_refused(folder: Path) -> None:
    path = folder / "ILSVRC2012_img_train.tar"
    whole = path.read_bytes()
    for length in (600, 1536, 4000, len(whole) // 2):
        path.write_bytes(whole[:length])
        with fails("archive.cut_off", "train.tar"):
            _ = scan(folder).sources


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"a.jpg": b"x"}, "archive.no_class_tars"),
        ({f"{A}.tar": tar_bytes([("x.JPEG", b"")] * 2)}, "source.duplicate"),
        ({f"{A}.tar": tar_bytes({"x.JPEG": b"", "X.jpeg": b""})}, "source.names_alike"),
        ({f"{A}.tar": tar_bytes({"../../../x.JPEG": b"x"})}, "archive.unsafe_name"),
        ({f"{A}.tar": tar_bytes({"x.JPEG": b"x"})[:1024] + bytes(99999)}, "archive.hole"),
    ],
)
def test_faulty_train_archives_are_refused(
    folder: Path, members: dict[str, bytes], code: str
) -> None:
    with fails(code):
        _ = scan(only_train(folder, members)).sources


def test_a_class_that_is_there_twice_is_named(folder: Path) -> None:
    inner = tar_bytes({"1.JPEG": b"x"})
    data = tar_bytes([(f"{A}.tar", inner), (f"{A}.tar", inner)])
    (folder / "ILSVRC2012_img_train.tar").write_bytes(data)
    with fails("source.duplicate", f"has {A} twice"):
        scan(folder)


def test_an_archive_made_on_a_mac_has_its_images_only(folder: Path) -> None:
    inner = tar_bytes({"./._1.JPEG": b"x", "./1.JPEG": b"one", "./.DS_Store": b"x"})
    only_train(folder, {f"./._{A}.tar": b"x", f"./{A}.tar": inner})
    assert [source.key for source in scan(folder).sources] == [f"train/{A}/1.JPEG"]


def test_images_of_archives_are_cropped_faulty_ones_fail_alone(folder: Path) -> None:
    image = jpeg_bytes(smooth_pixels(70, 90, 3))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in (("good.JPEG", image), ("cut.JPEG", image[:99]), ("no.JPEG", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    only_train(folder, {f"{A}.tar": buffer.getvalue()})
    dst = folder.parent / "cropped"
    report = run_crop(folder, dst, CropSettings(), jobs=1)
    assert (report.ok, report.failed) == (1, 3)
    assert [path.relative_to(dst).as_posix() for path in dst.rglob("*.JPEG")] == [
        f"train/{A}/good.JPEG"
    ]
    again = run_crop(folder, dst, CropSettings(), jobs=1)
    assert (again.tried, again.skipped) == (0, 1)


def test_an_archive_that_changes_during_reading_fails_the_image(folder: Path) -> None:
    first, *_ = scan(folder).sources
    os.truncate(first.file, first.offset + 1)
    with pytest.raises(OSError, match="become shorter"):
        first.read()
    Path(first.file).unlink()
    assert first.stamp() == (-1, -1)


def test_archives_and_folders_give_the_same_crops(shared_data: Path, tmp_path: Path) -> None:
    folders = sorted((shared_data / "imagenet-sample" / "train").iterdir())[:6]
    images = {f.name: {p.name: p.read_bytes() for p in f.iterdir()} for f in folders}
    (tmp_path / "archives").mkdir()
    train_tar(tmp_path / "archives", images)
    for wnid, files in images.items():
        for name, data in files.items():
            path = made(tmp_path / "folders", f"train/{wnid}/{name}") / "train" / wnid / name
            path.write_bytes(data)
    crops = []
    for name in ("archives", "folders"):
        dst = tmp_path / f"{name}-cropped"
        assert run_crop(tmp_path / name, dst, CropSettings(), jobs=1).ok == 6
        crops.append({p.relative_to(dst): p.read_bytes() for p in dst.rglob("*.JPEG")})
    assert crops[0] == crops[1]


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
