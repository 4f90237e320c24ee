"""MNIST's IDX files and CIFAR, read in place: labels, pixels; and what is refused."""

from __future__ import annotations

import gzip
import os
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from imagenet_prep.core.errors import ToolError
from imagenet_prep.crop.run import run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.dataset.journal import is_inside
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


NAMES = ["airplane", "automobile", "bird"]


def text(value: str | bytes) -> bytes:
    """A text as Python 2 pickles it in protocol 2."""
    data = value.encode() if isinstance(value, str) else value
    head = b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<I", len(data))
    return head + data + b"q\x01"


def listed(values: Sequence[int | str]) -> bytes:
    items = [text(v) if isinstance(v, str) else b"K" + bytes([v]) for v in values]
    parts = [b"".join(items[at : at + 2]) for at in range(0, len(items), 2)]
    return b"]q\x02" + b"".join(b"(" + part + b"e" for part in parts)


def pickled(**values: Sequence[int | str] | bytes) -> bytes:
    """A dict of lists and one text of bytes, as CIFAR has it."""
    body = b"".join(
        text(name) + (text(value) if isinstance(value, bytes) else listed(value))
        for name, value in values.items()
    )
    return b"\x80\x02}q\x01(" + body + b"u."


def planes(number: int) -> bytes:
    return bytes([number]) * 1024 + bytes([number + 1]) * 1024 + bytes([number + 2]) * 1024


def ppm(number: int) -> bytes:
    return b"P6 32 32 255\n" + bytes([number, number + 1, number + 2]) * 1024


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    src = tmp_path / "cifar-10-batches-py"
    src.mkdir()
    (src / "batches.meta").write_bytes(pickled(label_names=NAMES, num_vis=[1]))
    for name, labels in (("data_batch_1", [2, 0, 1]), ("data_batch_2", [1]), ("test_batch", [0])):
        data = b"".join(map(planes, range(len(labels))))
        (src / name).write_bytes(
            pickled(batch_label=["x"], labels=labels, data=data, filenames=["a"])
        )
    return src


def test_the_python_version_of_cifar_10(ten: Path) -> None:
    found = scan(ten)
    assert (found.layout, found.classes.names) == ("cifar", tuple(NAMES))
    assert [(s.key, s.split, s.label) for s in found.sources] == [
        ("data_batch_1/0", "train", 2), ("data_batch_1/1", "train", 0),
        ("data_batch_1/2", "train", 1), ("data_batch_2/0", "train", 1), ("test_batch/0", "val", 0),
    ]  # fmt: skip
    assert [s.read() for s in found.sources] == [ppm(n) for n in (0, 1, 2, 0, 0)]
    assert found.sources[0].crop == "train/bird/data_batch_1-0.JPEG"
    assert found.notices == ["data_batch_3, data_batch_4, data_batch_5: not there"]
    assert len(scan(ten.parent).sources) == 5  # the folder around it


def test_the_python_version_of_cifar_100(tmp_path: Path) -> None:
    meta = pickled(fine_label_names=NAMES, coarse_label_names=["vehicle", "animal"])
    (tmp_path / "meta").write_bytes(meta)
    data = planes(7) + planes(9)
    labels = {"fine_labels": [1, 2], "coarse_labels": [0, 1]}
    (tmp_path / "train").write_bytes(pickled(filenames=["a", "b"], **labels, data=data))
    (tmp_path / "test").write_bytes(pickled(filenames=["a", "b"], **labels, data=data))
    found = scan(tmp_path)
    assert [(s.key, s.split, s.label) for s in found.sources] == [
        ("test/0", "val", 1), ("test/1", "val", 2),
        ("train/0", "train", 1), ("train/1", "train", 2),
    ]  # fmt: skip
    assert found.sources[1].read() == ppm(9)


@pytest.mark.parametrize("hundred", [False, True])
def test_the_binary_versions(tmp_path: Path, hundred: bool) -> None:
    names = ("train.bin", "test.bin", "fine_label_names.txt") if hundred else (
        "data_batch_1.bin", "test_batch.bin", "batches.meta.txt"
    )  # fmt: skip
    head = b"\x09" if hundred else b""
    (tmp_path / names[0]).write_bytes(head + b"\2" + planes(1) + head + b"\0" + planes(2))
    (tmp_path / names[1]).write_bytes(head + b"\1" + planes(3))
    (tmp_path / names[2]).write_text("\n".join(NAMES) + "\n\n")
    found = {s.key: (s.split, s.label, s.read()) for s in scan(tmp_path).sources}
    assert found == {
        f"{names[0]}/0": ("train", 2, ppm(1)),
        f"{names[0]}/1": ("train", 0, ppm(2)),
        f"{names[1]}/0": ("val", 1, ppm(3)),
    }


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-2000],
        lambda data: b"",
        lambda data: data.replace(b"K\x02K\x00", b"K\x09K\x00"),
        lambda data: data.replace(b"(K\x01e", b""),
        lambda data: b"\x80\x02cos\nsystem\n(" + text("ls") + b"tR.",
    ],
)
def test_damaged_batches_are_refused(ten: Path, damage: object) -> None:
    path = ten / "data_batch_1"
    assert callable(damage)
    path.write_bytes(damage(path.read_bytes()))
    with fails("cifar.damaged", "data_batch_1"):
        scan(ten)


def test_class_names_never_lead_out_of_the_destination(ten: Path) -> None:
    (ten / "batches.meta").write_bytes(pickled(label_names=["../../x", "/etc", "."]))
    assert all(is_inside(source.crop) for source in scan(ten).sources)


def test_a_folder_of_something_else_is_wrong_usage(tmp_path: Path) -> None:
    with fails("source.layout_mismatch", usage=True):
        scan(tmp_path, layout="cifar")
