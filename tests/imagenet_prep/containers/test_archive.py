"""Archives of class folders, and of Hugging Face's flat names, read in place."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from imagenet_prep.crop.run import run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.sources.scan import scan
from tests.conftest import jpeg_bytes, smooth_pixels
from tests.kit.errors import fails
from tests.kit.journal import failures
from tests.kit.sources import WNIDS, contents, made, rows, tar_bytes

FILES = {
    f"set/{split}/{name}/{n}.jpg": f"{split} {name} {n}".encode() * 300
    for split in ("train", "val")
    for name in ("ant", "bee")
    for n in (2, 1)
}
HOLE = bytes(99999)


def zip_bytes(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


MAKERS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "a.tar": tar_bytes,
    "a.tar.gz": lambda files: gzip.compress(tar_bytes(files)),
    "a.tgz": lambda files: gzip.compress(tar_bytes(files)),
    "a.tar.bz2": lambda files: bz2.compress(tar_bytes(files)),
    "a.tar.xz": lambda files: lzma.compress(tar_bytes(files)),
    "a.zip": zip_bytes,
    "A.ZIP": lambda files: zip_bytes(files, zipfile.ZIP_DEFLATED),
}


@pytest.mark.parametrize("name", MAKERS)
def test_class_folders_in_an_archive_are_those_of_a_folder(tmp_path: Path, name: str) -> None:
    for path, data in FILES.items():
        made(tmp_path, path)
        (tmp_path / path).write_bytes(data)
    (tmp_path / name).write_bytes(MAKERS[name](FILES | {"__MACOSX/._x.jpg": b"x"}))
    there, here = scan(tmp_path / name), scan(tmp_path / "set")
    assert (there.layout, there.classes) == ("archive", here.classes)
    assert rows(there) == rows(here)
    assert contents(there) == contents(here)
    backwards = {s.key: s.read() for s in reversed(there.sources)}
    assert backwards == contents(here)


def test_a_tar_in_zstandard(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    with pa.output_stream(tmp_path / "a.tar.zst", compression="zstd") as stream:
        stream.write(tar_bytes(FILES))
    assert list(contents(scan(tmp_path / "a.tar.zst")).values()) == [
        FILES[k] for k in sorted(FILES)
    ]


def test_archives_named_as_splits_are_one_set(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/train.zip").write_bytes(
        zip_bytes({"train/ant/1.jpg": b"x", "train/bee/1.jpg": b"y"})
    )
    (tmp_path / "raw/val.tar.gz").write_bytes(gzip.compress(tar_bytes({"bee/2.jpg": b"z"})))
    assert rows(scan(tmp_path / "raw")) == [
        ("train/train/ant/1.jpg", "train", 0, "train/ant/1.JPEG"),
        ("train/train/bee/1.jpg", "train", 1, "train/bee/1.JPEG"),
        ("val/bee/2.jpg", "val", 1, "val/bee/2.JPEG"),
    ]


@pytest.mark.parametrize("packed", [True, False])
def test_hugging_faces_archives_have_the_class_in_each_name(tmp_path: Path, packed: bool) -> None:
    a, b, _ = WNIDS
    parts = {
        "train_images_0": {f"{a}_1_{a}.JPEG": b"1", f"{b}_7_{b}.JPEG": b"2"},
        "train_images_1": {f"{a}_9_{a}.JPEG": b"3"},
        "val_images": {f"ILSVRC2012_val_00000003_{b}.JPEG": b"4"},
        "test_images": {"ILSVRC2012_test_00000001.JPEG": b"5"},
    }
    src = tmp_path / "raw"
    for name, files in parts.items():
        for file, data in files.items():
            made(src, f"{name}/{file}")
            (src / name / file).write_bytes(data)
        if packed:
            made(tmp_path / "packed")
            (tmp_path / "packed").mkdir(exist_ok=True)
            (tmp_path / "packed" / f"{name}.tar.gz").write_bytes(gzip.compress(tar_bytes(files)))
    found = scan(tmp_path / "packed" if packed else src)
    assert rows(found) == [
        (f"train_images_0/{a}_1_{a}.JPEG", "train", 0, f"train/{a}/{a}_1_{a}.JPEG"),
        (f"train_images_0/{b}_7_{b}.JPEG", "train", 1, f"train/{b}/{b}_7_{b}.JPEG"),
        (f"train_images_1/{a}_9_{a}.JPEG", "train", 0, f"train/{a}/{a}_9_{a}.JPEG"),
        (f"val_images/ILSVRC2012_val_00000003_{b}.JPEG", "val", 1,
         f"val/{b}/ILSVRC2012_val_00000003_{b}.JPEG"),
    ]  # fmt: skip
    assert found.notices[-1] == "test_images: left out, its images have no classes"


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("a.zip", zip_bytes(FILES)[:-30], "archive.damaged"),
        ("a.zip", zip_bytes({"ant/1.jpg": b"x", "../bee/1.jpg": b"x"}), "archive.unsafe_name"),
        ("a.tar", tar_bytes(FILES)[:2000], "archive.cut_off"),
        ("a.tar", tar_bytes([("ant/1.jpg", b"x")] * 2), "source.duplicate"),
        ("a.tar", tar_bytes([("ant/1", b"x"), ("ant/1/2.jpg", b"x")]), "source.duplicate"),
        ("a.tar", tar_bytes({"1.jpg": b"x", "2.jpg": b"x"}), "source.no_class"),
        ("a.tar.gz", gzip.compress(tar_bytes(FILES), mtime=0)[:-20], "archive.damaged"),
        ("a.tar.gz", gzip.compress(tar_bytes(FILES)[:2000], mtime=0), "archive.cut_off"),
        (
            "a.tar.gz",
            gzip.compress(tar_bytes(FILES)[:1536] + HOLE, mtime=0),
            "archive.hole",
        ),
        ("a.tar.gz", tar_bytes(FILES), "archive.damaged"),
        ("a.tgz", gzip.compress(b"no tar" * 999, mtime=0), "archive.not_a_tar"),
    ],
)
def test_damaged_archives_are_refused(tmp_path: Path, name: str, data: bytes, code: str) -> None:
    (tmp_path / name).write_bytes(data)
    with fails(code, name):
        _ = scan(tmp_path / name).sources


def test_what_is_damaged_in_a_zip_fails_alone(tmp_path: Path) -> None:
    image = jpeg_bytes(smooth_pixels(40, 50, 1))
    files = {f"{name}/{n}.jpg": image for name in ("ant", "bee") for n in (1, 2)}
    for method, where in ((zipfile.ZIP_STORED, 60), (zipfile.ZIP_DEFLATED, 60)):
        path = tmp_path / f"{method}.zip"
        data = bytearray(zip_bytes(files, method))
        data[where + 39] ^= 255
        path.write_bytes(data)
        report = run_crop(path, tmp_path / f"cropped{method}", CropSettings(size=16), jobs=2)
        assert (report.ok, report.failed) == (3, 1)
        assert "damaged in its archive" in str(failures(tmp_path / f"cropped{method}"))


def test_a_compressed_tar_is_cropped_by_several_workers(tmp_path: Path) -> None:
    files = {
        f"{'ab'[n % 2]}/{n * 7 % 90}.jpg": jpeg_bytes(smooth_pixels(40, 50, n)) for n in range(90)
    }
    for name in ("a.tar.gz", "a.tar"):
        (tmp_path / name).write_bytes(MAKERS[name](files))
        report = run_crop(tmp_path / name, tmp_path / f"to {name}", CropSettings(size=16), jobs=2)
        assert (report.ok, report.failed) == (90, 0)
    crops = [
        {p.name: p.read_bytes() for p in (tmp_path / f"to {name}").rglob("*.JPEG")}
        for name in ("a.tar.gz", "a.tar")
    ]
    assert crops[0] == crops[1]


def test_a_named_pipe_is_no_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with fails("source.not_a_file", usage=True):
        scan(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("ant/1.jpg"))
    assert len(scan(tmp_path / "b.tar").sources) == 1
