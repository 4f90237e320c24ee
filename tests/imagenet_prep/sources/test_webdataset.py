"""WebDataset shards, lists of path and label, and the file of --classes."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_prep.containers.names import safe_part
from imagenet_prep.crop.run import run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.dataset.journal import is_inside
from imagenet_prep.sources.scan import scan
from tests.conftest import jpeg_bytes, smooth_pixels
from tests.kit.errors import fails
from tests.kit.sources import contents, made, rows, tar_bytes

# WebDataset


def shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members))
    return path.parent


def test_shards_are_recognised_and_split_by_their_names(tmp_path: Path) -> None:
    src = shard(tmp_path / "raw/set-train-0.tar", {"a/1.jpg": b"x", "a/1.cls": b"2\n"})
    shard(src / "set-train-1.tar", {"a/1.cls": b"0", "a/1.jpg": b"y", "a/2.txt": b"no image"})
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
    src = shard(tmp_path / "raw/0.tar", {"1.jpg": b"x", **label, "1.seg.png": b"no image"})
    assert scan(src).classes.names == ("cat",)
    assert scan(src / "0.tar").sources[0].key == "0.tar/1.jpg"


@pytest.mark.parametrize(
    "members",
    [
        {"1.jpg": b"x"},
        {"1.jpg": b"x", "1.cls": b"\xff"},
        {"1.jpg": b"x", "1.cls": b" "},
        {"1.jpg": b"x", "1.json": b"{"},
        {"1.jpg": b"x", "1.json": b"[" * 50_000},
        {"1.jpg": b"x", "1.json": b'{"label": null}'},
        {"1.jpg": b"x", "1.cls": b"x" * 300},
        {"1.jpg": b"x", "1.cls": b"x" * 2_000_000},
    ],
)
def test_samples_without_a_class_are_counted_others_are_taken(
    tmp_path: Path, members: dict[str, bytes]
) -> None:
    good = {"2.jpg": b"y", "2.cls": b"0"}
    found = scan(shard(tmp_path / "raw/0.tar", members | good))
    assert [source.key for source in found.sources] == ["0.tar/2.jpg"]
    assert found.notices[0].startswith("1 samples left out: it")
    assert "(first: 0.tar/1)" in found.notices[0]
    with fails("webdataset.no_label"):
        scan(shard(tmp_path / "all/0.tar", members), layout="webdataset")


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"1.jpg": b"x", "1.cls": b"123456789"}, "webdataset.label"),
        ({"../1.jpg": b"x", "../1.cls": b"1"}, "archive.unsafe_name"),
        ({"1.jpg": b"x", "1.JPG": b"x", "1.cls": b"1"}, "source.names_alike"),
        ({"1.jpg": b"", "1.cls": b"A", "2.jpg": b"", "2.cls": b"a"}, "source.class_names_alike"),
        ({"1.jpg": b"", "1.cls": b"\x1b[31m"}, "source.class_name"),
    ],
)
def test_faulty_shards_are_refused(tmp_path: Path, members: dict[str, bytes], code: str) -> None:
    src = shard(tmp_path / "raw/0.tar", members)
    with fails(code):
        _ = scan(src, layout="webdataset").sources


def test_nested_folders_joined_tars_links_and_empty_shards(tmp_path: Path) -> None:
    src = shard(tmp_path / "raw/a/b/val-0.tar", {"1.jpg": b"x", "1.cls": b"0"}).parents[1]
    joined = tar_bytes({"1.jpg": b"1", "1.cls": b"1"}) + tar_bytes({"2.jpg": b"2", "2.cls": b"0"})
    (src / "a/1.tar").write_bytes(joined)
    (src / "a/2.tar").write_bytes(b"")
    (src / "a/3.tar").write_bytes(tar_bytes({}))
    with tarfile.open(src / "a/4.tar", "w") as tar:
        for name, data in (("1.jpg", b"same"), ("1.cls", b"1")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name in ("2.jpg", "2.cls"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, name.replace("2", "1")
            tar.addfile(info)
    found = scan(src)
    assert [(s.key, s.split, s.label, s.read()) for s in found.sources] == [
        ("a/1.tar/1.jpg", "train", 1, b"1"), ("a/1.tar/2.jpg", "train", 0, b"2"),
        ("a/4.tar/1.jpg", "train", 1, b"same"), ("a/4.tar/2.jpg", "train", 1, b"same"),
        ("a/b/val-0.tar/1.jpg", "val", 0, b"x"),
    ]  # fmt: skip
    assert found.notices[0] == "2 samples left out: the shard is empty (first: a/2.tar)"


@pytest.mark.parametrize(
    ("members", "keys"),
    [
        ({"img.01.jpg": b"x", "img.01.cls": b"1", "img.02.jpg": b"x", "img.02.cls": b"0"},
         ["img.01.jpg", "img.02.jpg"]),
        ({"1.jpg": b"x", "1.seg.png": b"x", "1.depth.png": b"x", "1.label": b"cat"}, ["1.jpg"]),
        ({"1.image.jpg": b"x", "1.target.cls": b"cat", "1.json": b"{}"}, ["1.image.jpg"]),
    ],
)  # fmt: skip
def test_keys_with_dots_and_several_suffixes(
    tmp_path: Path, members: dict[str, bytes], keys: list[str]
) -> None:
    found = scan(shard(tmp_path / "raw/0.tar", members))
    assert found.layout == "webdataset"
    assert [source.key for source in found.sources] == [f"0.tar/{key}" for key in keys]


def test_captions_are_not_taken_for_classes(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for n in range(60):
        members |= {f"{n}.jpg": b"x", f"{n}.txt": f"image {n} of a cat".encode()}
    with fails("webdataset.captions"):
        scan(shard(tmp_path / "raw/0.tar", members))


def test_a_damaged_shard_is_refused(tmp_path: Path) -> None:
    src = shard(tmp_path / "raw/0.tar", {"1.jpg": b"x", "1.cls": b"1"})
    whole = (src / "0.tar").read_bytes()
    for data, code in ((whole[:700], "cut_off"), (gzip.compress(whole), "compressed")):
        (src / "0.tar").write_bytes(data)
        with fails(f"archive.{code}", "0.tar"):
            scan(src)


def test_a_tar_beside_class_folders_is_no_shard(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "ant/1.jpg")
    shard(src / "backup.tar", {"ant/1.jpg": b"x"})
    assert [source.key for source in scan(src).sources] == ["ant/1.jpg"]


def test_class_names_never_lead_out_of_the_destination(tmp_path: Path) -> None:
    image = jpeg_bytes(smooth_pixels(40, 50, 1))
    members: dict[str, bytes] = {}
    for n, name in enumerate(("../../x", "/etc", "..", "a/b", ".hidden", "é" * 200)):
        members |= {f"{n}.jpg": image, f"{n}.cls": name.encode()}
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
