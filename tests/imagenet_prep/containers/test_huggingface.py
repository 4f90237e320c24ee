"""Parquet shards and Arrow folders of Hugging Face: recognised, labelled, read in place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from imagenet_prep.containers import imagenet
from imagenet_prep.crop.run import run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.sources.scan import scan
from tests.conftest import jpeg_bytes, smooth_pixels
from tests.kit.errors import fails
from tests.kit.sources import contents, rows

pa = pytest.importorskip("pyarrow")


def table(
    labels: Sequence[Any], names: Sequence[str] | None = ("tench", "goldfish"), first: int = 0
) -> Any:
    """A table as the library ``datasets`` writes it: images of struct type, names in the schema."""
    images = [{"bytes": b"%d" % (first + n) * 99, "path": None} for n in range(len(labels))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if names is not None:
        features["label"] = {"names": list(names), "_type": "ClassLabel"}
    found = pa.table({"image": pa.array(images, kind), "label": pa.array(labels)})
    return found.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


def parquet(path: Path, data: Any, **options: Any) -> Path:
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(data, path, **options)
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with two shards of train, one of validation, and a test without labels."""
    data = tmp_path / "repository" / "data"
    parquet(data / "train-00000-of-00002.parquet", table([1, 0, 1]), row_group_size=2)
    parquet(data / "train-00001-of-00002.parquet", table([0], first=3))
    parquet(data / "validation-00000-of-00001.parquet", table([1], first=7))
    parquet(data / "test-00000-of-00001.parquet", table([-1, -1], first=8))
    (data.parent / "README.md").write_text("hello")
    return data.parent


@pytest.mark.parametrize("below", ["", "data"])
def test_parquet_shards_are_recognised_and_labelled(repository: Path, below: str) -> None:
    found = scan(repository / below)
    assert (found.layout, found.classes.names) == ("huggingface", ("tench", "goldfish"))
    prefix = "" if below else "data/"
    stem = prefix.replace("/", "-")
    assert rows(found) == [
        (f"{prefix}train-00000-of-00002.parquet/{n}", "train", label,
         f"train/{name}/{stem}train-00000-of-00002/{n}.JPEG")
        for n, (label, name) in enumerate([(1, "goldfish"), (0, "tench"), (1, "goldfish")])
    ] + [
        (f"{prefix}train-00001-of-00002.parquet/0", "train", 0,
         f"train/tench/{stem}train-00001-of-00002/0.JPEG"),
        (f"{prefix}validation-00000-of-00001.parquet/0", "val", 1,
         f"val/goldfish/{stem}validation-00000-of-00001/0.JPEG"),
    ]  # fmt: skip
    assert list(contents(found).values()) == [b"%d" % n * 99 for n in (0, 1, 2, 3, 7)]
    assert "test-00000-of-00001.parquet: left out" in found.notices[0]


@pytest.mark.parametrize(("stream", "packed"), [(True, None), (False, None), (False, "zstd")])
def test_arrow_folders_of_save_to_disk(tmp_path: Path, stream: bool, packed: str | None) -> None:
    options = pa.ipc.IpcWriteOptions(compression=packed)
    for split, labels in (("train", [0, 1, None]), ("validation", [1])):
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        data = table(labels)
        new = pa.ipc.new_stream if stream else pa.ipc.new_file
        with new(str(folder / "data-00000-of-00001.arrow"), data.schema, options=options) as writer:
            writer.write_table(data, max_chunksize=2)
        (folder / "state.json").write_text("{}")
    found = scan(tmp_path / "set")
    assert [(s.key, s.split, s.label) for s in found.sources] == [
        ("train/data-00000-of-00001.arrow/0", "train", 0),
        ("train/data-00000-of-00001.arrow/1", "train", 1),
        ("validation/data-00000-of-00001.arrow/0", "val", 1),
    ]
    assert list(contents(found).values()) == [b"0" * 99, b"1" * 99, b"0" * 99]
    assert "1 images left out without class" in found.notices[0]


def test_imagenets_own_names_become_wnids(tmp_path: Path) -> None:
    names = list(imagenet.names().values())
    parquet(tmp_path / "train-00000-of-00001.parquet", table([0, 999], names))
    found = scan(tmp_path)
    assert found.classes.names == tuple(imagenet.names())
    assert [s.crop.split("/")[1] for s in found.sources] == ["n01440764", "n15075141"]
    assert found.classes.title(0) == "tench, Tinca tinca"


def test_plain_columns_and_text_labels(tmp_path: Path) -> None:
    data = pa.table({"jpg": pa.array([b"a", b"b"]), "cls": ["bee", "ant"], "id": [7, 8]})
    found = scan(parquet(tmp_path / "a.parquet", data))
    assert [(s.label, s.read()) for s in found.sources] == [(1, b"a"), (0, b"b")]
    numbers = pa.table({"image": pa.array([b"a", b"b"]), "label": [10, 9]})
    assert scan(parquet(tmp_path / "b.parquet", numbers)).classes.names == ("9", "10")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (pa.table({"a": [b"x"], "label": [1]}), "parquet.columns"),
        (pa.table({"image": [b"x"], "b": [1]}), "parquet.columns"),
        (pa.table({"image": [b"x"], "cls": [1], "target": [2]}), "parquet.columns"),
        (pa.table({"image": [b"x"], "label": [1.5]}), "parquet.columns"),
        (table([5]), "parquet.classes"),
    ],
)
def test_columns_that_leave_it_open_are_refused(tmp_path: Path, data: Any, code: str) -> None:
    with fails(code, "a.parquet"):
        scan(parquet(tmp_path / "a.parquet", data))


def test_damaged_and_foreign_files_are_refused(repository: Path) -> None:
    path = repository / "data" / "train-00000-of-00002.parquet"
    whole = path.read_bytes()
    for data in (whole[:-5], b"hello"):
        path.write_bytes(data)
        with fails("parquet.damaged", path.name):
            scan(repository)
    parquet(path, table([0], ("ant", "bee")))
    with fails("parquet.classes"):
        scan(repository)


def test_rows_are_cropped_and_bad_ones_fail_alone(tmp_path: Path) -> None:
    image = jpeg_bytes(smooth_pixels(40, 50, 1))
    values = [image, b"no image", None, image]
    data = pa.table({"image": pa.array(values, pa.binary()), "label": [0, 0, 1, 1]})
    src = parquet(tmp_path / "a.parquet", data, row_group_size=3)
    report = run_crop(src, tmp_path / "cropped", CropSettings(size=16), jobs=1)
    assert (report.ok, report.failed) == (2, 2)
    assert run_crop(src, tmp_path / "cropped", CropSettings(size=16), jobs=1).tried == 0
