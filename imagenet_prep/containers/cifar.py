"""CIFAR-10 and CIFAR-100 as they are downloaded -> their classes and images.

``data_batch_1`` ... and ``test_batch`` with ``batches.meta``, or ``train`` and ``test`` with
``meta`` (pickles), and the binary versions: a label byte (CIFAR-100: coarse, then fine) and
3,072 bytes of 32 x 32 pixels, plane by plane. The test set becomes the split val. Pickles are
never executed: the labels and the place of the pixels are read from their opcodes.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from imagenet_prep.containers.names import read_text, safe_part
from imagenet_prep.containers.source import Finding, Source, found, in_memory
from imagenet_prep.core.errors import ToolError
from imagenet_prep.storage.byte_range import Place
from imagenet_prep.storage.location import Location, Url

_IMAGE_BYTES = 3 * 32 * 32
_FORM = "planes:32x32"
_TEN = [f"data_batch_{number}" for number in range(1, 6)]
_MAX_NAME = 1000
_TEXTS = ("SHORT_BIN", "BINSTRING", "BINUNICODE", "BINBYTES", "UNICODE", "STRING")


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
