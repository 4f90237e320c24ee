"""The row index of a beton: from a build, from the command, from another program's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_prep.beton.verify import check_beton
from imagenet_prep.cli.main import run
from imagenet_prep.dataset.rows import make_rows, source_of
from imagenet_prep.jpeg import core
from imagenet_prep.jpeg.index import load_index, rows_beside
from tests.imagenet_prep.conftest import Made
from tests.kit.errors import fails
from tests.kit.jpegs import content


def test_build_and_command_make_the_same_index(
    beton_copy: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    path = beton_copy.out
    built = rows_beside(path).read_bytes()
    found = load_index(rows_beside(path), source_of(path))
    assert (found.images["status"] == core.OK).all()
    assert len(found.images) == beton_copy.manifest.samples
    rows_beside(path).unlink()
    assert run(["index", str(path), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)["indexes"][0]
    assert (value["images"], value["refused"]) == (beton_copy.manifest.samples, {})
    assert rows_beside(path).read_bytes() == built


@pytest.mark.parametrize("format", ["raw", "mixed:0.5"])
def test_raw_samples_are_in_it_too(beton_copy: Made, tmp_path: Path, format: str) -> None:
    path = tmp_path / "train.beton"
    beton_copy.build(path, format=format)
    found = load_index(rows_beside(path), source_of(path))
    raw = found.images["mode"] == core.RAW
    assert raw.any()
    assert raw.all() == (format == "raw")


def test_verify_finds_a_changed_index_and_no_missing_one(beton_copy: Made) -> None:
    path = beton_copy.out
    assert check_beton(path).good
    data = bytearray(rows_beside(path).read_bytes())
    data[-1] ^= 1
    rows_beside(path).write_bytes(data)
    report = check_beton(path)
    assert not report.good
    assert "row index" in report.faults[0]
    rows_beside(path).unlink()
    assert check_beton(path).good


@pytest.mark.timeout(60)  # FFCV's writer waits for ever for a process that failed
def test_another_programs_beton_is_indexed(tmp_path: Path) -> None:
    """FFCV's own writer, other fields and names, images of several sizes, JPEG and raw."""
    fields: Any = pytest.importorskip("ffcv.fields")
    writer: Any = pytest.importorskip("ffcv.writer")
    path = tmp_path / "other.beton"
    rng = np.random.default_rng(0)
    images = [content(rng, 40 + 7 * i, 90 - 5 * i, 4) for i in range(9)]

    class Dataset:
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> tuple[Any, ...]:
            return 0.5 * index, images[index], np.arange(3)

    kinds = {
        "score": fields.FloatField(),
        "photo": fields.RGBImageField(write_mode="proportion", compress_probability=0.5),
        "vector": fields.NDArrayField(np.dtype(np.int64), (3,)),
    }
    writer.DatasetWriter(str(path), kinds, num_workers=1).from_indexed_dataset(Dataset())
    assert run(["index", str(path)]) == 0
    found = load_index(rows_beside(path), source_of(path))
    sizes = list(zip(found.images["height"], found.images["width"], strict=True))
    assert sizes == [image.shape[:2] for image in images]
    assert (found.images["status"] == core.OK).all()
    assert set(found.images["mode"].tolist()) == {core.HALF, core.RAW}
    np.testing.assert_array_equal(make_rows(path, 2).positions, found.positions)


def test_what_is_no_beton_has_a_code(tmp_path: Path) -> None:
    (tmp_path / "a.beton").write_bytes(b"nothing of the kind" * 10)
    with fails("beton.damaged"):
        make_rows(tmp_path / "a.beton", 1)
    assert run(["index", str(tmp_path / "none.beton")]) == 2
