"""A list of images and classes -> its images: CSV, TSV, ``path label`` text, MXNet's ``.lst``.

Paths are relative to the list, or URLs; one without a suffix is an id, which stands for the
one file below the list's folder that is called so. A first line that names its columns is
understood where it has usual names, or where the column of paths is plain from the lines below.
Without one the columns are path, label and, where the first line has one, the split. An
``.lst`` has an index, a label and a path. An image that is not there fails when it is read.
"""

from __future__ import annotations

import csv
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from imagenet_prep.containers.names import IMAGES, SPLIT_OF, safe_part, split_of, suffix_of, text_of
from imagenet_prep.containers.source import Finding, Source, found, in_memory
from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.core.redact import shown
from imagenet_prep.storage.byte_range import Place
from imagenet_prep.storage.location import Location, Url, location_of
from imagenet_prep.storage.urls import below, is_url, split_url

_PATH_TEXT = "path file filename filepath file_path file_name image image_path image_name img name"
_LABEL_TEXT = "label class class_name classname category target wnid synset label_name"
_SPLIT_TEXT = "split set subset fold partition"
_PATHS, _LABELS, _SPLITS = map(
    frozenset, (t.split() for t in (_PATH_TEXT, _LABEL_TEXT, _SPLIT_TEXT))
)
_IDS = frozenset({"image_id", "id", "imageid", "img_id"})  # paths where no other column is
LISTS = {
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "text": (".txt", ".list"),
    "lst": (".lst",),
}
"""The kinds of lists, and how the names of their files end."""
_MAX_HEAD = 1 << 16
_LOOKED_AT = 20
_ODD = re.compile(r"[^\w./=&,+@ -]+")  # what not every disk allows in a name
_Rows = Iterator[tuple[int, list[str]]]


class _Columns(NamedTuple):
    """Where in a row the path, the label and the split are; None: there are no splits."""

    path: int
    label: int
    split: int | None


def is_list(src: Location, kind: str) -> bool:
    """Whether ``src`` is a file named as a list of this kind."""
    return src.suffix.lower() in LISTS[kind] and src.is_file()


def find_list(src: Location, kind: str) -> Finding:
    """A list of this kind -> its images.

    Raises UsageError or ToolError, naming the line that is wrong.
    """
    if not src.is_file():
        raise UsageError("source.missing", f"{src}: is not a file; give the list of the images")
    rows = _rows(src, kind)
    head = list(itertools.islice(rows, _LOOKED_AT))
    if not head:
        raise ToolError("source.empty", f"{src}: lists no images; write a path and a class a line")
    columns, has_names = _columns(src, kind, [row for _, row in head])
    paths = _Paths(src)
    if not has_names and paths.is_unknown(head[0][1][columns.path]):
        raise ToolError(
            "list.header",
            f"{src}: its first row is neither an image nor known names of columns; call them "
            "path and label",
        )
    urls = isinstance(src, Url)
    sources: list[Source] = []
    lines: dict[str, int] = {}
    named: dict[str, str] = {}
    default = split_of(src.name.partition(".")[0]) or "train"
    for line, row in itertools.chain(head[has_names:], rows):
        path, label, split = _cells(src, line, row, columns, default)
        label = named.setdefault(label, label)
        path = paths.resolved(line, path)
        key = _key(path)
        urls = urls or ("://" in path and is_url(path))
        earlier = lines.setdefault(key, line)
        if earlier != line:
            secret = ", or they differ in a secret (***) only" if is_url(path) else ""
            raise ToolError(
                "list.duplicate",
                f"{src}: line {line} lists {shown(path)} again, which line {earlier} has{secret}; "
                "remove one, or name the images by other addresses",
            )
        sources.append(
            found(key, split, label, f"{safe_part(label)}/{_safe_path(key)}", paths.place(path))
        )
    if not sources:
        raise ToolError("source.empty", f"{src}: lists no images; write a path and a class a line")
    finding = in_memory(sources)
    finding.unasked = urls
    names = finding.classes.get("train") or set().union(*finding.classes.values())
    if all(name.isascii() and name.isdigit() for name in names):
        finding.order = sorted(names, key=lambda name: (int(name), name))
    return finding


def _rows(src: Location, kind: str) -> _Rows:
    """(number of its line, cells) of every row that is not empty, one after the other."""
    line = 0
    try:
        with src.open(encoding="utf-8-sig", newline="") as file:
            if kind == "text":
                for line, text in enumerate(file, 1):
                    if text.strip():
                        yield line, [cell.strip() for cell in _text_cells(text)]
                return
            delimiter = "" if kind == "csv" else "\t"
            if not delimiter:
                head = file.readline(_MAX_HEAD)
                delimiter = max(",;\t", key=head.count)
                file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for row in reader:
                line = reader.line_num
                if any(cell.strip() for cell in row):
                    yield line, [cell.strip() for cell in row]
    except csv.Error as error:
        raise ToolError(
            "list.row", f"{src}: line {line + 1} cannot be read ({error}); correct it"
        ) from None
    except UnicodeDecodeError:
        raise ToolError("list.encoding", f"{src}: is not text in UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise ToolError("source.unreadable", f"{src}: cannot be read ({error.strerror})") from None


def _text_cells(line: str) -> list[str]:
    """``a b.jpg 3`` -> path and label; the separator is a tab, a comma or the last space."""
    text = line.strip()
    for separator in "\t,":
        if separator in text:
            return text.split(separator)
    return text.rsplit(None, 1)


def _columns(src: Location, kind: str, rows: list[list[str]]) -> tuple[_Columns, bool]:
    """The first rows -> the columns, and whether the first row names them."""
    if kind == "lst":
        last = max(map(len, rows)) - 1
        if last < 2:
            raise ToolError("list.row", f"{src}: has no index, label and path on each line")
        return _Columns(last, 1, None), False
    head = [cell.lower() for cell in rows[0]]
    if _is_image(head[0]) or (len(head) == 2 and _is_image(head[1])):
        at = 0 if _is_image(head[0]) else 1
        return _Columns(at, 1 - at, 2 if len(head) > 2 and head[2] in SPLIT_OF else None), False
    path, label, split = (
        next((at for at, cell in enumerate(head) if cell in known), None)
        for known in (_PATHS, _LABELS, _SPLITS)
    )
    if path is None:
        path = next((at for at, cell in enumerate(head) if cell in _IDS), None)
    body = [row for row in rows[1:] if len(row) == len(head)]
    looks = [at for at in range(len(head)) if body and all(_is_image(row[at]) for row in body)]
    if path is None and len(looks) == 1 and not _is_image(rows[0][looks[0]]):
        path = looks[0]  # a header of other names, above a column of file names
    if path is not None and label is not None:
        return _Columns(path, label, split), True
    rest = [at for at in range(len(head)) if at not in (path, split)]
    names_them = path is not None or label is not None
    if path is not None and label is None and len(rest) == 1:
        return _Columns(path, rest[0], split), True
    if path is None and label is not None and len(head) == 2:
        path = 1 - label
        if body and all(_is_image(row[path]) for row in body):
            return _Columns(path, label, None), True
    if names_them:
        lacks = "path" if path is None else "class"
        raise ToolError(
            "list.header",
            f"{src}: its first row names columns, but none is plainly each image's {lacks}; "
            f"call that {'path' if lacks == 'path' else 'label'}",
        )
    return _Columns(0, 1, 2 if len(head) > 2 and head[2] in SPLIT_OF else None), False


def _is_image(cell: str) -> bool:
    return suffix_of(cell.rpartition("/")[2].partition("?")[0]) in IMAGES


def _cells(
    src: Location, line: int, row: list[str], columns: _Columns, default: str
) -> tuple[str, str, str]:
    """The path, the class and the split of a row."""
    if len(row) <= max(columns.path, columns.label, columns.split or 0):
        raise _bad_row(src, line, f"has {len(row)} columns; write a path and a class")
    path, label = row[columns.path], row[columns.label]
    if "\0" in path or "\0" in label:
        raise _bad_row(src, line, "has a zero byte, so it is no text; save it as UTF-8")
    if not path or not label:
        raise _bad_row(src, line, f"lacks {'a class' if path else 'a path'}; add it")
    if columns.split is None:
        return path, _as_label(label), default
    split = row[columns.split].lower()
    if split not in SPLIT_OF:
        raise ToolError(
            "list.split",
            f"{src}: line {line} has the split {split or '(none)'}; it can be train, val or test",
        )
    return path, _as_label(label), SPLIT_OF[split]


def _as_label(label: str) -> str:
    """``3.000000``, as MXNet writes numbers -> ``3``."""
    whole, _, fraction = label.partition(".")
    return whole if fraction and whole.isdecimal() and not fraction.strip("0") else label


def _bad_row(src: Location, line: int, what: str) -> ToolError:
    return ToolError("list.row", f"{src}: line {line} {what}")


class _Paths:
    """Where the images are that a list names."""

    def __init__(self, src: Location) -> None:
        self._src = src
        self._folder: str | Url = src.parent if isinstance(src, Url) else str(src.parent)
        self._below: dict[str, list[str]] | None = None

    def is_unknown(self, path: str) -> bool:
        """Whether it is neither named like an image nor the path or id of one that is there."""
        if isinstance(self._folder, Url) or "://" in path or _is_image(path):
            return False
        resolved = self.resolved(1, path)
        return not os.path.lexists(os.path.join(self._folder, resolved))  # noqa: PTH118

    def resolved(self, line: int, path: str) -> str:
        """The path itself, or that of the one file that an id stands for."""
        if isinstance(self._folder, Url) or "://" in path or _is_image(path):
            return path
        if os.path.lexists(os.path.join(self._folder, path)):  # noqa: PTH118
            return path
        if self._below is None:
            self._below = self._index()
        fitting = self._below.get(path, [])
        if len(fitting) > 1:
            raise ToolError(
                "list.ambiguous",
                f"{self._src}: line {line}: {path} can be {fitting[0]} or {fitting[1]}; write the "
                "paths with their suffixes",
            )
        return fitting[0] if fitting else path

    def _index(self) -> dict[str, list[str]]:
        """Path without suffix, and name without suffix -> the image files below the folder."""
        found: dict[str, list[str]] = defaultdict(list)
        for top, folders, names in os.walk(str(self._folder)):
            folders.sort()
            for name in sorted(names):
                if suffix_of(name) in IMAGES:
                    full = os.path.relpath(os.path.join(top, name), str(self._folder))  # noqa: PTH118
                    stem = full[: -len(suffix_of(name))]
                    for known in {text_of(stem), text_of(stem).rpartition("/")[2]}:
                        found[known].append(text_of(full))
        return found

    def place(self, path: str) -> Place:
        """By its own URL, or relative to the list."""
        if "://" in path and is_url(path):
            where = location_of(path)
            return Place(path if isinstance(where, Url) else str(where))
        if isinstance(self._folder, Url):
            return Place(below(self._folder.full, path))
        return Place(os.path.join(self._folder, path))  # noqa: PTH118 - a million of them


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
