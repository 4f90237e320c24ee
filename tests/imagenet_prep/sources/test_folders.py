"""Class folders, flat files -> classes, splits, keys and crop names; and what is refused."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from imagenet_prep.core.errors import ToolError
from imagenet_prep.sources.scan import scan
from tests.kit.errors import fails
from tests.kit.sources import WNIDS, made, rows


def keys(src: Path) -> list[str]:
    return [source.key for source in scan(src).sources]


def test_class_folders_alone_are_one_split_named_train(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "bee/2.png", "ant/x y.jpg", "bee/1.jpeg")
    found = scan(src)
    assert (found.layout, found.classes.names) == ("folders", ("ant", "bee"))
    assert rows(found) == [
        ("ant/x y.jpg", "train", 0, "train/ant/x y.JPEG"),
        ("bee/1.jpeg", "train", 1, "train/bee/1.JPEG"),
        ("bee/2.png", "train", 1, "train/bee/2.JPEG"),
    ]
    assert found.sources[0].file == str(src / "ant" / "x y.jpg")
    assert (found.splits, found.notices) == ({"train": 3}, [])


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("val", "val"), ("Validation", "val"), ("evaluation", "test"), ("testing", "test")),
        *(("test1", "test"), ("test_set", "test"), ("seg_test", "test"), ("val.X", "val")),
        *(("images_val", "val"), ("valid-set", "val"), ("TestSet", "test")),
    ],
)
def test_known_spellings_are_splits(tmp_path: Path, name: str, split: str) -> None:
    src = made(tmp_path / "raw", "training_set/ant/1.jpg", f"{name}/ant/7.jpg")
    found = rows(scan(src))
    assert (f"{name}/ant/7.jpg", split, 0, f"{split}/ant/7.JPEG") in found
    assert ("training_set/ant/1.jpg", "train", 0, "train/ant/1.JPEG") in found


def test_a_split_within_itself_is_one(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "seg_train/seg_train/sea/1.jpg", "seg_test/seg_test/sea/2.jpg")
    assert [(s.key, s.split) for s in scan(src).sources] == [
        ("seg_test/seg_test/sea/2.jpg", "test"), ("seg_train/seg_train/sea/1.jpg", "train"),
    ]  # fmt: skip


def test_numbered_parts_of_a_split_are_joined(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "train.X1/ant/1.jpg", "train.X2/bee/1.jpg", "val.X/bee/2.jpg")
    assert [(s.split, s.label) for s in scan(src).sources] == [
        ("train", 0), ("train", 1), ("val", 1),
    ]  # fmt: skip
    made(src, "train.X2/ant/2.jpg")
    with fails("source.class_twice", "ant"):
        scan(src)


def test_folders_can_be_named_as_splits_and_as_classes(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "big/ant/1.jpg", "held out/ant/2.jpg", "docs/readme.md")
    found = scan(src, splits={"big": "train", "held out": "val"})
    assert [(s.split, s.crop) for s in found.sources] == [
        ("train", "train/ant/1.JPEG"), ("val", "val/ant/2.JPEG"),
    ]  # fmt: skip
    cars = made(tmp_path / "cars", "train/car/1.jpg", "train/train/1.jpg")
    with fails("source.split_as_class", "--split train/train=class"):
        scan(cars)
    assert scan(cars, splits={"train/train": "class"}).classes.names == ("car", "train")
    with fails("source.split_unused", usage=True):
        scan(made(tmp_path / "list", "a.jpg"), layout="csv", splits={"a": "val"})


@pytest.mark.parametrize("name", ["train", "training_set", "test1", "seg_train", "Val"])
def test_a_class_with_the_name_of_a_split_is_refused(tmp_path: Path, name: str) -> None:
    with fails("source.split_as_class", name):
        scan(made(tmp_path / "raw", "car/1.jpg", f"{name}/1.jpg"))


def test_a_folder_around_a_set_is_entered_and_mentioned(tmp_path: Path) -> None:
    sets = (
        "set/images/ant/1.jpg set/images/bee/1.jpg",
        "set/train/ant/1.jpg set/val/ant/1.jpg",
        "a/b/ant/1.jpg a/b/bee/1.jpg",
        "a/cat.1.jpg a/dog.2.jpg",
    )
    for number, inner in enumerate(sets):
        outer = made(tmp_path / str(number), *inner.split())
        found = scan(outer)
        assert not any(s.crop.count("set") for s in found.sources)
        assert "has only the folder" in found.notices[0]
        assert len(found.classes) == len(set(found.classes.names) & {"ant", "bee", "cat", "dog"})


def test_one_class_whose_folders_hold_the_images_is_refused(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "all/sub/ant/1.jpg", "all/sub2/bee/1.jpg", "all/1.jpg")
    with fails("source.one_class", "all/sub"):
        _ = scan(src).sources


@pytest.mark.parametrize(
    ("files", "code"),
    [
        # Superclasses, or clips: only the user knows. Annotations and other stores of images.
        ("big/ant/1.jpg big/bee/1.jpg small/cat/1.jpg", "source.nested_classes"),
        ("a/airport/1.jpg a/alley/1.jpg b/bar/1.jpg", "source.nested_classes"),
        ("images/ant/1.jpg images/bee/1.jpg parts/parts.txt", "source.container_as_class"),
        ("images/1.jpg annotations/trimaps/1.png", "source.container_as_class"),
        ("Images/ant/1.jpg Annotation/ant/ant_1", "source.container_as_class"),
        ("jpg/ant/1.jpg jpg/bee/1.jpg meta2/x.txt", "source.one_class"),
    ],
)
def test_folders_of_class_folders_are_refused_unless_confirmed(
    tmp_path: Path, files: str, code: str
) -> None:
    src = made(tmp_path / "raw", *files.split())
    with fails(code, "--src"):
        _ = scan(src).sources
    assert len(scan(src, layout="folders").sources) > 0


def test_deeper_files_belong_to_the_first_folder_below_the_split(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "train/ant/images/deep/1.jpg")
    assert rows(scan(src)) == [
        ("train/ant/images/deep/1.jpg", "train", 0, "train/ant/images/deep/1.JPEG")
    ]


def test_a_flat_folder_is_one_class_named_after_it(tmp_path: Path) -> None:
    found = scan(made(tmp_path / "holiday", "1.jpg", "2", "notes/readme.txt"))
    assert found.classes.names == ("holiday",)
    assert [s.crop for s in found.sources] == ["train/holiday/1.JPEG", "train/holiday/2.JPEG"]


def test_flat_splits_share_one_class(tmp_path: Path) -> None:
    found = scan(made(tmp_path / "pets", "train/1.jpg", "test/2.jpg"))
    assert found.classes.names == ("pets",)
    assert [source.split for source in found.sources] == ["test", "train"]


def test_a_flat_val_of_imagenet_has_the_built_in_labels(tmp_path: Path) -> None:
    names = [f"val/ILSVRC2012_val_{n:08d}.JPEG" for n in (1, 2, 3)]
    src = made(tmp_path / "raw", *names, *(f"train/{w}/{w}_1.JPEG" for w in WNIDS), "test/1.JPEG")
    found = scan(src)
    assert {s.key: s.crop for s in found.sources if s.split == "val"} == {
        names[0]: f"val/{WNIDS[0]}/ILSVRC2012_val_00000001.JPEG",
        names[1]: f"val/{WNIDS[2]}/ILSVRC2012_val_00000002.JPEG",
        names[2]: f"val/{WNIDS[1]}/ILSVRC2012_val_00000003.JPEG",
    }
    assert found.classes.title(0) == "sea snake"
    assert found.notices == ["test: left out, its images have no classes"]
    assert [s.label for s in scan(src / "val").sources] == [0, 2, 1]
    made(src, "val/other.JPEG")
    with fails("source.no_class", "other.JPEG"):
        scan(src)


def test_a_flat_val_without_known_labels_is_refused(tmp_path: Path) -> None:
    with fails("source.no_class", "7.jpg"):
        scan(made(tmp_path / "raw", "train/ant/1.jpg", "val/7.jpg"))


def test_non_images_are_left_out_and_possible_images_tried(tmp_path: Path) -> None:
    src = made(
        tmp_path / "raw",
        *(f"ant/{name}" for name in (".hidden.jpg", ".DS_Store", "Thumbs.db", "labels.CSV")),
        *(f"ant/{name}" for name in ("a.xml", "b.py", "c.npz", "d.html", "e.md", "f.json")),
        *("ant/noname", "ant/strange.xyz", "ant/upper.JPG", "__MACOSX/ant/1.jpg", "readme.txt"),
        *(".git/ant/1.jpg", "$RECYCLE.BIN/1.jpg", "lost+found/1.jpg", "Thumbnails/1.jpg"),
        *("System Volume Information/1.jpg", "#recycle/x/1.jpg"),
    )
    found = scan(src)
    assert [s.key for s in found.sources] == ["ant/noname", "ant/strange.xyz", "ant/upper.JPG"]
    assert found.classes.names == ("ant",)


def test_two_files_with_one_crop_name_keep_their_whole_names(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "ant/a.jpg", "ant/A.png", "ant/b.v2.jpg", "ant/b.v2")
    assert {s.key: s.crop for s in scan(src).sources} == {
        "ant/a.jpg": "train/ant/a.jpg.JPEG",
        "ant/A.png": "train/ant/A.png.JPEG",
        "ant/b.v2.jpg": "train/ant/b.v2.JPEG",
        "ant/b.v2": "train/ant/b.JPEG",
    }


def test_a_whole_name_that_meets_a_third_file_stays_unique(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "ant/a.jpg", "ant/a.png", "ant/a.jpg.png")
    assert len({source.crop.lower() for source in scan(src).sources}) == 3


def test_names_of_255_bytes_have_crops_of_255_bytes(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", f"ant/{'é' * 125}x.jpg", f"ant/{'é' * 125}y.jpg", "ant/1.jpg")
    crops = [source.crop.rpartition("/")[2] for source in scan(src).sources]
    assert len(set(crops)) == 3
    assert all(len(crop.encode()) <= 255 and crop.endswith(".JPEG") for crop in crops)


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (("Ant/1.jpg", "ant/2.jpg"), "source.class_names_alike"),
        (("caf\u00e9/1.jpg", "cafe\u0301/2.jpg"), "source.class_names_alike"),
        (("ant/caf\u00e9.jpg", "ant/cafe\u0301.jpg"), "source.names_alike"),
        (("ant/a.JPG", "ant/a.jpg"), "source.names_alike"),
        (("a\nb/1.jpg", "c/2.jpg"), "source.class_name"),
    ],
)
def test_names_that_not_every_disk_can_hold_are_refused(
    tmp_path: Path, names: tuple[str, str], code: str
) -> None:
    src = made(tmp_path / "raw", *names)
    with fails(code):
        _ = scan(src).sources


def test_links_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "ant/1.jpg")
    made(tmp_path / "elsewhere", "2.jpg")
    (src / "bee").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (src / "ant" / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    (src / "ant" / "self.jpg").symlink_to(src / "ant" / "self.jpg")
    found = scan(src).sources
    assert [s.key for s in found] == ["ant/1.jpg", "ant/gone.jpg", "ant/self.jpg", "bee/2.jpg"]
    with pytest.raises(OSError, match="symbolic links"):
        found[2].read()
    (src / "ant" / "loop").symlink_to(src, target_is_directory=True)
    with fails("source.link_circle", "ant/loop"):
        _ = scan(src).sources


def test_what_would_block_when_opened_is_left_out_or_refused(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "ant/1.jpg")
    os.mkfifo(src / "ant" / "pipe.jpg")
    assert keys(src) == ["ant/1.jpg"]
    with fails("source.not_a_file", usage=True):
        scan(src / "ant" / "pipe.jpg")
    with fails("source.not_a_file", usage=True):
        scan(Path("/dev/zero"))


def test_names_that_are_not_text_become_text(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "ant"
    folder.mkdir(parents=True)
    raw = os.fsencode(folder) + b"/caf\xe9.jpg"
    try:
        with open(raw, "wb") as file:  # noqa: PTH123 - a Path cannot hold these bytes
            file.write(b"x")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    (source,) = scan(tmp_path / "raw").sources
    assert source.key == "ant/caf\\xe9.jpg"
    assert source.read() == b"x"


def test_unicode_names_are_kept(tmp_path: Path) -> None:
    (source,) = scan(made(tmp_path / "raw", "ämeise/蟻 1.jpg")).sources
    assert source.crop == "train/ämeise/蟻 1.JPEG"


def test_numbered_classes_are_ordered_as_numbers_with_a_notice(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "10/1.jpg", "9/1.jpg", "100/1.jpg")
    found = scan(src)
    assert found.classes.names == ("9", "10", "100")
    assert "--class-order name" in found.notices[0]
    assert scan(src, class_order="name").classes.names == ("10", "100", "9")
    assert scan(src, class_order="number").notices == []
    assert scan(made(tmp_path / "padded", "09/1.jpg", "10/1.jpg")).notices == []


def test_an_empty_class_keeps_its_label_and_is_reported(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "ant/1.jpg", "cat/1.jpg")
    (src / "bee").mkdir()
    found = scan(src)
    assert [source.label for source in found.sources] == [0, 2]
    assert found.notices == ["train: 1 classes have no images and keep their labels: bee"]


def test_counts_are_compared_with_those_of_imagenet(tmp_path: Path) -> None:
    from imagenet_prep.containers import imagenet

    src = made(tmp_path / "raw", *(f"train/{wnid}/1.JPEG" for wnid in imagenet.names()))
    found = scan(src)
    assert len(found.sources) == 1000
    assert found.notices == ["train has 1,000 images; ImageNet has 1,281,167 (-1,280,167)"]


def test_a_missing_path_and_a_file_are_wrong_usage(tmp_path: Path) -> None:
    with fails("source.missing", usage=True):
        scan(tmp_path / "none")
    with fails("source.layout_unknown", usage=True):
        scan(made(tmp_path, "a.jpg") / "a.jpg")


def test_what_leaves_an_image_without_a_class_is_refused(tmp_path: Path) -> None:
    with fails("source.empty"):
        _ = scan(made(tmp_path / "none", "train/ant/notes.txt")).sources
    with fails("source.class_unknown", "wasp"):
        scan(made(tmp_path / "foreign", "train/ant/1.jpg", "val/wasp/1.jpg"))
    with fails("source.split_twice", "val", "validation"):
        scan(made(tmp_path / "two", "train/ant/1.jpg", "val/ant/1.jpg", "validation/ant/2.jpg"))
    with fails("source.no_class", "stray.jpg"):
        _ = scan(made(tmp_path / "raw", "ant/1.jpg", "stray.jpg")).sources
    (tmp_path / "raw" / "stray.jpg").rename(tmp_path / "raw" / "LICENSE")
    assert keys(tmp_path / "raw") == ["ant/1.jpg"]


def test_real_collections_are_recognised(shared_data: Path) -> None:
    found = scan(shared_data / "imagenette")
    assert (len(found.sources), len(found.classes)) == (1500, 10)
    assert found.splits == {"train": 1000, "val": 500}
    assert len(scan(shared_data / "odd").sources) == 174


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
