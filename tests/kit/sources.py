"""What the tests of sources make: files, tars, the archives of ILSVRC2012."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from imagenet_prep.sources.scan import Scan

WNIDS = ("n01751748", "n02105855", "n09193705")
"""The classes of images 1, 3 and 2 of ImageNet's val."""


def made(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def rows(collection: Scan) -> list[tuple[str, str, int, str]]:
    return [(s.key, s.split, s.label, s.crop) for s in collection.sources]


def contents(collection: Scan) -> dict[str, bytes]:
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


def train_tar(folder: Path, members: Mapping[str, Mapping[str, bytes]]) -> Path:
    """wnid -> name -> bytes of each image -> the archive of train."""
    inner = {f"{wnid}.tar": tar_bytes(images) for wnid, images in members.items()}
    path = folder / "ILSVRC2012_img_train.tar"
    path.write_bytes(tar_bytes(inner))
    return path


def val_tar(folder: Path, images: Sequence[bytes]) -> Path:
    """The image of each number from 1 -> the archive of val."""
    names = {f"ILSVRC2012_val_{n:08d}.JPEG": data for n, data in enumerate(images, 1)}
    path = folder / "ILSVRC2012_img_val.tar"
    path.write_bytes(tar_bytes(names))
    return path


def idx_bytes(shape: Sequence[int], values: bytes) -> bytes:
    return bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + values


def idx_pair(folder: Path, which: str, labels: Sequence[int], packed: bool = False) -> None:
    """Images of 3 columns and 2 rows, each full of its own number, with their labels."""
    count = len(labels)
    images = idx_bytes((count, 2, 3), b"".join(bytes([n]) * 6 for n in range(count)))
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (
        (f"{which}-images-idx3-ubyte", images),
        (f"{which}-labels-idx1-ubyte", idx_bytes((count,), bytes(labels))),
    ):
        path = folder / f"{name}.gz" if packed else folder / name
        path.write_bytes(gzip.compress(data) if packed else data)
