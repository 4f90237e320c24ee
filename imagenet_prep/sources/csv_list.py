"""A CSV or TSV file of path and label -> its classes and images.

Paths are relative to the file, or URLs. A first line that names its columns is understood: one of
path, file, filename, image ... for the image, label, class, category ... for its class,
split, set, subset for the split. Without such a line the columns are path, label and, where
the first line has one, the split. A image that is not there fails when it is read.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.core.redact import shown
from imagenet_prep.sources.names import SPLIT_OF, safe_part
from imagenet_prep.sources.source import Finding, Source, found, in_memory
from imagenet_prep.storage.byte_range import Place
from imagenet_prep.storage.location import Location, Url, location_of
from imagenet_prep.storage.urls import below, is_url, split_url

_PATH_TEXT = "path file filename filepath file_path file_name image image_path image_name img name"
_LABEL_TEXT = "label class class_name classname category target wnid synset label_name"
_NUMBERS = frozenset({"image_id", "id"})  # paths where no other column is
_COLUMNS = (
    frozenset(_PATH_TEXT.split()),
    frozenset(_LABEL_TEXT.split()),
    frozenset({"split", "set", "subset", "fold", "partition"}),
)


_MAX_HEAD = 1 << 16
_ODD = re.compile(r"[^\w./=&,+@ -]+")  # what not every disk allows in a name


class _Columns(NamedTuple):
    """Where in a row the path, the label and the split are; None: there are no splits."""

    path: int
    label: int
    split: int | None


def is_csv(src: Location) -> bool:
    """Whether ``src`` is a file named ``.csv``."""
    return src.suffix.lower() == ".csv" and src.is_file()


def is_tsv(src: Location) -> bool:
    """Whether ``src`` is a file named ``.tsv`` or ``.tab``."""
    return src.suffix.lower() in (".tsv", ".tab") and src.is_file()


def find_csv(src: Location) -> Finding:
    """A list between commas (or semicolons, as some spreadsheets write) -> its images."""
    return _find(src, "")


def find_tsv(src: Location) -> Finding:
    """A list between tabs -> its images."""
    return _find(src, "\t")


def _find(src: Location, delimiter: str) -> Finding:
    """Raises UsageError or ToolError naming the line that is wrong."""
    if not src.is_file():
        raise UsageError(
            "source.missing", f"{src}: is no file; name the file that lists its images"
        )
    folder: str | Url = src.parent if isinstance(src, Url) else str(src.parent)
    urls = 0
    sources: list[Source] = []
    lines: dict[str, int] = {}
    interned: dict[str, str] = {}
    columns: _Columns | None = None
    for line, row in _rows(src, delimiter):
        if columns is None:
            columns, names_them = _columns(src, row)
            if names_them:
                continue
        path, label, split = _cells(src, line, row, columns)
        label = interned.setdefault(label, label)
        key = _key(path)
        urls += "://" in path and is_url(path)
        earlier = lines.setdefault(key, line)
        if earlier != line:
            secret = ", or they differ in a secret (***) only" if is_url(path) else ""
            raise ToolError(
                "list.duplicate",
                f"{src}: line {line} lists {shown(path)} again, which line {earlier} has{secret}; "
                "remove one, or name the images by other addresses",
            )
        inside = f"{safe_part(label)}/{_safe_path(key)}"
        sources.append(found(key, split, label, inside, _place(folder, path)))
    if not sources:
        raise ToolError(
            "source.empty", f"{src}: lists no images; write a path and a class on each line"
        )
    finding = in_memory(sources)
    finding.unasked = bool(urls) or isinstance(src, Url)
    return finding


def _place(folder: str | Url, path: str) -> Place:
    """Where the image is that a row names: by its own URL, or relative to the list."""
    if "://" in path and is_url(path):
        where = location_of(path)
        return Place(path if isinstance(where, Url) else str(where))
    if isinstance(folder, Url):
        return Place(below(folder.full, path))
    return Place(os.path.join(folder, path))  # noqa: PTH118 - a million of them


def _rows(src: Location, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its line, cells) of every row that is not empty, one after the other."""
    line = 0
    try:
        with src.open(encoding="utf-8-sig", newline="") as file:
            if not delimiter:
                head = file.readline(_MAX_HEAD)
                delimiter = max(",;\t", key=head.count)
                file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for row in reader:
                line = reader.line_num
                if any(cell.strip() for cell in row):
                    yield line, row
    except csv.Error as error:
        raise ToolError(
            "list.row", f"{src}: line {line + 1} cannot be read ({error}); correct it"
        ) from None
    except UnicodeDecodeError:
        raise ToolError("list.encoding", f"{src}: is not text in UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise ToolError("source.unreadable", f"{src}: cannot be read ({error.strerror})") from None


def _columns(src: Location, row: list[str]) -> tuple[_Columns, bool]:
    """The first row -> the columns, and whether it is a row that names them."""
    head = [cell.strip().lower() for cell in row]
    path, label, split = (
        next((at for at, cell in enumerate(head) if cell in known), None) for known in _COLUMNS
    )
    if path is None:
        path = next((at for at, cell in enumerate(head) if cell in _NUMBERS), None)
    if path is not None and label is not None:
        return _Columns(path, label, split), True
    if path is not None or label is not None:
        has, lacks = ("path", "class") if label is None else ("class", "path")
        raise ToolError(
            "list.header",
            f"{src}: its first row names a column of each image's {has} and none of its {lacks}; "
            f"call that {'path' if lacks == 'path' else 'label'}, or leave the row out",
        )
    return _Columns(0, 1, 2 if len(head) > 2 and head[2] in SPLIT_OF else None), False


def _cells(src: Location, line: int, row: list[str], columns: _Columns) -> tuple[str, str, str]:
    """The path, the class and the split of a row."""
    if len(row) <= max(columns.path, columns.label, columns.split or 0):
        raise ToolError(
            "list.row", f"{src}: line {line} has {len(row)} columns; write a path and a class"
        )
    path, label = row[columns.path].strip(), row[columns.label].strip()
    if "\0" in path or "\0" in label:
        raise ToolError(
            "list.row", f"{src}: line {line} has a zero byte, so it is no text; save it as UTF-8"
        )
    if not path or not label:
        raise ToolError(
            "list.row", f"{src}: line {line} lacks {'a class' if path else 'a path'}; add it"
        )
    if columns.split is None:
        return path, label, "train"
    split = row[columns.split].strip().lower()
    if split not in SPLIT_OF:
        raise ToolError(
            "list.split",
            f"{src}: line {line} has the split {split or '(none)'}; it can be train, val or test",
        )
    return path, label, SPLIT_OF[split]


def _key(path: str) -> str:
    """The path as the list has it, without detours that lead nowhere (``./a//b``).

    A URL without its secrets: what is left is the same when it is signed again.
    """
    if "://" in path and is_url(path):
        return shown(path)
    if "//" not in path and "./" not in path:
        return path
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return ("/" if path.startswith("/") else "") + "/".join(parts)


def _safe_path(key: str) -> str:
    """A path -> one that stays below the folder it is put into; often the path itself."""
    if "://" in key and is_url(key):
        _, path, tail = split_url(key)
        key = _ODD.sub("_", f"{path}{tail}")
    if ".." not in key and not key.startswith("/") and key.isprintable() and len(key) < 100:
        return key
    return "/".join(safe_part(part) for part in key.split("/") if part not in ("", "..", "."))
