"""Data sets of Hugging Face: Parquet shards, and the Arrow folders of ``save_to_disk``.

The column of images is the one of the type ``Image`` in the schema, else ``image``, ``img``,
``jpg`` or ``png``: structs with ``bytes``, or the bytes themselves. The column of classes is
the one of the type ``ClassLabel``, whose names come from the schema, else ``label``, ``labels``,
``cls``, ``class`` or ``target``. A split is a word in the name of a file or its folder.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from imagenet_prep.containers import imagenet
from imagenet_prep.containers.names import (
    entries_of,
    is_folder,
    safe_part,
    split_in,
    split_of,
    text_of,
)
from imagenet_prep.containers.source import Finding, Source, found
from imagenet_prep.core.errors import ToolError
from imagenet_prep.storage.byte_range import Place
from imagenet_prep.storage.location import Location, Url
from imagenet_prep.storage.streams import STREAM_TABLE, arrow, open_arrow

_SUFFIXES = (".parquet", ".arrow")
_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")
_LABELS = ("label", "labels", "cls", "class", "target", "fine_label")
_MOST_UNLIKE = 20  # names of ImageNet's classes that may be written in another way


class _Columns(NamedTuple):
    """The columns of a file; ``names`` are those of its classes, None: the values are names.

    ``image`` has a dot before ``bytes`` where the images are structs.
    """

    image: str
    label: str
    names: tuple[str, ...] | None


def is_huggingface(src: Location) -> bool:
    """Whether ``src`` is a Parquet or Arrow file, or a folder of some."""
    if not src.is_dir():
        return src.name.endswith(_SUFFIXES)
    return bool(_files(src))


def find_huggingface(src: Location) -> Finding | None:
    """The files of a set -> its images; None: there are none.

    Raises ToolError for damaged files, and for columns that leave it open which class an image
    has.
    """
    files = _files(src) if src.is_dir() else [(src.name, src)]
    if not files or isinstance(src, Url):
        return None
    finding = Finding((), {})
    names: tuple[str, ...] | None = None
    groups: list[tuple[str, str, Path, _Columns, list[str]]] = []
    for name, path in files:
        # data/train-00000-of-00294.parquet -> train; train where no word tells a split
        words = [w for part in reversed(name.lower().split("/")) for w in re.split(r"\W+", part)]
        split, (columns, labels) = split_in(words), _labels(Path(str(path)))
        if groups and columns.names != names:
            raise ToolError(
                "parquet.classes", f"{path}: names other classes than {files[0][1]}; keep one set"
            )
        names = columns.names
        if not any(labels):
            finding.notices.append(f"{name}: left out, its images have no classes")
            continue
        groups.append((name, split, Path(str(path)), columns, labels))
    classes: dict[str, set[str]] = {}
    for _, split, _, _, labels in groups:
        classes.setdefault(split, set()).update(filter(None, labels))
    finding.classes = classes
    finding.order = names
    if names == tuple(imagenet.names()):
        finding.readable = imagenet.names()
    finding.groups = (_group(finding, *group) for group in groups)
    return finding


def _files(src: Location, depth: int = 2) -> list[tuple[str, Location]]:
    """(name below ``src``, where it is) of the Parquet and Arrow files."""
    entries = entries_of(src)
    files = [(text_of(e.name), src / e.name) for e in entries
             if e.name.endswith(_SUFFIXES) and e.is_file() and e.name[:6] != "cache-"]  # fmt: skip
    if not files and depth:
        for entry in entries:
            if (split_of(entry.name) or entry.name in ("data", "default")) and is_folder(entry):
                below = _files(src / entry.name, depth - 1)
                files += [(f"{text_of(entry.name)}/{name}", path) for name, path in below]
    return files


def _columns(path: Path, schema: Any) -> _Columns:
    """The columns of images and classes of a schema."""
    kinds: dict[str, Any] = {}
    try:
        text = (schema.metadata or {}).get(b"huggingface", b"{}")
        kinds = json.loads(text).get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        kinds = {}
    typed = {name: kind for name, kind in kinds.items() if isinstance(kind, dict)}
    images = [name for name, kind in typed.items() if kind.get("_type") == "Image"]
    image = _one(path, "images", images, _IMAGES, schema.names)
    labels = [name for name, kind in typed.items() if kind.get("_type") == "ClassLabel"]
    label = _one(path, "classes", labels, _LABELS, schema.names)
    names = typed.get(label, {}).get("names")
    image += ".bytes" if arrow(str(path)).types.is_struct(schema.field(image).type) else ""
    return _Columns(image, label, _classes(path, [str(name) for name in names]) if names else None)


def _one(path: Path, what: str, typed: list[str], usual: tuple[str, ...], names: list[str]) -> str:
    """The one column of images or classes. ToolError where there is none, or several."""
    named = [name for name in names if name.lower() in usual]
    for some in (typed, named):
        if len(some) == 1:
            return some[0]
        best = next((name for name in usual if name in some), "")
        if best and best == usual[0]:
            return best
    raise ToolError(
        "parquet.columns",
        f"{path}: has no one column of {what} ({', '.join(names)}); call it {usual[0]}",
    )


def _labels(path: Path) -> tuple[_Columns, list[str]]:
    """The columns of a file, and the class of each row, "" for none."""
    pa = arrow(str(path))
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            file = pyarrow.parquet.ParquetFile(path)
            columns = _columns(path, file.schema_arrow)
            values = file.read(columns=[columns.label]).column(0).to_pylist()
        else:
            table = open_arrow(str(path))
            columns = _columns(path, table.schema)
            values = table.column(columns.label).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ToolError(
            "parquet.damaged", f"{path}: cannot be read ({reason}); fetch it again"
        ) from None
    return columns, [_class_of(path, value, columns.names) for value in values]


def _class_of(path: Path, value: Any, names: tuple[str, ...] | None) -> str:
    """A value of the column of classes -> the class."""
    if value is None or value == -1:
        return ""
    if names is not None and isinstance(value, int):
        if not 0 <= value < len(names):
            raise ToolError("parquet.classes", f"{path}: has the label {value} without a name")
        return names[value]
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ToolError("parquet.columns", f"{path}: its classes are neither numbers nor text")
    return str(value)


def _classes(path: Path, names: list[str]) -> tuple[str, ...]:
    """The names of a schema; the wnids where they are those of ImageNet, in the same order."""
    known = imagenet.names()
    if len(names) == len(known):
        pairs = zip(names, known.values(), strict=True)
        alike = sum(a.split(",")[0].lower() == b.split(",")[0].lower() for a, b in pairs)
        if alike >= len(names) - _MOST_UNLIKE:
            return tuple(known)
    if len(set(names)) < len(names):
        raise ToolError("parquet.classes", f"{path}: two of its classes have the same name")
    return tuple(names)


def _group(
    finding: Finding, name: str, split: str, path: Path, columns: _Columns, labels: list[str],
) -> list[Source]:  # fmt: skip
    """The images of one file."""
    form = f"{STREAM_TABLE}:{columns.image}"
    digits = len(str(max(len(labels) - 1, 0)))
    stem = safe_part(name.rpartition(".")[0].replace("/", "-"))
    group = []
    for row, class_name in enumerate(labels):
        if class_name:
            inside = f"{safe_part(class_name)}/{stem}/{row:0{digits}}"
            place = Place(str(path), row, 0, form)
            group.append(found(f"{name}/{row:0{digits}}", split, class_name, inside, place))
    if len(group) < len(labels):
        finding.notices.append(f"{name}: {len(labels) - len(group)} images left out without class")
    return group
