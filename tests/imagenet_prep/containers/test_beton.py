"""Betons of FFCV and of other tools as a source: labels, pixels, names; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from imagenet_prep.crop.run import run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.dataset.journal import is_inside
from imagenet_prep.sources.scan import scan
from tests.conftest import jpeg_bytes, smooth_pixels
from tests.kit.errors import fails
from tests.kit.sources import made

JPEG = jpeg_bytes(smooth_pixels(40, 50, 1))
PIXELS = np.arange(3 * 7 * 5, dtype=np.uint8).tobytes()  # 7 wide, 5 high


def beton(path: Path, labels: list[int], extra: bool = True) -> Path:
    """JPEG and raw in turn, with a float, and a text of no interest, in the order of FFCV."""
    image = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("ptr", "<u8")])
    kinds = {2: image, 1: np.dtype("<i8"), 0: np.dtype("<f8"),
             5: np.dtype([("ptr", "<u8"), ("size", "<u8")])}  # fmt: skip
    types = [0, 2, 5, 1] if extra else [2, 1]
    row = np.dtype([("", kinds[number]) for number in types], align=True)
    field = np.dtype([("t", "<u1"), ("n", ("<u1", 16)), ("a", ("<u1", (1024,)))], align=True)
    fields, rows, table = np.zeros(len(types), field), np.zeros(len(labels), row), []
    fields["t"] = types
    at = 24 + fields.nbytes + rows.nbytes
    data = b""
    for index, label in enumerate(labels):
        value = PIXELS if index % 2 else JPEG
        shape = (1, 7, 5) if index % 2 else (0, 50, 40)
        rows[index][f"f{types.index(2)}"] = (*shape, at + len(data))
        rows[index][f"f{types.index(1)}"] = label
        table.append((index, at + len(data), len(value)))
        data += value
    whole = np.array(table[::-1], [("s", "<u8"), ("p", "<u8"), ("z", "<u8")])  # in any order
    header = np.array((2, len(types), 1 << 21, len(labels), at + len(data)), [
        ("v", "<u2"), ("n", "<u2"), ("p", "<u4"), ("s", "<u8"), ("t", "<u8")])  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = (header.tobytes(), fields.tobytes(), rows.tobytes(), data, whole.tobytes())
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("extra", [True, False])
def test_raw_and_jpeg_samples_of_any_size_are_found(tmp_path: Path, extra: bool) -> None:
    path = beton(tmp_path / "set" / "other_val.beton", [2, 0, 2], extra)
    found = scan(path)
    assert (found.layout, found.classes.names) == ("beton", ("0", "1", "2"))
    assert [(s.key, s.split, s.label, s.crop) for s in found.sources] == [
        ("other_val.beton/0", "val", 2, "val/2/other_val/0.JPEG"),
        ("other_val.beton/1", "val", 0, "val/0/other_val/1.JPEG"),
        ("other_val.beton/2", "val", 2, "val/2/other_val/2.JPEG"),
    ]
    assert [s.read() for s in found.sources] == [JPEG, b"P6 7 5 255\n" + PIXELS, JPEG]
    report = run_crop(path, tmp_path / "cropped", CropSettings(size=16), jobs=1)
    assert (report.ok, report.failed) == (3, 0)


def test_a_folder_of_betons_has_the_names_of_their_manifests(tmp_path: Path) -> None:
    for name in ("train", "val"):
        beton(tmp_path / f"{name}.beton", [1, 0])
        value = {"classes": ["n01", "n02"], "readable": {"n01": "tench"}}
        (tmp_path / f"{name}.beton.json").write_text(json.dumps(value))
    found = scan(tmp_path)
    assert [(s.split, s.class_name) for s in found.sources] == [
        ("train", "n02"), ("train", "n01"), ("val", "n02"), ("val", "n01"),
    ]  # fmt: skip
    assert found.classes.title(0) == "tench"
    for name in ("train", "val"):
        (tmp_path / f"{name}.beton.json").write_text(json.dumps({"classes": ["../../x", "/etc"]}))
    assert all(is_inside(source.crop) for source in scan(tmp_path).sources)
    (tmp_path / "val.beton.json").unlink()
    with fails("source.class_conflict", "val.beton"):
        scan(tmp_path)


def test_what_ffcv_itself_has_written(tmp_path: Path) -> None:
    from ffcv.fields import FloatField, IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    pixels = [smooth_pixels(40, 50, n) for n in range(3)]

    class Samples:
        def __len__(self) -> int:
            return len(pixels)

        def __getitem__(self, index: int) -> tuple[object, int, float]:
            return pixels[index], 5 - index, 0.5

    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField(), "x": FloatField()}
    path = tmp_path / "train.beton"
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Samples())
    assert [(s.label, s.read()) for s in scan(path).sources] == [
        (5 - n, b"P6 50 40 255\n" + pixels[n].tobytes()) for n in range(3)
    ]


@pytest.mark.parametrize("length", [0, 20, 3000, -1, -30])
def test_a_beton_that_is_cut_off_is_refused(tmp_path: Path, length: int) -> None:
    path = beton(tmp_path / "a.beton", [1, 0, 1])
    path.write_bytes(path.read_bytes()[:length])
    with fails("source.beton_damaged", "a.beton"):
        scan(path)


def test_other_files_and_labels_are_refused(tmp_path: Path) -> None:
    with fails("source.beton_damaged"):
        scan(beton(tmp_path / "a.beton", [-1, 0]))
    (tmp_path / "b.beton").write_bytes(b"hello" * 2000)
    with fails("source.beton_damaged"):
        scan(tmp_path / "b.beton")
    with fails("source.layout_mismatch", usage=True):
        scan(made(tmp_path, "none.jpg") / "none.jpg", layout="beton")
