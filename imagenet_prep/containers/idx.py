"""IDX files, as MNIST and its relatives come -> their classes and images.

``train-images-idx3-ubyte`` with ``train-labels-idx1-ubyte``, and the same with ``t10k`` (or
``val``, ``test``); with a dot before ``idx`` and with ``.gz`` too. Source of the format:
the page of MNIST: two zero bytes, the type (8: uint8), the number of dimensions, each of
them as a big-endian uint32, then the values. t10k becomes the split val. The numbers in the
label files are the labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from imagenet_prep.containers.names import SPLIT_OF, entries_of
from imagenet_prep.containers.source import Finding, Source, found, in_memory
from imagenet_prep.core.errors import ToolError
from imagenet_prep.storage.byte_range import MAX_UNPACKED_BYTES, Place, unpack
from imagenet_prep.storage.location import Location, Url, place_at

_NAME = re.compile(r"(?P<set>.*?)(?P<what>images|labels)(?P<rest>[-.]idx[13]-ubyte(?:\.gz)?)")
_SETS = re.compile(r"(?:.*[^a-z0-9])?(train|t10k|test|val|valid|validation)[^a-z0-9]*")
_UINT8 = 8
_MAX_SIDE_PX = 1 << 14
# FashionMNIST has the same file names as MNIST: only what its folder is called tells.
_FASHION_TEXT = "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle_boot"
_FASHION = tuple(name.replace("_", " ") for name in _FASHION_TEXT.split())


@dataclass(frozen=True)
class _Array:
    """An IDX file: its dimensions, and where its values begin in what it unpacks to.

    ``kind`` begins the form of the places in it.
    ``values`` are those of a file of labels; empty for images, which stay where they are.
    """

    name: str
    place: Place
    shape: tuple[int, ...]
    start: int
    kind: str
    values: bytes


def is_idx(src: Location) -> bool:
    """Whether ``src`` is an IDX file of images, or a folder with one."""
    if src.is_dir():
        return any(_split_of(entry.name) for entry in entries_of(src))
    return _split_of(src.name) is not None


def find_idx(src: Location) -> Finding | None:
    """IDX files of images, each with its file of labels -> the images; None: there are none.

    Raises ToolError for a missing or damaged file.
    """
    folder = src if src.is_dir() else src.parent
    names = [entry.name for entry in entries_of(folder)] if src.is_dir() else [src.name]
    by_split: dict[str, Location] = {}
    for name in names:
        split = _split_of(name)
        if split is None:
            continue
        other = by_split.setdefault(split, folder / name)
        if other.name == f"{name}.gz":
            by_split[split] = folder / name  # unpacked beside it
        elif name not in (other.name, f"{other.name}.gz"):
            raise ToolError(
                "source.split_twice",
                f"{folder}: {other.name} and {name} both mean the split {split}; move one away",
            )
    if not by_split:
        return None
    finding = in_memory(s for split, path in by_split.items() for s in _find_split(split, path))
    finding.number_labels()
    order, path = finding.order or (), folder.resolve()
    if len(order) == len(_FASHION) and "fashion" in f"{path.parent.name}/{path.name}".lower():
        finding.readable = dict(zip(order, _FASHION, strict=True))
    return finding


def _split_of(name: str) -> str | None:
    """The split that the name of a file of images stands for; None for other files."""
    match = _NAME.fullmatch(name)
    which = _SETS.fullmatch(match["set"].lower()) if match else None
    if match is None or which is None or match["what"] != "images" or "idx3" not in match["rest"]:
        return None
    return SPLIT_OF.get(which[1], "val")


def _find_split(split: str, path: Location) -> Iterator[Source]:
    images = _read_array(path, 3)
    labels = _read_array(_labels_beside(path), 1)
    count, rows, columns = images.shape
    if labels.shape[0] != count:
        raise ToolError(
            "idx.counts",
            f"{path}: has {count} images, but {labels.name} has {labels.shape[0]} labels; "
            "fetch both again",
        )
    if not (0 < rows <= _MAX_SIDE_PX and 0 < columns <= _MAX_SIDE_PX) and count:
        raise ToolError(
            "idx.shape", f"{path}: has images of {columns} x {rows} pixels; fetch it again"
        )
    form = f"{images.kind}pgm:{columns}x{rows}"
    file, seen = images.place.file, images.place.seen
    size, digits = rows * columns, len(str(max(count - 1, 0)))
    classes = [str(label) for label in range(256)]
    for index in range(count):
        name = f"{index:0{digits}}.pgm"
        class_name = classes[labels.values[index]]
        place = Place(file, images.start + index * size, size, form, seen)
        yield found(f"{path.name}/{name}", split, class_name, f"{class_name}/{name}", place)


def _labels_beside(path: Location) -> Location:
    """The file of labels of a file of images, compressed or not."""
    match = _NAME.fullmatch(path.name)
    assert match is not None  # or it would be no file of images
    plain = match["rest"].removesuffix(".gz").replace("idx3", "idx1")
    names = [f"{match['set']}labels{plain}{suffix}" for suffix in ("", ".gz")]
    for name in names:
        if (path.parent / name).is_file():
            return path.parent / name
    raise ToolError(
        "list.missing", f"{path}: its labels, {names[0]}, are not beside it; fetch them too"
    )


def _read_array(path: Location, dimensions: int) -> _Array:
    """An IDX file of uint8, checked to be whole. Compressed ones are unpacked in memory."""
    kind = "gz " if path.suffix == ".gz" else ""
    start = 4 + 4 * dimensions
    try:
        place = place_at(path)
        if kind:
            data = unpack(place.file)
            size = len(data)
        else:
            size = place.stamp()[0]
            if isinstance(path, Url):
                place, kind = _far(path, size)
            most = start if dimensions > 1 else size
            data = place._replace(length=min(most, max(size, 0)), form=kind.strip()).read()
    except OSError as error:
        raise ToolError("source.unreadable", f"{path}: cannot be read ({error.strerror})") from None
    if len(data) < start or data[:4] != bytes((0, 0, _UINT8, dimensions)):
        raise ToolError(
            "idx.damaged",
            f"{path}: is not an IDX file of bytes in {dimensions} dimensions; fetch it again",
        )
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4))
    if size != start + prod(shape):
        raise ToolError(
            "idx.damaged",
            f"{path}: has {size} bytes, but its header makes {start + prod(shape)}; fetch it again",
        )
    return _Array(path.name, place, shape, start, kind, data[start:] if dimensions == 1 else b"")


def _far(path: Url, size: int) -> tuple[Place, str]:
    """Where an array behind a URL lies, and how: fetched as a whole unless that is too much."""
    if 0 <= size <= MAX_UNPACKED_BYTES:
        return path.place(), "kept "
    return path.place_of_parts(), ""
