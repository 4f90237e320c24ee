"""ILSVRC2012's archives, read in place: keys, labels, names; and what is refused."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.crop.run import run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.sources.mat import read_mat
from imagenet_prep.sources.scan import scan
from tests.conftest import jpeg_bytes, smooth_pixels
from tests.kit.sources import contents, devkit, mat_file, rows, tar_bytes, train_tar, val_tar

TRAIN = {
    "n02": {"n02_10.JPEG": b"ten", "n02_9.JPEG": b"nine" * 400},
    "n01": {"n01_1.JPEG": b"one"},
    "n03": {"n03_3.JPEG": b"three"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All three archives; the truth of val is 3, 1, that is n03, n02."""
    src = tmp_path / "raw"
    src.mkdir()
    train_tar(src, TRAIN)
    val_tar(src, [b"first", b"second"])
    devkit(src, [3, 1])
    return src


def test_the_archives_are_read_in_place(folder: Path) -> None:
    before = sorted(entry.name for entry in folder.iterdir())
    collection = scan(folder)
    assert rows(collection) == [
        ("train/n01/n01_1.JPEG", "train", 0, "train/n01/n01_1.JPEG"),
        ("train/n02/n02_10.JPEG", "train", 1, "train/n02/n02_10.JPEG"),
        ("train/n02/n02_9.JPEG", "train", 1, "train/n02/n02_9.JPEG"),
        ("train/n03/n03_3.JPEG", "train", 2, "train/n03/n03_3.JPEG"),
        ("val/n02/ILSVRC2012_val_00000002.JPEG", "val", 1, "val/n02/ILSVRC2012_val_00000002.JPEG"),
        ("val/n03/ILSVRC2012_val_00000001.JPEG", "val", 2, "val/n03/ILSVRC2012_val_00000001.JPEG"),
    ]
    assert list(contents(collection).values()) == [
        b"one", b"ten", b"nine" * 400, b"three", b"second", b"first",
    ]  # fmt: skip
    assert sorted(entry.name for entry in folder.iterdir()) == before


def test_labels_follow_the_wnids_and_names_come_from_the_devkit(folder: Path) -> None:
    classes = scan(folder).classes
    assert classes.names == ("n01", "n02", "n03")
    assert classes.title(0) == "word n01, w2"
    assert "n99" not in classes.readable


def test_a_journal_of_unpacked_folders_goes_on_with_the_archives(
    folder: Path, tmp_path: Path
) -> None:
    unpacked = tmp_path / "unpacked"
    for source in scan(folder).sources:
        path = unpacked / source.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.place.read())
    assert rows(scan(unpacked)) == rows(scan(folder))


def test_train_alone_needs_no_devkit(folder: Path) -> None:
    for name in ("ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"):
        (folder / name).unlink()
    collection = scan(folder)
    assert collection.classes.names == ("n01", "n02", "n03")
    assert collection.classes.title(1) == "n02"
    assert rows(scan(folder / "ILSVRC2012_img_train.tar")) == rows(collection)


def test_val_alone_has_all_classes_of_the_devkit(folder: Path) -> None:
    (folder / "ILSVRC2012_img_train.tar").unlink()
    collection = scan(folder)
    assert [source.label for source in collection.sources] == [1, 2]
    assert collection.classes.names == ("n01", "n02", "n03")
    assert rows(scan(folder / "ILSVRC2012_img_val.tar")) == rows(collection)


def test_val_without_devkit_is_one_sentence(folder: Path) -> None:
    (folder / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(ToolError, match=r"its classes are in ILSVRC2012_devkit_t12\.tar\.gz"):
        scan(folder)


def test_a_folder_without_archives_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither ILSVRC2012_img_train\.tar nor"):
        scan(tmp_path, layout="ilsvrc")


def test_a_picture_beyond_the_truth_is_named(folder: Path) -> None:
    devkit(folder, [3])
    with pytest.raises(ToolError, match=r"val_00000002\.JPEG is not one of the 1 pictures"):
        scan(folder)


def test_a_truth_without_class_is_named(folder: Path) -> None:
    devkit(folder, [3, 7])
    with pytest.raises(ToolError, match="does not have the class 7"):
        scan(folder)


@pytest.mark.parametrize(
    "damage",
    [b"", b"no gzip", gzip.compress(b"no tar"), None],
    ids=["empty", "no gzip", "no tar", "cut off"],
)
def test_a_damaged_devkit_is_one_sentence(folder: Path, damage: bytes | None) -> None:
    path = folder / "ILSVRC2012_devkit_t12.tar.gz"
    path.write_bytes(path.read_bytes()[:300] if damage is None else damage)
    with pytest.raises(ToolError, match=r"devkit_t12\.tar\.gz: .*; fetch it again"):
        scan(folder)


def test_a_devkit_with_another_mat_file_is_one_sentence(folder: Path) -> None:
    for mat in (b"", mat_file([]), mat_file([(1, "n01", "a"), (2, "n01", "b")])):
        devkit(folder, [3, 1], mat)
        with pytest.raises(ToolError, match="cannot be used"):
            scan(folder)


def test_a_train_archive_that_is_cut_off_is_one_sentence(folder: Path) -> None:
    path = folder / "ILSVRC2012_img_train.tar"
    whole = path.read_bytes()
    for length in (600, 1536, 4000, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(ToolError, match=r"train\.tar.*: is cut off"):
            scan(folder)


def test_a_compressed_train_archive_has_a_remedy(folder: Path) -> None:
    path = folder / "ILSVRC2012_img_train.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ToolError, match="unpack it with gunzip"):
        scan(folder)


def test_a_train_archive_of_something_else_is_one_sentence(folder: Path) -> None:
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes({"a.jpg": b"x"}))
    with pytest.raises(ToolError, match="holds no class archives"):
        scan(folder)


def test_a_class_that_is_there_twice_is_named(folder: Path) -> None:
    inner = tar_bytes({"n01_1.JPEG": b"x"})
    data = tar_bytes([("n01.tar", inner), ("n01.tar", inner)])
    (folder / "ILSVRC2012_img_train.tar").write_bytes(data)
    with pytest.raises(ToolError, match=r"has n01\.tar twice"):
        scan(folder)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("n01_1.JPEG", "n01_1.JPEG"), "n01_1.JPEG is there twice"),
        (("n01_1.JPEG", "N01_1.jpeg"), "differ only in upper and lower case"),
        (("../../../x.JPEG",), "would lie outside"),
    ],
)
def test_hostile_names_are_one_sentence(folder: Path, names: tuple[str, ...], said: str) -> None:
    inner = tar_bytes([(name, b"x") for name in names])
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes({"n01.tar": inner}))
    (folder / "ILSVRC2012_img_val.tar").unlink()
    with pytest.raises(ToolError, match=said):
        scan(folder)


def test_an_archive_made_on_a_mac_has_its_pictures_only(folder: Path) -> None:
    inner = tar_bytes({"./._n01_1.JPEG": b"x", "./n01_1.JPEG": b"one", "./.DS_Store": b"x"})
    (folder / "ILSVRC2012_img_train.tar").write_bytes(
        tar_bytes({"./._n01.tar": b"x", "./n01.tar": inner})
    )
    (folder / "ILSVRC2012_img_val.tar").unlink()
    assert [source.key for source in scan(folder).sources] == ["train/n01/n01_1.JPEG"]


def test_pictures_from_archives_are_cropped_and_faulty_ones_fail_alone(folder: Path) -> None:
    picture = jpeg_bytes(smooth_pixels(70, 90, 3))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in (("good.JPEG", picture), ("cut.JPEG", picture[:99]), ("no.JPEG", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes({"n01.tar": buffer.getvalue()}))
    (folder / "ILSVRC2012_img_val.tar").unlink()
    dst = folder.parent / "cropped"
    report = run_crop(folder, dst, CropSettings(), jobs=1)
    assert (report.ok, report.failed) == (1, 3)
    reasons = dict(report.failures)
    assert reasons["train/n01/no.JPEG"] == "empty file"
    assert "a link in its archive" in reasons["train/n01/link.JPEG"]
    assert [path.relative_to(dst).as_posix() for path in dst.rglob("*.JPEG")] == [
        "train/n01/good.JPEG"
    ]
    again = run_crop(folder, dst, CropSettings(), jobs=1)
    assert (again.tried, again.skipped) == (0, 1)


def test_an_archive_that_changes_while_it_is_read_fails_the_picture(folder: Path) -> None:
    first, *_ = scan(folder).sources
    os.truncate(first.place.file, first.place.offset + 1)
    with pytest.raises(OSError, match="become shorter"):
        first.place.read()
    Path(first.place.file).unlink()
    assert first.place.stamp() == (-1, -1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_matlab_file_is_read_in_both_orders(order: str, packed: bool) -> None:
    (rows_,) = read_mat(mat_file([(7, "n7", "ä, ö"), (300, "n300", "x")], order, packed)).values()
    assert rows_ == [
        {"ILSVRC2012_ID": [7], "WNID": "n7", "words": "ä, ö", "children": []},
        {"ILSVRC2012_ID": [300], "WNID": "n300", "words": "x", "children": []},
    ]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), packed=st.booleans())
def test_any_damage_of_a_matlab_file_is_a_value_error_or_harmless(
    data: st.DataObject, packed: bool
) -> None:
    whole = bytearray(mat_file([(1, "n1", "one"), (2, "n2", "two")], packed=packed))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    for damaged in (whole, whole[:cut]):
        try:
            read_mat(bytes(damaged))
        except ValueError as error:
            assert str(error)


def test_real_pictures_give_the_same_crops_from_archives_as_from_folders(
    shared_data: Path, tmp_path: Path
) -> None:
    folders = sorted((shared_data / "imagenet-sample" / "train").iterdir())[:6]
    pictures = {f.name: {p.name: p.read_bytes() for p in f.iterdir()} for f in folders}
    for name in ("archives", "folders"):
        (tmp_path / name).mkdir()
    train_tar(tmp_path / "archives", pictures)
    for folder in folders:
        (tmp_path / "folders" / "train" / folder.name).parent.mkdir(exist_ok=True)
        (tmp_path / "folders" / "train" / folder.name).symlink_to(folder)
    crops = []
    for name in ("archives", "folders"):
        dst = tmp_path / f"{name}-cropped"
        assert run_crop(tmp_path / name, dst, CropSettings(), jobs=1).ok == 6
        crops.append({p.relative_to(dst): p.read_bytes() for p in dst.rglob("*.JPEG")})
    assert crops[0] == crops[1]
