"""What the tests of sources make: files, tars, a MATLAB file, the archives of ILSVRC2012."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from imagenet_prep.sources.scan import Collection

WNIDS = ("n02", "n01", "n03")
"""The wnids of the made-up devkit by their ids 1, 2, 3: not in the order of the labels."""


def made(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def rows(collection: Collection) -> list[tuple[str, str, int, str]]:
    return [(s.key, s.split, s.label, s.crop) for s in collection.sources]


def contents(collection: Collection) -> dict[str, bytes]:
    return {source.key: source.place.read() for source in collection.sources}


def tar_bytes(
    members: Mapping[str, bytes] | Sequence[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT
) -> bytes:
    """Name -> bytes of each member, also twice the same -> a tar."""
    buffer = io.BytesIO()
    pairs = members.items() if isinstance(members, Mapping) else members
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in pairs:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def element(kind: int, data: bytes, order: str = "<") -> bytes:
    """A data element of a MATLAB file."""
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(
    kind: int, shape: Sequence[int], *parts: bytes, name: str = "", order: str = "<"
) -> bytes:
    head = element(6, struct.pack(f"{order}II", kind, 0), order)
    head += element(5, struct.pack(f"{order}{len(shape)}i", *shape), order)
    head += element(1, name.encode(), order)
    return element(14, head + b"".join(parts), order)


def text_matrix(text: str, order: str = "<") -> bytes:
    units = text.encode("utf-16-le" if order == "<" else "utf-16-be")
    return matrix(4, (1, len(text)), element(4, units, order), order=order)


def number_matrix(value: float, order: str = "<") -> bytes:
    if value == int(value) and 0 <= value < 256:  # MATLAB stores small whole numbers so
        small = struct.pack(f"{order}I", 1 << 16 | 2) + bytes([int(value), 0, 0, 0])
        return matrix(6, (1, 1), small, order=order)
    return matrix(6, (1, 1), element(9, struct.pack(f"{order}d", value), order), order=order)


def mat_file(
    synsets: Sequence[tuple[int, str, str]], order: str = "<", packed: bool = True
) -> bytes:
    """(id, wnid, words) of each synset -> a MATLAB file with the struct array ``synsets``."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "children")
    width = struct.pack(f"{order}I", 4 << 16 | 5) + struct.pack(f"{order}i", 16)
    names = element(1, b"".join(name.encode().ljust(16, b"\0") for name in fields), order)
    values = [
        number_matrix(number, order)
        + text_matrix(wnid, order)
        + text_matrix(words, order)
        + matrix(6, (0, 0), element(9, b"", order), order=order)
        for number, wnid, words in synsets
    ]
    whole = matrix(2, (len(synsets), 1), width, names, *values, name="synsets", order=order)
    if packed:
        data = zlib.compress(whole)
        whole = struct.pack(f"{order}II", 15, len(data)) + data
    mark = b"IM" if order == "<" else b"MI"
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", 0x0100) + mark + whole


def devkit(folder: Path, truth: Sequence[int], mat: bytes | None = None) -> Path:
    """The devkit's archive with classes 1 to 3 and a group above them."""
    synsets = [(number, wnid, f"word {wnid}, w{number}") for number, wnid in enumerate(WNIDS, 1)]
    mat = mat_file([*synsets, (1001, "n99", "everything")]) if mat is None else mat
    lines = "".join(f"{number}\n" for number in truth).encode()
    root = "ILSVRC2012_devkit_t12"
    data = tar_bytes(
        {
            f"{root}/readme.txt": b"hello",
            f"{root}/data/ILSVRC2012_validation_ground_truth.txt": lines,
            f"{root}/data/meta.mat": mat,
        }
    )
    path = folder / "ILSVRC2012_devkit_t12.tar.gz"
    path.write_bytes(gzip.compress(data))
    return path


def train_tar(folder: Path, members: Mapping[str, Mapping[str, bytes]]) -> Path:
    """wnid -> name -> bytes of each picture -> the archive of train."""
    inner = {f"{wnid}.tar": tar_bytes(pictures) for wnid, pictures in members.items()}
    path = folder / "ILSVRC2012_img_train.tar"
    path.write_bytes(tar_bytes(inner))
    return path


def val_tar(folder: Path, pictures: Sequence[bytes]) -> Path:
    """The picture of each number from 1 -> the archive of val."""
    names = {f"ILSVRC2012_val_{n:08d}.JPEG": data for n, data in enumerate(pictures, 1)}
    path = folder / "ILSVRC2012_img_val.tar"
    path.write_bytes(tar_bytes(names))
    return path


def idx_bytes(shape: Sequence[int], values: bytes) -> bytes:
    return bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + values


def idx_pair(folder: Path, which: str, labels: Sequence[int], packed: bool = False) -> None:
    """Pictures of 3 columns and 2 rows, each full of its own number, with their labels."""
    count = len(labels)
    pictures = idx_bytes((count, 2, 3), b"".join(bytes([n]) * 6 for n in range(count)))
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (
        (f"{which}-images-idx3-ubyte", pictures),
        (f"{which}-labels-idx1-ubyte", idx_bytes((count,), bytes(labels))),
    ):
        path = folder / f"{name}.gz" if packed else folder / name
        path.write_bytes(gzip.compress(data) if packed else data)
