"""IDX arrays: recognised, labelled, read; and what is refused."""

from __future__ import annotations

import gzip
import os
from collections import Counter
from pathlib import Path

import pytest

from imagenet_prep.core.errors import ToolError
from imagenet_prep.crop.run import run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.sources.scan import scan
from imagenet_prep.storage import byte_range as places
from tests.kit.errors import fails
from tests.kit.sources import contents, idx_bytes, idx_pair, rows


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_recognised_and_read_as_grey_images(tmp_path: Path, packed: bool) -> None:
    idx_pair(tmp_path / "mnist", "train", [5, 0, 2], packed)
    idx_pair(tmp_path / "mnist", "t10k", [2], packed)
    found = scan(tmp_path / "mnist")
    end = ".gz" if packed else ""
    assert rows(found) == [
        (f"t10k-images-idx3-ubyte{end}/0.pgm", "val", 2, "val/2/0.JPEG"),
        (f"train-images-idx3-ubyte{end}/0.pgm", "train", 5, "train/5/0.JPEG"),
        (f"train-images-idx3-ubyte{end}/1.pgm", "train", 0, "train/0/1.JPEG"),
        (f"train-images-idx3-ubyte{end}/2.pgm", "train", 2, "train/2/2.JPEG"),
    ]
    assert list(contents(found).values()) == [
        b"P5 3 2 255\n" + bytes([n]) * 6 for n in (0, 0, 1, 2)
    ]
    assert found.classes.names == ("0", "1", "2", "3", "4", "5")


def test_idx_images_are_cropped(tmp_path: Path) -> None:
    idx_pair(tmp_path / "mnist", "train", [0, 1, 1], packed=True)
    report = run_crop(tmp_path / "mnist", tmp_path / "cropped", CropSettings(size=16), jobs=1)
    assert (report.ok, report.failed) == (3, 0)


def test_a_changed_array_is_read_again_from_its_compressed_file(tmp_path: Path) -> None:
    idx_pair(tmp_path, "train", [0, 1], packed=True)
    source = scan(tmp_path).sources[1]
    assert source.read()[-1] == 1
    path = Path(source.file)
    path.write_bytes(gzip.compress(idx_bytes((2, 2, 3), b"\7" * 12)))
    os.utime(path, ns=(0, 0))
    assert source.read()[-1] == 7


def test_labels_may_be_compressed_where_images_are_not(tmp_path: Path) -> None:
    idx_pair(tmp_path, "train", [0, 1])
    labels = tmp_path / "train-labels-idx1-ubyte"
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels.read_bytes()))
    labels.unlink()
    assert [s.label for s in scan(tmp_path / "train-images-idx3-ubyte").sources] == [0, 1]


def test_other_spellings_of_idx_names(tmp_path: Path) -> None:
    idx_pair(tmp_path, "train", [0, 1])
    for name in ("images-idx3", "labels-idx1"):
        path = tmp_path / f"train-{name}-ubyte"
        path.rename(tmp_path / f"emnist-letters-{path.name.replace('-idx', '.idx')}")
    assert len(scan(tmp_path).sources) == 2


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("images-idx3", idx_bytes((2, 2, 3), b"x" * 11), "idx.damaged"),
        ("images-idx3", idx_bytes((3, 2, 3), b"x" * 18), "idx.counts"),
        ("images-idx3", idx_bytes((2, 0, 3), b""), "idx.shape"),
        ("images-idx3", b"\0\0\x0d\3" + bytes(24), "idx.damaged"),
        ("labels-idx1", b"", "idx.damaged"),
        ("labels-idx1", None, "list.missing"),
    ],
)
def test_damaged_idx_files_are_refused(
    tmp_path: Path, name: str, data: bytes | None, code: str
) -> None:
    idx_pair(tmp_path, "train", [0, 1])
    path = tmp_path / f"train-{name}-ubyte"
    path.write_bytes(data or b"")
    if data is None:
        path.unlink()
    with fails(code):
        scan(tmp_path)


def test_damaged_compression_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idx_pair(tmp_path, "train", [0, 1], packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for damaged in (whole[:-9], b"xx" + whole[2:], b""):
        path.write_bytes(damaged)
        with pytest.raises(ToolError, match=r"idx3-ubyte\.gz: "):
            scan(tmp_path)
    path.write_bytes(whole)
    monkeypatch.setattr(places, "MAX_UNPACKED_BYTES", 20)
    with fails("source.unreadable", "gunzip"):
        scan(tmp_path)


def test_an_array_beside_its_compressed_file_is_read_once(tmp_path: Path) -> None:
    raw = tmp_path / "EMNIST" / "raw"
    idx_pair(raw, "emnist-letters-train", [1, 2])
    idx_pair(raw, "emnist-letters-train", [1, 2], packed=True)
    idx_pair(raw, "emnist-letters-test", [2], packed=True)
    found = scan(raw.parent)
    assert [(s.key.partition("/")[0], s.label) for s in found.sources] == [
        ("emnist-letters-test-images-idx3-ubyte.gz", 2),
        ("emnist-letters-train-images-idx3-ubyte", 1),
        ("emnist-letters-train-images-idx3-ubyte", 2),
    ]
    idx_pair(raw, "emnist-digits-train", [1])
    with fails("source.split_twice", "emnist-letters", "emnist-digits"):
        scan(raw)


def test_the_real_fashion_mnist(shared_data: Path) -> None:
    found = scan(shared_data / "fashion-mnist")
    assert Counter(s.split for s in found.sources) == {"train": 6000, "val": 2000}
    assert found.classes.title(9) == "Ankle boot"
    data = found.sources[-1].read()
    assert (data[:13], len(data)) == (b"P5 28 28 255\n", 13 + 784)


def test_torchvisions_folder_of_fashion_mnist_has_its_names(tmp_path: Path) -> None:
    idx_pair(tmp_path / "FashionMNIST" / "raw", "train", list(range(10)))
    for src in (tmp_path / "FashionMNIST", tmp_path / "FashionMNIST" / "raw"):
        assert scan(src).classes.title(0) == "T-shirt/top"
