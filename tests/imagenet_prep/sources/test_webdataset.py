"""WebDataset shards, lists of path and label, and the file of --classes."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.crop.run import run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.dataset.journal import is_inside
from imagenet_prep.sources.scan import scan
from imagenet_prep.sources.types import safe_part
from tests.conftest import jpeg_bytes, smooth_pixels
from tests.kit.sources import contents, made, rows, tar_bytes

# WebDataset


def shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members))
    return path.parent


def test_shards_are_recognised_and_split_by_their_names(tmp_path: Path) -> None:
    src = shard(tmp_path / "raw/set-train-0.tar", {"a/1.jpg": b"x", "a/1.cls": b"2\n"})
    shard(src / "set-train-1.tar", {"a/1.cls": b"0", "a/1.jpg": b"y", "a/2.txt": b"no picture"})
    shard(src / "val/00.tar", {"7.JPG": b"z", "7.json": b'{"label": 1, "url": "?"}'})
    made(src, "README.md")
    collection = scan(src)
    assert rows(collection) == [
        ("set-train-0.tar/a/1.jpg", "train", 2, "train/2/set-train-0/a/1.JPEG"),
        ("set-train-1.tar/a/1.jpg", "train", 0, "train/0/set-train-1/a/1.JPEG"),
        ("val/00.tar/7.JPG", "val", 1, "val/1/val-00/7.JPEG"),
    ]
    assert list(contents(collection).values()) == [b"x", b"y", b"z"]
    assert collection.classes.names == ("0", "1", "2")


def test_numbers_are_labels_also_where_some_are_missing(tmp_path: Path) -> None:
    src = shard(
        tmp_path / "raw/0.tar", {"1.jpg": b"x", "1.cls": b"11", "2.jpg": b"x", "2.cls": b"2"}
    )
    collection = scan(src)
    assert [source.label for source in collection.sources] == [11, 2]
    assert collection.classes.names == tuple(map(str, range(12)))


@pytest.mark.parametrize(
    "label",
    [
        {"1.cls": b"cat", "1.json": b'{"label": 4}', "1.txt": b"a cat on a mat"},
        {"1.json": b'{"class_name": "cat"}', "1.txt": b"a cat on a mat"},
        {"1.json": b'"cat"'},
        {"1.txt": b" cat\r\nand more"},
    ],
)
def test_the_class_is_in_the_first_of_cls_json_and_txt(
    tmp_path: Path, label: dict[str, bytes]
) -> None:
    src = shard(tmp_path / "raw/0.tar", {"1.jpg": b"x", **label, "1.seg.png": b"no picture"})
    assert scan(src).classes.names == ("cat",)
    assert scan(src / "0.tar").sources[0].key == "0.tar/1.jpg"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"1.jpg": b"x"}, r"the sample 1 has no class; it needs a member 1\.cls"),
        ({"1.jpg": b"x", "1.cls": b"\xff"}, r"1\.cls is not text in UTF-8"),
        ({"1.jpg": b"x", "1.cls": b" "}, r"1\.cls says no class"),
        ({"1.jpg": b"x", "1.json": b"{"}, r"1\.json is not JSON"),
        ({"1.jpg": b"x", "1.json": b"[" * 50_000}, r"1\.json is not JSON"),
        ({"1.jpg": b"x", "1.json": b'{"label": null}'}, r"1\.json says no class"),
        ({"1.jpg": b"x", "1.cls": b"x" * 300}, "has 300 letters, too many"),
        ({"1.jpg": b"x", "1.cls": b"x" * 2_000_000}, "2000000 bytes"),
        ({"1.jpg": b"x", "1.cls": b"123456789"}, "class 123456789, which is not believable"),
        ({"../1.jpg": b"x", "../1.cls": b"1"}, "would lie outside"),
        ({"1.jpg": b"x", "1.JPG": b"x", "1.cls": b"1"}, "differ only in upper and lower case"),
        ({"1.jpg": b"", "1.cls": b"Cat", "2.jpg": b"", "2.cls": b"cat"}, "classes Cat and cat"),
    ],
)
def test_faulty_shards_are_one_sentence(
    tmp_path: Path, members: dict[str, bytes], said: str
) -> None:
    src = shard(tmp_path / "raw/0.tar", members)
    with pytest.raises(ToolError, match=said):
        scan(src)


def test_captions_are_not_taken_for_classes(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for n in range(60):
        members |= {f"{n}.jpg": b"x", f"{n}.txt": f"picture {n} of a cat".encode()}
    with pytest.raises(ToolError, match="captions and no classes"):
        scan(shard(tmp_path / "raw/0.tar", members))


def test_compressed_and_damaged_shards_have_a_remedy(tmp_path: Path) -> None:
    src = shard(tmp_path / "raw/0.tar", {"1.jpg": b"x", "1.cls": b"1"})
    whole = (src / "0.tar").read_bytes()
    (src / "0.tar").write_bytes(whole[:700])
    with pytest.raises(ToolError, match=r"0\.tar: is cut off"):
        scan(src)
    (src / "0.tar").write_bytes(gzip.compress(whole))
    with pytest.raises(ToolError, match="unpack it with gunzip"):
        scan(src)
    (src / "0.tar").rename(src / "0.tar.gz")
    with pytest.raises(ToolError, match="unpack the shards with gunzip"):
        scan(src)


def test_a_tar_beside_class_folders_is_no_shard(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "ant/1.jpg")
    shard(src / "backup.tar", {"ant/1.jpg": b"x"})
    assert [source.key for source in scan(src).sources] == ["ant/1.jpg"]


def test_class_names_never_lead_out_of_the_destination(tmp_path: Path) -> None:
    picture = jpeg_bytes(smooth_pixels(40, 50, 1))
    members: dict[str, bytes] = {}
    for n, name in enumerate(("../../x", "/etc", "..", "a/b", ".hidden", "\x1b[31m", "é" * 200)):
        members |= {f"{n}.jpg": picture, f"{n}.cls": name.encode()}
    src = shard(tmp_path / "raw/0.tar", members)
    crops = [source.crop for source in scan(src).sources]
    assert all(is_inside(crop) and crop.count("/") == 3 for crop in crops)
    report = run_crop(src, tmp_path / "cropped", CropSettings(size=16), jobs=1)
    assert (report.ok, report.failed) == (7, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cropped", "raw"]


@given(text=st.text(max_size=400))
def test_a_safe_part_is_one_plain_name(text: str) -> None:
    part = safe_part(text)
    assert part not in ("", ".", "..") and not part.startswith(".")
    assert "/" not in part and part.isprintable() and len(part.encode()) <= 180


# Lists


def listed(folder: Path, text: str, name: str = "list.csv") -> Path:
    made(folder, "a.jpg", "b/c d.png")
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "a.jpg,ant\nb/c d.png,bee\n"),
        ("list.csv", "\ufeffid,Label,FileName\r\n1,ant,a.jpg\r\n\r\n2,bee,b/c d.png\r\n"),
        ("list.csv", 'path;class\n"a.jpg";ant\n"./b//c d.png";bee'),
        ("list.csv", "image_id,label\na.jpg,ant\nb/c d.png,bee\n"),
        ("list.tsv", "a.jpg\tant\nb/c d.png\tbee\n"),
    ],
)
def test_lists_are_recognised(tmp_path: Path, name: str, text: str) -> None:
    collection = scan(listed(tmp_path / "raw", text, name))
    assert rows(collection) == [
        ("a.jpg", "train", 0, "train/ant/a.JPEG"),
        ("b/c d.png", "train", 1, "train/bee/b/c d.JPEG"),
    ]
    assert contents(collection) == {"a.jpg": b"x", "b/c d.png": b"x"}


@pytest.mark.parametrize(
    "text", ["a.jpg,ant,train\nb/c d.png,ant,Validation\n", "subset,path,label\n"
             "train,a.jpg,ant\nvalid,b/c d.png,ant\n"]
)  # fmt: skip
def test_a_list_may_have_splits(tmp_path: Path, text: str) -> None:
    sources = scan(listed(tmp_path / "raw", text)).sources
    assert [(s.key, s.split) for s in sources] == [("a.jpg", "train"), ("b/c d.png", "val")]


def test_numbers_in_a_list_are_sorted_as_numbers(tmp_path: Path) -> None:
    text = "".join(f"{n}.jpg,{n}\n" for n in (10, 9, 100))
    assert scan(listed(tmp_path / "raw", text)).classes.names == ("9", "10", "100")


def test_a_list_of_another_name_is_read_when_its_layout_is_named(tmp_path: Path) -> None:
    path = listed(tmp_path / "raw", "a.jpg\tant\n", "train.txt")
    with pytest.raises(UsageError, match=r"is a file, but no list \(\.csv, \.tsv\)"):
        scan(path)
    assert scan(path, layout="tsv").sources[0].key == "a.jpg"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists no pictures"),
        ("path,label\n", "lists no pictures"),
        ("a.jpg,ant\nb.jpg\n", "line 2 has 1 columns"),
        (
            "id,breed\na.jpg,ant\n",
            "names a column of each picture's path and none of its class; call",
        ),
        (
            "picture,label\na.jpg,ant\n",
            "of each picture's class and none of its path; call that path",
        ),
        ("a.jpg,ant\nb.jpg,\n", "line 2 lacks a class"),
        ("a.jpg,ant\n,bee\n", "line 2 lacks a path"),
        ("a.jpg,ant\nb.jpg,bee\n./a.jpg,bee\n", r"line 3 lists \./a\.jpg again, which line 1"),
        ("path,label,split\na.jpg,ant,extra\n", "line 2 has the split extra"),
        ("a.jpg,ant,train\nb.jpg,ant\n", "line 2 has 2 columns"),
        ('a.jpg,"ant\n', "cannot be read"),
        ("a\0.jpg,ant\n", "line 1 has a zero byte"),
        (f"a.jpg,{'x' * 200_000}\n", "line 1 cannot be read"),
        ("a.jpg,ant\nA.JPG,ant\n", "differ only in upper and lower case"),
        ("path,label,split\na.jpg,ant,train\nb.jpg,bee,val\n", "split val has the class bee"),
    ],
)
def test_faulty_lists_are_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        scan(listed(tmp_path / "raw", text))


def test_a_list_in_another_encoding_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"caf\xe9.jpg,ant\n")
    with pytest.raises(ToolError, match="is not text in UTF-8"):
        scan(tmp_path / "list.csv")


def test_listed_paths_never_lead_out_of_the_destination(tmp_path: Path) -> None:
    picture = jpeg_bytes(smooth_pixels(40, 50, 1))
    (tmp_path / "outside.jpg").write_bytes(picture)
    text = f"../outside.jpg,a\n{tmp_path}/outside.jpg,../b\nmissing.jpg,a\n"
    path = listed(tmp_path / "raw", text)
    assert all(is_inside(source.crop) for source in scan(path).sources)
    report = run_crop(path, tmp_path / "cropped", CropSettings(size=16), jobs=1)
    assert (report.ok, report.failed) == (2, 1)
    assert report.failures[0] == ("missing.jpg", "cannot be read: No such file or directory")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cropped", "outside.jpg", "raw"]


def test_a_listed_pipe_or_device_fails_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    path = listed(tmp_path, "pipe.jpg,a\n/dev/zero,a\nb,a\n")
    for source in scan(path).sources:
        with pytest.raises(OSError, match=r"device or pipe|Is a directory"):
            source.place.read()


# --classes


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
    with pytest.raises(ToolError, match="split val has the class wasp"):
        scan(raw)
    assert len(scan(raw, classes=chosen(raw, "bee\nant\n")).sources) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ant\nbees\n", "line 2: the source has no class bees; did you mean bee"),
        ("xyz\n", "no class xyz; it has ant, bee, cat, wild and 1 more"),
        ("ant\nant\tagain\n", "line 2: the class ant is there twice"),
        ("\n \n", "names no classes"),
    ],
)
def test_faulty_class_lists_are_one_sentence(raw: Path, text: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        scan(raw, classes=chosen(raw, text))


def test_a_class_list_that_is_missing_or_no_text_is_one_sentence(raw: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        scan(raw, classes=raw / "none.txt")
    (raw.parent / "classes.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ToolError, match="is not text in UTF-8"):
        scan(raw, classes=raw.parent / "classes.txt")


def test_renaming_keeps_what_the_source_knows_of_the_others(tmp_path: Path) -> None:
    src = made(tmp_path / "tiny", "train/n01/images/1.JPEG", "train/n02/images/2.JPEG")
    (src / "wnids.txt").write_text("n01\nn02\n")
    (src / "words.txt").write_text("n01\ttench\nn02\tcock\n")
    classes = scan(src, classes=chosen(src, "n02\trooster\nn01\n")).classes
    assert [classes.title(label) for label in range(2)] == ["rooster", "tench"]
