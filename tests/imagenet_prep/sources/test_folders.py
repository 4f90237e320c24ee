"""Raw folders -> classes, splits, keys and crop names; and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.sources.scan import scan
from tests.kit.sources import made, rows


def test_class_folders_alone_are_one_split_named_train(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "bee/2.png", "ant/x y.jpg", "bee/1.jpeg")
    collection = scan(src)
    assert collection.classes.names == ("ant", "bee")
    assert rows(collection) == [
        ("ant/x y.jpg", "train", 0, "train/ant/x y.JPEG"),
        ("bee/1.jpeg", "train", 1, "train/bee/1.JPEG"),
        ("bee/2.png", "train", 1, "train/bee/2.JPEG"),
    ]
    assert collection.sources[0].place.file == str(src / "ant" / "x y.jpg")


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_split_folders_are_recognised(tmp_path: Path, name: str) -> None:
    src = made(tmp_path / "raw", "train/ant/1.jpg", "train/bee/1.jpg", f"{name}/bee/7.jpg")
    assert ((f"{name}/bee/7.jpg", "val", 1, "val/bee/7.JPEG")) in rows(scan(src))


def test_other_names_of_splits_are_known(tmp_path: Path) -> None:
    names = ("training", "validation", "evaluation")
    found = scan(made(tmp_path / "raw", *(f"{name}/ant/1.jpg" for name in names)))
    assert found.classes.names == ("ant",)
    assert {source.split for source in found.sources} == {"train", "val", "test"}


def test_the_folder_around_a_set_is_told_from_the_set(tmp_path: Path) -> None:
    outer = made(tmp_path / "outer", "set/train/ant/1.jpg", "set/val/ant/1.jpg")
    with pytest.raises(ToolError, match=r"outer: holds a set in set; give --src .*set"):
        scan(outer)


def test_files_nested_deeper_belong_to_the_first_folder_below_the_split(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "train/ant/images/deep/1.jpg")
    assert rows(scan(src)) == [
        ("train/ant/images/deep/1.jpg", "train", 0, "train/ant/images/deep/1.JPEG")
    ]


def test_a_flat_folder_is_one_class_named_after_it(tmp_path: Path) -> None:
    src = made(tmp_path / "holiday", "1.jpg", "2")
    collection = scan(src)
    assert collection.classes.names == ("holiday",)
    assert [source.crop for source in collection.sources] == [
        "train/holiday/1.JPEG",
        "train/holiday/2.JPEG",
    ]


def test_flat_splits_share_one_class(tmp_path: Path) -> None:
    collection = scan(made(tmp_path / "pets", "train/1.jpg", "test/2.jpg"))
    assert collection.classes.names == ("pets",)
    assert [source.split for source in collection.sources] == ["test", "train"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    collection = scan(made(tmp_path / "raw", "car/1.jpg", "train/1.jpg"))
    assert collection.classes.names == ("car", "train")


def test_what_is_no_picture_is_left_out_and_what_may_be_one_is_tried(tmp_path: Path) -> None:
    src = made(
        tmp_path / "raw",
        *(f"ant/{name}" for name in (".hidden.jpg", ".DS_Store", "Thumbs.db", "labels.CSV")),
        *(f"ant/{name}" for name in ("a.xml", "b.py", "c.npz", "d.html", "e.md", "f.json")),
        *("ant/noname", "ant/strange.xyz", "ant/upper.JPG", "__MACOSX/ant/1.jpg"),
        *(".git/ant/1.jpg", "readme.txt"),
    )
    assert [s.key for s in scan(src).sources] == ["ant/noname", "ant/strange.xyz", "ant/upper.JPG"]


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
    crops = [source.crop for source in scan(src).sources]
    assert len({crop.lower() for crop in crops}) == 3


def test_links_are_followed(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "ant/1.jpg")
    made(tmp_path / "elsewhere", "2.jpg")
    (src / "bee").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (src / "ant" / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    assert [s.key for s in scan(src).sources] == ["ant/1.jpg", "ant/gone.jpg", "bee/2.jpg"]


def test_a_link_that_leads_round_in_a_circle_is_named(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "ant/1.jpg")
    (src / "ant" / "loop").symlink_to(src, target_is_directory=True)
    with pytest.raises(ToolError, match=r"ant/loop: is a link to a folder that it lies in"):
        scan(src)


def test_a_link_to_itself_is_a_source_that_fails(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "ant/1.jpg")
    (src / "ant" / "self.jpg").symlink_to(src / "ant" / "self.jpg")
    assert [s.key for s in scan(src).sources] == ["ant/1.jpg", "ant/self.jpg"]
    with pytest.raises(OSError, match="symbolic links"):
        scan(src).sources[1].place.read()


def test_what_would_block_when_opened_is_left_out(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "ant/1.jpg")
    os.mkfifo(src / "ant" / "pipe.jpg")
    assert [s.key for s in scan(src).sources] == ["ant/1.jpg"]


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
    assert source.place.read() == b"x"


def test_unicode_names_are_kept(tmp_path: Path) -> None:
    (source,) = scan(made(tmp_path / "raw", "ämeise/蟻 1.jpg")).sources
    assert source.crop == "train/ämeise/蟻 1.JPEG"


def test_a_missing_path_and_a_file_are_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        scan(tmp_path / "none")
    with pytest.raises(UsageError, match="is a file"):
        scan(made(tmp_path, "a.jpg") / "a.jpg")


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="holds no pictures"):
        scan(made(tmp_path / "raw", "train/ant/notes.txt"))


def test_a_class_that_train_does_not_have_is_named(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "train/ant/1.jpg", "val/wasp/1.jpg")
    with pytest.raises(ToolError, match="split val has the class wasp"):
        scan(src)


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "train/ant/1.jpg", "val/ant/1.jpg", "validation/ant/2.jpg")
    with pytest.raises(ToolError, match="both mean the split val"):
        scan(src)


def test_a_picture_beside_class_folders_has_no_class(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"stray\.jpg: lies beside the class folders"):
        scan(made(tmp_path / "raw", "ant/1.jpg", "stray.jpg"))
    (tmp_path / "raw" / "stray.jpg").rename(tmp_path / "raw" / "LICENSE")
    assert [s.key for s in scan(tmp_path / "raw").sources] == ["ant/1.jpg"]


def test_real_collections_are_recognised(shared_data: Path) -> None:
    collection = scan(shared_data / "imagenette")
    assert len(collection.classes) == 10
    splits = [source.split for source in collection.sources]
    assert (splits.count("train"), splits.count("val")) == (1000, 500)
    assert len(scan(shared_data / "odd").sources) == 174
