"""WebDataset shards, lists of path and label, and the file of --classes."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_prep.crop.run import run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.dataset.journal import is_inside
from imagenet_prep.sources.names import safe_part
from imagenet_prep.sources.scan import scan
from tests.conftest import jpeg_bytes, smooth_pixels
from tests.kit.sources import contents, made, refused, rows, tar_bytes

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
    ("members", "code"),
    [
        ({"1.jpg": b"x"}, "webdataset.no_label"),
        ({"1.jpg": b"x", "1.cls": b"\xff"}, "webdataset.label"),
        ({"1.jpg": b"x", "1.cls": b" "}, "webdataset.label"),
        ({"1.jpg": b"x", "1.json": b"{"}, "webdataset.label"),
        ({"1.jpg": b"x", "1.json": b"[" * 50_000}, "webdataset.label"),
        ({"1.jpg": b"x", "1.json": b'{"label": null}'}, "webdataset.label"),
        ({"1.jpg": b"x", "1.cls": b"x" * 300}, "webdataset.label"),
        ({"1.jpg": b"x", "1.cls": b"x" * 2_000_000}, "archive.member_size"),
        ({"1.jpg": b"x", "1.cls": b"123456789"}, "webdataset.label"),
        ({"../1.jpg": b"x", "../1.cls": b"1"}, "archive.unsafe_name"),
        ({"1.jpg": b"x", "1.JPG": b"x", "1.cls": b"1"}, "source.names_alike"),
        (
            {"1.jpg": b"", "1.cls": b"Cat", "2.jpg": b"", "2.cls": b"cat"},
            "source.class_names_alike",
        ),
    ],
)
def test_faulty_shards_are_one_sentence(
    tmp_path: Path, members: dict[str, bytes], code: str
) -> None:
    src = shard(tmp_path / "raw/0.tar", members)
    with refused(code):
        _ = scan(src).sources


def test_captions_are_not_taken_for_classes(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for n in range(60):
        members |= {f"{n}.jpg": b"x", f"{n}.txt": f"picture {n} of a cat".encode()}
    with refused("webdataset.captions"):
        scan(shard(tmp_path / "raw/0.tar", members))


def test_compressed_and_damaged_shards_have_a_remedy(tmp_path: Path) -> None:
    src = shard(tmp_path / "raw/0.tar", {"1.jpg": b"x", "1.cls": b"1"})
    whole = (src / "0.tar").read_bytes()
    (src / "0.tar").write_bytes(whole[:700])
    with refused("archive.cut_off"):
        scan(src)
    (src / "0.tar").write_bytes(gzip.compress(whole))
    with refused("archive.compressed"):
        scan(src)
    (src / "0.tar").rename(src / "0.tar.gz")
    with refused("archive.compressed"):
        scan(src)


def test_a_tar_beside_class_folders_is_no_shard(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "ant/1.jpg")
    shard(src / "backup.tar", {"ant/1.jpg": b"x"})
    assert [source.key for source in scan(src).sources] == ["ant/1.jpg"]


def test_class_names_never_lead_out_of_the_destination(tmp_path: Path) -> None:
    picture = jpeg_bytes(smooth_pixels(40, 50, 1))
    members: dict[str, bytes] = {}
    for n, name in enumerate(("../../x", "/etc", "..", "a/b", ".hidden", "é" * 200)):
        members |= {f"{n}.jpg": picture, f"{n}.cls": name.encode()}
    src = shard(tmp_path / "raw/0.tar", members)
    crops = [source.crop for source in scan(src).sources]
    assert all(is_inside(crop) and crop.count("/") == 3 for crop in crops)
    report = run_crop(src, tmp_path / "cropped", CropSettings(size=16), jobs=1)
    assert (report.ok, report.failed) == (6, 0)
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
    with refused("source.layout_unknown", usage=True):
        scan(path)
    assert scan(path, layout="tsv").sources[0].key == "a.jpg"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "source.empty"),
        ("path,label\n", "source.empty"),
        ("a.jpg,ant\nb.jpg\n", "list.row"),
        ("id,breed\na.jpg,ant\n", "list.header"),
        ("picture,label\na.jpg,ant\n", "list.header"),
        ("a.jpg,ant\nb.jpg,\n", "list.row"),
        ("a.jpg,ant\n,bee\n", "list.row"),
        ("a.jpg,ant\nb.jpg,bee\n./a.jpg,bee\n", "list.duplicate"),
        ("path,label,split\na.jpg,ant,extra\n", "list.split"),
        ("a.jpg,ant,train\nb.jpg,ant\n", "list.row"),
        ('a.jpg,"ant\n', "list.row"),
        ("a\0.jpg,ant\n", "list.row"),
        (f"a.jpg,{'x' * 200_000}\n", "list.row"),
        ("a.jpg,ant\nA.JPG,ant\n", "source.names_alike"),
        ("path,label,split\na.jpg,ant,train\nb.jpg,bee,val\n", "source.class_unknown"),
    ],
)
def test_faulty_lists_are_one_sentence(tmp_path: Path, text: str, code: str) -> None:
    with refused(code):
        _ = scan(listed(tmp_path / "raw", text)).sources


def test_a_list_in_another_encoding_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"caf\xe9.jpg,ant\n")
    with refused("list.encoding"):
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
    with refused("source.class_unknown"):
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
def test_faulty_class_lists_are_one_sentence(raw: Path, text: str, code: str) -> None:
    with refused(code):
        scan(raw, classes=chosen(raw, text))


def test_a_class_list_that_is_missing_or_no_text_is_one_sentence(raw: Path) -> None:
    with refused("classes.missing", usage=True):
        scan(raw, classes=raw / "none.txt")
    (raw.parent / "classes.txt").write_bytes(b"caf\xe9\n")
    with refused("list.encoding"):
        scan(raw, classes=raw.parent / "classes.txt")


def test_renaming_keeps_what_the_source_knows_of_the_others(tmp_path: Path) -> None:
    src = made(tmp_path / "tiny", "train/n01/images/1.JPEG", "train/n02/images/2.JPEG")
    (src / "wnids.txt").write_text("n01\nn02\n")
    (src / "words.txt").write_text("n01\ttench\nn02\tcock\n")
    classes = scan(src, classes=chosen(src, "n02\trooster\nn01\n")).classes
    assert [classes.title(label) for label in range(2)] == ["rooster", "tench"]
