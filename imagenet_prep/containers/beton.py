"""FFCV betons as a source -> their classes and images, to be cropped again.

Any beton of FFCV's format 2 with one image field and one integer field, of any sizes, raw and
JPEG mixed; with our manifest beside it its class names are known. The format: header, field
descriptors, one row per sample of the metadata of all its fields, and at ``alloc_table_ptr``
a table of (sample, place, bytes).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagenet_prep.containers.names import SPLIT_OF, entries_of, safe_part, text_of
from imagenet_prep.containers.source import Finding, Source, found, in_memory
from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.dataset.names import manifest_beside
from imagenet_prep.storage.byte_range import Place
from imagenet_prep.storage.location import Location, Url

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HEADER = [("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"),
           ("samples", "<u8"), ("table", "<u8")]  # fmt: skip
_FIELD = [("type", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))]
_TABLE = [("sample", "<u8"), ("ptr", "<u8"), ("size", "<u8")]
_IMAGE = [("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("ptr", "<u8")]
_POINTER = [("ptr", "<u8"), ("size", "<u8")]
_FLOAT, _INTEGER, _PIXELS = 0, 1, 2
_KINDS: dict[int, Any] = {
    _FLOAT: "<f8", _INTEGER: "<i8", _PIXELS: _IMAGE, 3: _POINTER, 4: "<u8", 5: _POINTER, 6: "<u8",
}  # fmt: skip
_JPEG = 0


def is_beton(src: Location) -> bool:
    """Whether ``src`` is a beton, or a folder of some and of nothing else but their files."""
    if isinstance(src, Url):
        return False
    if not src.is_dir():
        return src.suffix == ".beton"
    names = [entry.name for entry in entries_of(src)]
    return any(name.endswith(".beton") for name in names) and all(
        name.endswith((".beton", ".beton.json", ".beton.rows", ".npz", ".md", ".txt"))
        for name in names
    )


def find_beton(src: Location) -> Finding:
    """Betons -> their images. Raises UsageError or ToolError for damaged and other files."""
    names = [entry.name for entry in entries_of(src)] if src.is_dir() else [src.name]
    betons = [name for name in names if name.endswith(".beton")]
    if isinstance(src, Url) or not betons:
        raise UsageError("source.layout_mismatch", f"{src}: is no beton on this machine")
    folder = src if src.is_dir() else src.parent
    sources: list[Source] = []
    known: tuple[list[str], dict[str, str]] | None = None
    for name in betons:
        here = _classes(manifest_beside(folder / name))
        if (sources and (here is None) != (known is None)) or (here and known and here != known):
            raise ToolError(
                "source.class_conflict", f"{folder}: the betons {betons[0]} and {name} have "
                "different classes; crop them one by one"
            )  # fmt: skip
        known = here
        sources += _samples(folder / name, known[0] if known is not None else None)
    finding = in_memory(sources)
    if known is not None:
        finding.order, finding.readable = known
    else:
        most = max(int(name) for names_ in finding.classes.values() for name in names_)
        finding.order = [str(label) for label in range(most + 1)]
    return finding


def _classes(manifest: Path) -> tuple[list[str], dict[str, str]] | None:
    """The classes of our manifest and their names for people; None where there is none."""
    try:
        value = json.loads(manifest.read_text(encoding="utf-8"))
        return [str(name) for name in value["classes"]], dict(value.get("readable", {}))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _samples(path: Path, classes: list[str] | None) -> list[Source]:
    """The images of one beton."""
    image, labels, sizes = _read(path)
    words = re.split(r"[^a-z]+", path.stem.lower())
    split = next((SPLIT_OF[word] for word in words if word in SPLIT_OF), "train")
    digits, stem = len(str(max(len(labels) - 1, 0))), text_of(path.stem)
    rows = zip(*(image[name].tolist() for name in ("mode", "width", "height", "ptr")),
               labels.tolist(), sizes.tolist(), strict=True)  # fmt: skip
    sources = []
    for index, (mode, width, height, ptr, label, size) in enumerate(rows):
        if label < 0 or (classes is not None and label >= len(classes)):
            raise _damaged(path, f"sample {index} has the label {label}")
        class_name = str(label) if classes is None else classes[label]
        raw = mode != _JPEG
        if raw and size != 3 * width * height:
            raise _damaged(path, f"sample {index} has {size} bytes for {width}x{height} pixels")
        place = Place(str(path), ptr, size, f"ppm:{width}x{height}" if raw else "")
        key = f"{text_of(path.name)}/{index:0{digits}}"
        inside = f"{safe_part(class_name)}/{stem}/{index:0{digits}}"
        sources.append(found(key, split, class_name, inside, place))
    return sources


def _read(path: Path) -> tuple[NDArray[np.void], NDArray[np.int64], NDArray[np.uint64]]:
    """(image metadata, label, bytes) of each sample. Raises ToolError for anything damaged."""
    import numpy as np

    header_type, field_type = np.dtype(_HEADER, align=True), np.dtype(_FIELD, align=True)
    try:
        with open(path, "rb", opener=_open_at_once) as f:
            size = os.fstat(f.fileno()).st_size
            header = np.frombuffer(f.read(header_type.itemsize), header_type)[0]
            count = int(header["samples"])
            if header["version"] != 2 or not 1 <= header["fields"] <= 64 or not 0 < count < size:
                raise ValueError("is no beton of FFCV's format 2")
            fields = np.frombuffer(f.read(int(header["fields"]) * field_type.itemsize), field_type)
            types = [int(number) for number in fields["type"]]
            if types.count(_PIXELS) != 1 or types.count(_INTEGER) != 1:
                raise ValueError("has not exactly one image and one integer label a sample")
            # The fields of an image are not aligned, those of a row are.
            kinds = [("", np.dtype(_KINDS[number])) for number in types]
            row_type = np.dtype(kinds, align=True)
            rows = np.frombuffer(f.read(count * row_type.itemsize), row_type)
            f.seek(int(header["table"]))
            table = np.frombuffer(f.read(), np.dtype(_TABLE))
        image = rows[f"f{types.index(_PIXELS)}"]
        order = np.argsort(table["ptr"], kind="stable")
        at = np.searchsorted(table["ptr"], image["ptr"], sorter=order)
        sizes = table["size"][order[np.minimum(at, len(table) - 1)]]
        same = table["ptr"][order[np.minimum(at, len(table) - 1)]] == image["ptr"]
        if len(rows) != count or not same.all() or (image["ptr"] + sizes > size).any():
            raise ValueError("its samples and their table do not fit")
    except (OSError, ValueError, LookupError, OverflowError) as error:
        raise _damaged(path, str(error)) from None
    return image, rows[f"f{types.index(_INTEGER)}"], sizes


def _open_at_once(file: str, flags: int) -> int:
    """Opens without waiting for the other end of a pipe."""
    return os.open(file, flags | os.O_NONBLOCK)


def _damaged(path: Path, reason: str) -> ToolError:
    return ToolError("source.beton_damaged", f"{path}: {reason}; make or fetch it again")
