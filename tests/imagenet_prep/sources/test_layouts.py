"""Tiny ImageNet, files named by class, IDX arrays: recognised, labelled; and what is refused."""

from __future__ import annotations

import gzip
import os
from collections import Counter
from pathlib import Path

import pytest

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.crop.run import run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.sources.scan import LAYOUTS, scan
from imagenet_prep.storage import byte_range as places
from tests.kit.sources import contents, idx_bytes, idx_pair, made, rows

# Tiny ImageNet


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
    collection = scan(tiny)
    assert rows(collection) == [
        ("train/n01/images/n01_0.JPEG", "train", 0, "train/n01/n01_0.JPEG"),
        ("train/n02/images/n02_0.JPEG", "train", 1, "train/n02/n02_0.JPEG"),
        ("val/images/val_0.JPEG", "val", 1, "val/n02/val_0.JPEG"),
        ("val/images/val_1.JPEG", "val", 0, "val/n01/val_1.JPEG"),
    ]
    assert dict(collection.classes.readable) == {"n01": "tench, a fish", "n02": "cock"}


def test_a_listed_picture_that_is_not_there_fails_when_it_is_read(tiny: Path) -> None:
    (tiny / "val/images/val_1.JPEG").unlink()
    with pytest.raises(FileNotFoundError):
        scan(tiny).sources[3].place.read()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("val_0.JPEG\tn02\n", r"val_1\.JPEG: has no line in val_annotations\.txt"),
        ("val_0.JPEG\tn02\nval_1.JPEG\n", "line 2 gives no picture one class"),
        ("val_0.JPEG\tn02\nval_0.JPEG\tn01\n", "line 2 gives no picture one class"),
        ("val_0.JPEG\t../n02\n", "line 1 gives no picture one class"),
        ("val_0.JPEG\tn02\nval_1.JPEG\tn01\n../x\tn02\n", "would lie outside"),
        ("val_0.JPEG\tn02\nval_1.JPEG\tn77\n", "val has the class n77, which the list"),
    ],
)
def test_wrong_annotations_are_one_sentence(tiny: Path, lines: str, said: str) -> None:
    (tiny / "val" / "val_annotations.txt").write_text(lines)
    with pytest.raises(ToolError, match=said):
        scan(tiny)


def test_tiny_imagenet_without_annotations_has_no_val(tiny: Path) -> None:
    (tiny / "val" / "val_annotations.txt").unlink()
    with pytest.raises(ToolError, match=r"val_annotations\.txt: is missing"):
        scan(tiny)


def test_tiny_imagenet_can_do_without_its_lists(tiny: Path) -> None:
    (tiny / "wnids.txt").unlink()
    (tiny / "words.txt").unlink()
    assert scan(tiny).classes.names == ("n01", "n02")


def test_a_folder_that_is_not_tiny_imagenet_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither train/ nor val/val_annotations\.txt"):
        scan(made(tmp_path / "raw", "ant/1.jpg"), layout="tiny")


def test_the_real_tiny_imagenet(shared_data: Path) -> None:
    collection = scan(shared_data / "tiny-imagenet-200")
    assert Counter(s.split for s in collection.sources) == {"train": 2000, "val": 400}
    assert len(collection.classes) == len(collection.classes.readable) == 200
    assert collection.classes.title(0) == "goldfish, Carassius auratus"
    first = collection.sources[-1].place
    assert first.read()[:2] == b"\xff\xd8"


# Files named by class


def test_files_named_by_class_are_recognised(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "dog.1.jpg", "cat.12.jpg", "cat.a.7.png", "LICENSE", "list.csv")
    collection = scan(src)
    assert rows(collection) == [
        ("cat.12.jpg", "train", 0, "train/cat/cat.12.JPEG"),
        ("cat.a.7.png", "train", 1, "train/cat.a/cat.a.7.JPEG"),
        ("dog.1.jpg", "train", 2, "train/dog/dog.1.JPEG"),
    ]


def test_splits_of_files_named_by_class_and_a_test_without_classes(tmp_path: Path) -> None:
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
        assert len(scan(src).classes) == 1
    except ToolError as error:
        assert "lies beside the class folders" in str(error)


def test_underscores_and_hyphens_count_when_the_layout_is_named(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "Great_Dane_7.jpg", "pug-12.jpg", "cat.3.jpg", "a_b_.4.jpg")
    assert scan(src, layout="flat").classes.names == ("Great_Dane", "a_b", "cat", "pug")


def test_a_file_that_is_not_named_by_class_is_named(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "cat.1.jpg", "holiday.jpg")
    with pytest.raises(ToolError, match=r"holiday\.jpg: is not named by a class and a number"):
        scan(src, layout="flat")


def test_real_files_named_by_class(shared_data: Path) -> None:
    collection = scan(shared_data / "cats-dogs")
    assert collection.classes.names == ("cat", "dog")
    counts = Counter((s.split, s.label) for s in collection.sources)
    assert counts == {("train", 0): 100, ("train", 1): 100, ("test", 0): 50, ("test", 1): 50}


# IDX


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_recognised_and_read_as_grey_pictures(tmp_path: Path, packed: bool) -> None:
    idx_pair(tmp_path / "mnist", "train", [5, 0, 2], packed)
    idx_pair(tmp_path / "mnist", "t10k", [2], packed)
    collection = scan(tmp_path / "mnist")
    end = ".gz" if packed else ""
    assert rows(collection) == [
        (f"t10k-images-idx3-ubyte{end}/0.pgm", "val", 2, "val/2/0.JPEG"),
        (f"train-images-idx3-ubyte{end}/0.pgm", "train", 5, "train/5/0.JPEG"),
        (f"train-images-idx3-ubyte{end}/1.pgm", "train", 0, "train/0/1.JPEG"),
        (f"train-images-idx3-ubyte{end}/2.pgm", "train", 2, "train/2/2.JPEG"),
    ]
    assert list(contents(collection).values()) == [
        b"P5 3 2 255\n" + bytes([n]) * 6 for n in (0, 0, 1, 2)
    ]
    assert collection.classes.names == ("0", "1", "2", "3", "4", "5")


def test_idx_pictures_are_cropped(tmp_path: Path) -> None:
    idx_pair(tmp_path / "mnist", "train", [0, 1, 1], packed=True)
    report = run_crop(tmp_path / "mnist", tmp_path / "cropped", CropSettings(size=16), jobs=1)
    assert (report.ok, report.failed) == (3, 0)


def test_a_changed_array_is_read_again_from_its_compressed_file(tmp_path: Path) -> None:
    idx_pair(tmp_path, "train", [0, 1], packed=True)
    place = scan(tmp_path).sources[1].place
    assert place.read()[-1] == 1
    path = Path(place.file)
    path.write_bytes(gzip.compress(idx_bytes((2, 2, 3), b"\7" * 12)))
    os.utime(path, ns=(0, 0))
    assert place.read()[-1] == 7


def test_labels_may_be_compressed_where_pictures_are_not(tmp_path: Path) -> None:
    idx_pair(tmp_path, "train", [0, 1])
    labels = tmp_path / "train-labels-idx1-ubyte"
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels.read_bytes()))
    labels.unlink()
    assert [s.label for s in scan(tmp_path / "train-images-idx3-ubyte").sources] == [0, 1]


def test_other_spellings_of_idx_names(tmp_path: Path) -> None:
    idx_pair(tmp_path, "train", [0, 1])
    for name in ("images-idx3", "labels-idx1"):
        path = tmp_path / f"train-{name}-ubyte"
        path.rename(tmp_path / f"emnist-letters-{path.name.replace('-idx', '.idx')}")
    assert len(scan(tmp_path).sources) == 2


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("images-idx3", idx_bytes((2, 2, 3), b"x" * 11), r"has 27 bytes, but .* makes 28"),
        ("images-idx3", idx_bytes((3, 2, 3), b"x" * 18), "has 3 pictures, but .* has 2 labels"),
        ("images-idx3", idx_bytes((2, 0, 3), b""), "has pictures of 3 x 0 pixels"),
        ("images-idx3", b"\0\0\x0d\3" + bytes(24), "is no IDX file of bytes in 3 dimensions"),
        ("labels-idx1", b"", "is no IDX file of bytes in 1 dimensions"),
        ("labels-idx1", None, r"its labels, train-labels-idx1-ubyte, are not beside it"),
    ],
)
def test_damaged_idx_files_are_one_sentence(
    tmp_path: Path, name: str, data: bytes | None, said: str
) -> None:
    idx_pair(tmp_path, "train", [0, 1])
    path = tmp_path / f"train-{name}-ubyte"
    path.write_bytes(data or b"")
    if data is None:
        path.unlink()
    with pytest.raises(ToolError, match=said):
        scan(tmp_path)


def test_damaged_compression_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    idx_pair(tmp_path, "train", [0, 1], packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for damaged in (whole[:-9], b"xx" + whole[2:], b""):
        path.write_bytes(damaged)
        with pytest.raises(ToolError, match=r"idx3-ubyte\.gz: "):
            scan(tmp_path)
    path.write_bytes(whole)
    monkeypatch.setattr(places, "MAX_UNPACKED_BYTES", 20)
    with pytest.raises(ToolError, match="unpack it with gunzip"):
        scan(tmp_path)


def test_two_arrays_for_one_split_are_refused(tmp_path: Path) -> None:
    idx_pair(tmp_path, "train", [0])
    idx_pair(tmp_path, "train", [0], packed=True)
    with pytest.raises(ToolError, match="both mean the split train"):
        scan(tmp_path)


def test_the_real_fashion_mnist(shared_data: Path) -> None:
    collection = scan(shared_data / "fashion-mnist")
    assert Counter(s.split for s in collection.sources) == {"train": 6000, "val": 2000}
    assert collection.classes.title(9) == "Ankle boot"
    data = collection.sources[-1].place.read()
    assert (data[:13], len(data)) == (b"P5 28 28 255\n", 13 + 784)


# The door


def test_every_layout_can_be_named_and_says_what_it_misses(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for layout in LAYOUTS:
        with pytest.raises(ToolError, match="raw: "):
            scan(tmp_path / "raw", layout=layout)
        with pytest.raises(UsageError, match="no such folder or file"):
            scan(tmp_path / "none", layout=layout)


def test_a_layout_that_is_unknown_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are csv, flat, folders"):
        scan(tmp_path, layout="zip")


def test_a_file_of_another_kind_is_no_source_for_any_layout(tmp_path: Path) -> None:
    path = made(tmp_path, "a.jpg") / "a.jpg"
    for layout in LAYOUTS:
        with pytest.raises(ToolError, match=r"a\.jpg"):
            scan(path, layout=layout)


def test_named_folders_leave_other_marks_alone(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "cat.1.jpg", "dog.1.jpg")
    assert scan(src, layout="folders").classes.names == ("raw",)
