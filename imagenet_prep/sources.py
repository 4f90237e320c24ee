"""A folder of raw pictures -> its classes and samples, in an order that never changes.

``src/<class>/...`` is one split named train; ``src/train/<class>/...`` with ``val`` and
``test`` beside it are splits; a flat folder of pictures is one class named after it.
No picture is opened here: whether a file is one shows when it is decoded.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imagenet_prep.artifacts import CROP_SUFFIX, Classes, ToolError, UsageError
from imagenet_prep.places import Place

_SPLIT_OF = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_JUNK_NAMES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db"})
_JUNK_FOLDERS = frozenset({"__macosx", "__pycache__", "@eadir"})
_NOT_PICTURES_TEXT = """
    .csv .tsv .txt .json .jsonl .md .rst .xml .yaml .yml .toml .ini .cfg .log .html .htm .css .js
    .py .ipynb .sh .m .mat .npz .npy .pkl .pt .pth .h5 .hdf5 .parquet .sqlite .db .doc .docx .pdf
    .xls .xlsx .zip .tar .gz .tgz .bz2 .xz .7z .rar .mp4 .avi .mov .mp3 .wav .beton
    .part .crdownload .tmp .lock .sha256 .md5
"""
_PICTURES_TEXT = """
    .jpg .jpeg .jpe .jfif .mpo .png .apng .gif .webp .avif .tif .tiff .bmp .dib .ppm .pgm .pbm
    .pnm .jp2 .j2k .jpx .ico .pcx .heic .heif .jxl
"""
_NOT_PICTURES = frozenset(_NOT_PICTURES_TEXT.split())
_PICTURES = frozenset(_PICTURES_TEXT.split())


@dataclass(frozen=True, slots=True)
class Source:
    """One raw picture: ``key`` relative to the source, ``crop`` relative to the destination."""

    key: str
    split: str
    label: int
    place: Place
    crop: str


@dataclass(frozen=True)
class Collection:
    """The classes of a raw collection and its pictures, sorted by key."""

    classes: Classes
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """A file that may be a picture; ``inside`` is its path below its split, in parts."""

    key: str
    split: str
    class_name: str
    inside: str
    path: Path


LAYOUTS = ("folders",)


def scan(src: Path, *, layout: str | None = None, classes: Path | None = None) -> Collection:
    """A folder of raw pictures -> its classes and sources.

    Hidden files and files that plainly are no pictures are left out; every other file,
    whatever its suffix, is a source. Labels are the positions in the sorted names of the
    training classes. Raises UsageError or ToolError with one sentence for a missing
    path, a file, a folder without pictures, and layouts that give a picture no class.
    """
    if not src.exists():
        raise UsageError(f"{src}: no such folder; name the folder that holds the raw pictures")
    if not src.is_dir():
        raise UsageError(f"{src}: is a file; name the folder that holds the raw pictures")
    found: list[_Found] = []
    for split, folder, prefix in _splits(src):
        found.extend(_walk_split(src, split, folder, prefix))
    if not found:
        raise ToolError(f"{src}: holds no pictures; put them into class folders below it")
    labels = _labels(src, found)
    found.sort(key=lambda item: item.key)
    crops = _crop_names(found)
    sources = tuple(
        Source(item.key, item.split, labels[item.class_name], Place(str(item.path)), crop)
        for item, crop in zip(found, crops, strict=True)
    )
    return Collection(Classes(tuple(labels), {}), sources)


def _splits(src: Path) -> list[tuple[str, Path, str]]:
    """(split, its folder, the prefix of its keys) of each split of ``src``."""
    folders = [entry.name for entry in _entries(src) if entry.is_dir()]
    named = [name for name in folders if name.lower() in _SPLIT_OF]
    # Among other class folders "train" is a class (a railway), unless classes lie in it.
    deep = any(
        _SPLIT_OF[name.lower()] == "train" and any(e.is_dir() for e in _entries(src / name))
        for name in named
    )
    if not named or (len(named) < len(folders) and not deep):
        return [("train", src, "")]
    taken: dict[str, str] = {}
    for name in named:
        other = taken.setdefault(_SPLIT_OF[name.lower()], name)
        if other != name:
            raise ToolError(
                f"{src}: the folders {other} and {name} both mean the split "
                f"{_SPLIT_OF[name.lower()]}; merge them or move one away"
            )
    return [(split, src / name, f"{_text(name)}/") for split, name in taken.items()]


def _walk_split(src: Path, split: str, folder: Path, prefix: str) -> Iterator[_Found]:
    """The files of one split. Without class folders they are one class, named after ``src``."""
    entries = _entries(folder)
    loose = [entry for entry in entries if _may_be_picture(entry)]
    empty = True
    for entry in entries:
        if not entry.is_dir():
            continue
        class_name = _text(entry.name)
        for path, inside in _walk(entry.path, f"{class_name}/", (_identity(folder),)):
            if empty and loose:
                _refuse_loose(folder, loose)
            empty = False
            yield _Found(prefix + inside, split, class_name, inside, path)
    if not empty:
        return
    class_name = _text(src.resolve().name) or "pictures"
    for entry in loose:
        name = _text(entry.name)
        yield _Found(prefix + name, split, class_name, f"{class_name}/{name}", Path(entry.path))


def _refuse_loose(folder: Path, loose: list[os.DirEntry[str]]) -> None:
    """Raises for a picture that lies beside class folders; other strays are passed over."""
    for entry in loose:
        if _suffix(entry.name) in _PICTURES:
            raise ToolError(
                f"{_text(entry.path)}: lies beside the class folders of {folder.name} and so "
                "has no class; move it into one of them"
            )


def _walk(
    folder: str, prefix: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[Path, str]]:
    """(path, ``prefix`` + path below ``folder``) of every file that may be a picture.

    Links are followed, except to a folder that they lie in: that would never end.
    """
    identity = _identity(folder)
    if identity in above:
        return
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{_text(entry.name)}/", (*above, identity))
        elif _may_be_picture(entry):
            yield Path(entry.path), prefix + _text(entry.name)


def _identity(folder: str | Path) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What is in ``folder``, sorted, without what is hidden or left by other programs."""
    try:
        with os.scandir(folder) as entries:
            kept = [
                entry
                for entry in entries
                if not entry.name.startswith(".") and entry.name.lower() not in _JUNK_FOLDERS
            ]
    except OSError as error:
        raise ToolError(f"{folder}: cannot be listed ({error.strerror})") from None
    return sorted(kept, key=lambda entry: entry.name)


def _may_be_picture(entry: os.DirEntry[str]) -> bool:
    """Whether to try it: a file, or a link to nothing (which then fails with its reason)."""
    if entry.name.lower() in _JUNK_NAMES:
        return False
    if _suffix(entry.name) in _NOT_PICTURES:
        return False
    return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())


def _suffix(name: str) -> str:
    """``a.b.JPG`` -> ``.jpg``; not through Path, which costs seconds for a million names."""
    stem, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() if stem else ""


def _without_suffix(inside: str) -> str:
    """``cat/a.b.jpg`` -> ``cat/a.b``."""
    stem, _, suffix = inside.rpartition(".")
    return inside if "/" in suffix or not stem or stem.endswith("/") else stem


def _text(name: str) -> str:
    """A file name as text that UTF-8 can hold: foreign bytes become ``\\xNN``."""
    if name.isascii():
        return name
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _labels(src: Path, found: list[_Found]) -> dict[str, int]:
    """Class name -> label: the classes of train, or of all splits where there is no train."""
    by_split: dict[str, set[str]] = {}
    for item in found:
        by_split.setdefault(item.split, set()).add(item.class_name)
    known = by_split.get("train") or set().union(*by_split.values())
    for split, names in sorted(by_split.items()):
        foreign = sorted(names - known)
        if foreign:
            raise ToolError(
                f"{src}: the split {split} has the class {foreign[0]}, which train does not "
                f"have; the splits need the same class folders"
            )
    return {name: label for label, name in enumerate(sorted(known))}


def _crop_names(found: list[_Found]) -> list[str]:
    """The crop of each file: its path with another suffix, or after its whole name.

    The whole name is kept where two files would share a crop, also on a disk that does
    not tell upper case from lower. That can meet a third file (``a.jpg``, ``a.png`` and
    ``a.jpg.png``), so it is repeated until nothing changes.
    """
    short = [f"{item.split}/{_without_suffix(item.inside)}{CROP_SUFFIX}" for item in found]
    names = list(short)
    while True:
        counts = Counter(name.lower() for name in names)
        if len(counts) == len(names):
            return names
        changed = False
        for index, item in enumerate(found):
            if counts[names[index].lower()] > 1 and names[index] is short[index]:
                names[index] = f"{item.split}/{item.inside}{CROP_SUFFIX}"
                changed = True
        if not changed:
            return names
