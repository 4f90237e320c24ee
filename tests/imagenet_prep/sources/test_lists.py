"""Lists of path and label: recognised, labelled; and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imagenet_prep.crop.run import run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.dataset.journal import is_inside
from imagenet_prep.sources.scan import scan
from tests.conftest import jpeg_bytes, smooth_pixels
from tests.kit.errors import fails
from tests.kit.journal import failures
from tests.kit.sources import contents, made, rows


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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train_list.txt", "a.jpg 0\nb/c d.png 1\n"),
        ("train.txt", "a.jpg\t0\nb/c d.png\t1\n"),
        ("train.list", "a.jpg,0\nb/c d.png,1\n"),
        ("set_train.lst", "7\t0.000000\ta.jpg\n8\t1.000000\tb/c d.png\n"),
        ("any.csv", "photo,what it shows\na.jpg,0\nb/c d.png,1\n"),
        ("any.csv", "n,photo,label\n1,a.jpg,0\n2,b/c d.png,1\n"),
        ("ids.csv", "id,breed\na,0\nb/c d,1\n"),
        ("ids.csv", "what,breed\na,0\nc d,1\n"),
    ],
)
def test_other_kinds_of_lists_headers_and_ids(tmp_path: Path, name: str, text: str) -> None:
    if text.startswith("what"):
        with fails("list.header"):
            scan(listed(tmp_path / "raw", text, name))
        return
    found = scan(listed(tmp_path / "raw", text, name))
    assert [(s.key, s.split, s.label) for s in found.sources] == [
        ("a.jpg", "train", 0), ("b/c d.png", "train", 1),
    ]  # fmt: skip
    assert contents(found) == {"a.jpg": b"x", "b/c d.png": b"x"}


def test_a_list_named_after_a_split_is_that_split(tmp_path: Path) -> None:
    (source,) = scan(listed(tmp_path / "raw", "a.jpg 4\n", "val.txt")).sources
    assert (source.split, source.class_name) == ("val", "4")


def test_an_id_of_two_files_is_refused_an_id_of_none_fails(tmp_path: Path) -> None:
    path = listed(tmp_path / "raw", "id,breed\na,pug\nnone,pug\n")
    made(tmp_path / "raw", "train/x.jpg")
    found = scan(path)
    assert [s.key for s in found.sources] == ["a.jpg", "none"]
    with pytest.raises(FileNotFoundError):
        found.sources[1].read()
    made(tmp_path / "raw", "train/a.png")
    with fails("list.ambiguous", "a.jpg", "train/a.png"):
        scan(path)


def test_a_list_of_another_name_is_read_when_its_layout_is_named(tmp_path: Path) -> None:
    path = listed(tmp_path / "raw", "a.jpg\tant\n", "train.names")
    with fails("source.layout_unknown", usage=True):
        scan(path)
    assert scan(path, layout="tsv").sources[0].key == "a.jpg"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "source.empty"),
        ("path,label\n", "source.empty"),
        ("a.jpg,ant\nb.jpg\n", "list.row"),
        ("n,id,breed,size\n1,a.jpg,ant,2\n", "list.header"),
        ("photo,label,size\na,ant,1\n", "list.header"),
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
def test_faulty_lists_are_one_message(tmp_path: Path, text: str, code: str) -> None:
    with fails(code):
        _ = scan(listed(tmp_path / "raw", text)).sources


def test_a_list_in_another_encoding_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"caf\xe9.jpg,ant\n")
    with fails("list.encoding"):
        scan(tmp_path / "list.csv")


def test_listed_paths_never_lead_out_of_the_destination(tmp_path: Path) -> None:
    image = jpeg_bytes(smooth_pixels(40, 50, 1))
    (tmp_path / "outside.jpg").write_bytes(image)
    text = f"../outside.jpg,a\n{tmp_path}/outside.jpg,../b\nmissing.jpg,a\n"
    path = listed(tmp_path / "raw", text)
    assert all(is_inside(source.crop) for source in scan(path).sources)
    report = run_crop(path, tmp_path / "cropped", CropSettings(size=16), jobs=1)
    assert (report.ok, report.failed) == (2, 1)
    missing = {"missing.jpg": "cannot be read: No such file or directory"}
    assert failures(tmp_path / "cropped") == missing
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cropped", "outside.jpg", "raw"]


def test_a_listed_pipe_or_device_fails_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    path = listed(tmp_path, "pipe.jpg,a\n/dev/zero,a\nb,a\n")
    for source in scan(path).sources:
        with pytest.raises(OSError, match=r"device or pipe|Is a directory"):
            source.place.read()
