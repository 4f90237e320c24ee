"""CIFAR-10 and CIFAR-100 in both their versions: labels, names, pixels; and what is refused."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from imagenet_prep.dataset.journal import is_inside
from imagenet_prep.sources.scan import scan
from tests.kit.errors import fails

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
