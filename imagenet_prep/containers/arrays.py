"""Arrays as torchvision downloads them: MNIST and its relatives, CIFAR -> classes and images.

IDX files: ``train-images-idx3-ubyte`` with ``train-labels-idx1-ubyte``, and the same with ``t10k``
(or ``val``, ``test``); with a dot before ``idx`` and with ``.gz`` too. Source of the format: the
page of MNIST: two zero bytes, the type (8: uint8), the number of dimensions, each of them as a
big-endian uint32, then the values. The numbers in the label files are the labels.

CIFAR-10 and CIFAR-100: ``data_batch_1`` ... and ``test_batch`` with ``batches.meta``, or ``train``
and ``test`` with ``meta`` (pickles), and the binary versions: a label byte (CIFAR-100: coarse,
then fine) and 3,072 bytes of 32 x 32 pixels, plane by plane. Pickles are never executed: the
labels and the place of the pixels are read from their opcodes.

The test set becomes the split val.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from imagenet_prep.containers.names import SPLIT_OF, entries_of, read_text, safe_part
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
_IMAGE_BYTES = 3 * 32 * 32
_FORM = "planes:32x32"
_TEN = [f"data_batch_{number}" for number in range(1, 6)]
_MAX_NAME = 1000
_TEXTS = ("SHORT_BIN", "BINSTRING", "BINUNICODE", "BINBYTES", "UNICODE", "STRING")


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


class _Kind(NamedTuple):
    """The files of a version: those that tell it, of train and val, and of the class names.

    ``skipped`` bytes lie before the label of each image of a binary file; None: a pickle,
    whose labels are called ``labels``, and the class names ``names``.
    """

    train: tuple[str, ...]
    val: str
    meta: str
    labels: str
    names: str
    skipped: int | None


_KINDS = (
    _Kind(tuple(_TEN), "test_batch", "batches.meta", "labels", "label_names", None),
    _Kind(("train",), "test", "meta", "fine_labels", "fine_label_names", None),
    _Kind(tuple(f"{name}.bin" for name in _TEN), "test_batch.bin", "batches.meta.txt", "", "", 0),
    _Kind(("train.bin",), "test.bin", "fine_label_names.txt", "", "", 1),
)


def is_cifar(src: Location) -> bool:
    """Whether ``src`` is a folder with the files of CIFAR."""
    return src.is_dir() and not isinstance(src, Url) and _kind(Path(src)) is not None


def _kind(folder: Path) -> _Kind | None:
    return next(
        (k for k in _KINDS if (folder / k.meta).is_file() and (folder / k.train[0]).is_file()), None
    )


def find_cifar(src: Location) -> Finding | None:
    """The folder of CIFAR -> its images; None: it is none. Raises ToolError for damaged files."""
    kind = _kind(Path(src)) if src.is_dir() and not isinstance(src, Url) else None
    if kind is None or isinstance(src, Url):
        return None
    meta = src / kind.meta
    if kind.skipped is not None:
        names = read_text(meta, "the names of the classes").split()
    else:
        names = [str(value) for value in _pickled(meta, kind.names)[0]]
    sources: list[Source] = []
    for split, files in (("train", kind.train), ("val", (kind.val,))):
        for name in files:
            if (src / name).is_file():
                sources += _images(Path(src / name), split, names, kind)
    finding = in_memory(sources)
    missing = [name for name in (*kind.train, kind.val) if not (src / name).is_file()]
    if missing:
        finding.notices.append(f"{', '.join(missing)}: not there")
    finding.order = names
    return finding


def _images(path: Path, split: str, names: list[str], kind: _Kind) -> Iterator[Source]:
    """The images of one file."""
    if kind.skipped is None:
        labels, start, count = _pickled(path, kind.labels)
        step = _IMAGE_BYTES
        sound = count == len(labels) * step and all(isinstance(value, int) for value in labels)
    else:
        data, before = path.read_bytes(), kind.skipped + 1
        start, step = before, _IMAGE_BYTES + before
        labels = list(data[kind.skipped :: step])
        sound = len(data) == len(labels) * step
    if not labels or not sound or max(labels) >= len(names) or min(labels) < 0:
        raise ToolError(
            "cifar.damaged", f"{path}: its labels and images do not fit; fetch the set again"
        )
    digits = len(str(len(labels) - 1))
    for index, label in enumerate(labels):
        name, class_name = f"{path.name}/{index:0{digits}}", names[label]
        place = Place(str(path), start + index * step, _IMAGE_BYTES, _FORM)
        inside = f"{safe_part(class_name)}/{path.name.replace('.', '-')}-{index:0{digits}}"
        yield found(name, split, class_name, inside, place)


def _pickled(path: Path, name: str) -> tuple[list[Any], int, int]:
    """A pickled dict -> (the list under ``name``, the first byte of its one large value and
    the number of them; 0 and 0 where there is none). Raises ToolError."""
    values: list[Any] = []
    start = count = 0
    wanted, large = "name", 0
    try:
        for opcode, value, at in pickletools.genops(path.read_bytes()):
            if large:  # the value before this opcode ended here
                start, count, large = (at or 0) - large, large, 0
            kind, value = (
                opcode.name,
                value.decode("latin-1") if isinstance(value, bytes) else value,
            )
            if isinstance(value, str) and len(value) > _MAX_NAME:
                large = len(value) if not kind.endswith("UNICODE") else 0
            elif wanted == "name" and value == name:
                wanted = "values"
            elif wanted == "values" and kind.startswith((*_TEXTS, "BININT", "INT")):
                values.append(value)
            elif wanted == "values" and kind == "APPENDS":
                wanted = "more"
            elif wanted == "more" and not kind.endswith("PUT"):
                wanted = "values" if kind == "MARK" else ""
    except (ValueError, OSError) as error:
        raise ToolError(
            "cifar.damaged", f"{path}: cannot be read ({error}); fetch the set again"
        ) from None
    return values, start, count
