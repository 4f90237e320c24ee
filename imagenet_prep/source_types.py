"""What every layout of raw pictures becomes: its classes and sources, under safe names.

A layout finds pictures (``Found``); ``collect`` gives them labels, an order that never
changes, and crops whose names are unique on every disk and stay in the destination.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from imagenet_prep.artifacts import CROP_SUFFIX, Classes, ToolError
from imagenet_prep.places import Place

SPLIT_OF = {
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
PICTURES = frozenset(_PICTURES_TEXT.split())
_LONGEST_PART_BYTES = 180  # of the 255 that disks allow, so that suffixes and splits fit


class Source(NamedTuple):
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


class Found(NamedTuple):
    """What may be a picture; ``inside`` is its crop's path below the split, still with suffix.

    ``inside`` has safe parts only, and the first of them stands for the class.
    """

    key: str
    split: str
    class_name: str
    inside: str
    place: Place


@dataclass(frozen=True)
class Finding:
    """What a layout finds.

    ``order`` lists the classes in the order of their labels where the layout knows it;
    otherwise they are the sorted classes of train. ``readable`` may name more than that.
    """

    found: list[Found]
    readable: Mapping[str, str]
    order: tuple[str, ...] | None = None


Choice = Sequence[tuple[str, str]]
"""(class, readable name or "") in the order of the labels: what ``--classes`` asks for."""


@contextmanager
def without_collector() -> Iterator[None]:
    """No cyclic garbage collection: a million new objects would be walked again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def collect(src: Path, finding: Finding, choice: Choice | None = None) -> Collection:
    """What a layout found -> the collection, with only the classes of ``choice`` if given.

    Raises ToolError with one sentence when nothing is left, when a split has a class that
    the list of classes has not, and when two names differ only in upper and lower case.
    """
    found = finding.found
    if choice is not None:
        wanted = {name for name, _ in choice}
        found = [item for item in found if item.class_name in wanted]
    if not found:
        raise ToolError(
            f"{src}: holds no pictures where it would have them; put them into class folders "
            "below it, or say how it is organised with --layout"
        )
    labels = _labels(src, found, finding.order, choice)
    readable = {name: finding.readable[name] for name in labels if name in finding.readable}
    readable |= {name: title for name, title in choice or () if title}
    found.sort(key=lambda item: item.key)
    crops = _crop_names(src, found)
    sources = tuple(
        # An equal text is kept once: for class folders in JPEG the key is the crop's name.
        Source(item.key, item.split, labels[item.class_name], item.place, crop)
        for item, crop in zip(found, crops, strict=True)
    )
    return Collection(Classes(tuple(labels), readable), sources)


def _labels(
    src: Path, found: Iterable[Found], order: tuple[str, ...] | None, choice: Choice | None
) -> dict[str, int]:
    """Class name -> label: as chosen, as the layout says, or the sorted classes of train.

    Where there is no train they are the classes of all splits.
    """
    by_split: dict[str, set[str]] = {}
    for item in found:
        by_split.setdefault(item.split, set()).add(item.class_name)
    if choice is not None:
        names = [name for name, _ in choice]
    elif order is not None:
        names = list(order)
    else:
        names = sorted(by_split.get("train") or set().union(*by_split.values()))
    labels = {name: label for label, name in enumerate(names)}
    for split, present in sorted(by_split.items()):
        foreign = sorted(present - labels.keys())
        if foreign:
            raise ToolError(
                f"{src}: the split {split} has the class {foreign[0]}, which "
                f"{'train' if order is None else 'the list of classes'} does not have; the "
                "splits need the same classes"
            )
    lowered: dict[str, str] = {}
    for name in names:
        other = lowered.setdefault(name.lower(), name)
        if other != name:
            raise ToolError(
                f"{src}: the classes {other} and {name} differ only in upper and lower case, "
                "which not every disk can hold; rename or merge them"
            )
    return labels


def _crop_names(src: Path, found: list[Found]) -> list[str]:
    """The crop of each: its path with another suffix, or after its whole name.

    Crops can only meet within the folder of a class, so each is looked at by itself: a
    million names are never in memory a second time.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for index, item in enumerate(found):
        folder = item.inside.partition("/")[0]
        groups.setdefault((item.split, folder.lower()), []).append(index)
    crops = [""] * len(found)
    for members in groups.values():
        items = [found[index] for index in members]
        for index, crop in zip(members, _unique(src, items), strict=True):
            key = found[index].key
            crops[index] = key if crop == key else crop
    return crops


def _unique(src: Path, items: list[Found]) -> list[str]:
    """The crops of one folder. The whole name is kept where two files would share a crop.

    That can meet a third file (``a.jpg``, ``a.png`` and ``a.jpg.png``), so it is repeated
    until nothing changes. Disks that do not tell upper case from lower count too.
    """
    short = [f"{item.split}/{_without_suffix(item.inside)}{CROP_SUFFIX}" for item in items]
    names = list(short)
    while True:
        counts = Counter(name.lower() for name in names)
        if len(counts) == len(names):
            return names
        changed = False
        for index, item in enumerate(items):
            if counts[names[index].lower()] > 1 and names[index] is short[index]:
                names[index] = f"{item.split}/{item.inside}{CROP_SUFFIX}"
                changed = True
        if not changed:
            raise ToolError(_clash(src, items, names, counts))


def _clash(src: Path, items: list[Found], names: list[str], counts: Counter[str]) -> str:
    """The sentence about the first two whose crops cannot be told apart."""
    worst = next(name.lower() for name in names if counts[name.lower()] > 1)
    one, two = [i.key for i, name in zip(items, names, strict=True) if name.lower() == worst][:2]
    if one == two:
        return f"{src}: {one} is there twice; remove one of them"
    if one.lower() == two.lower():
        return (
            f"{src}: {one} and {two} differ only in upper and lower case, which not every disk "
            "can hold; rename one of them"
        )
    return f"{src}: the crops of {one} and {two} would have the same name; rename one of them"


def safe_part(text: str) -> str:
    """Any text -> one part of a path that is no other folder, not hidden and not too long."""
    plain = "".join("_" if char in "/\\" or not char.isprintable() else char for char in text)
    plain = plain.strip()
    if not plain or plain.startswith("."):
        plain = f"_{plain[1:]}"
    data = plain.encode("utf-8", "backslashreplace")
    return data[:_LONGEST_PART_BYTES].decode("utf-8", "ignore")


def text_of(name: str) -> str:
    """A file name as text that UTF-8 can hold: foreign bytes become ``\\xNN``."""
    if name.isascii():
        return name
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def suffix_of(name: str) -> str:
    """``a.b.JPG`` -> ``.jpg``; not through Path, which costs seconds for a million names."""
    stem, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() if stem else ""


def _without_suffix(inside: str) -> str:
    """``cat/a.b.jpg`` -> ``cat/a.b``."""
    stem, _, suffix = inside.rpartition(".")
    return inside if "/" in suffix or not stem or stem.endswith("/") else stem


def entries_of(folder: str | Path) -> list[os.DirEntry[str]]:
    """What is in ``folder``, sorted, without what is hidden or left by other programs."""
    try:
        with os.scandir(folder) as entries:
            kept = [
                entry
                for entry in entries
                if not entry.name.startswith(".") and entry.name.lower() not in _JUNK_FOLDERS
            ]
    except OSError as error:
        raise ToolError(
            f"{folder}: cannot be listed ({error.strerror}); allow it or take it out of the source"
        ) from None
    return sorted(kept, key=lambda entry: entry.name)


def is_worth_trying(name: str) -> bool:
    """Whether a file of this name may be a picture: not hidden, not plainly something else."""
    if name[:1] == ".":
        return False
    suffix = suffix_of(name)
    return suffix in PICTURES or not (suffix in _NOT_PICTURES or name.lower() in _JUNK_NAMES)


def may_be_picture(entry: os.DirEntry[str]) -> bool:
    """Whether to try it: a file, or a link to nothing (which then fails with its reason)."""
    if not is_worth_trying(entry.name):
        return False
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:
        return True  # a link to itself: it fails when it is read, with the reason


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link to itself is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def place_of(archive: str, offset: int, length: int, fault: str) -> Place:
    """Where a member of an archive lies; with a fault, what fails with it when it is read."""
    return Place(archive, offset, length, f"unusable:{fault}" if fault else "")


def read_text(path: Path, what: str) -> str:
    """A small text file in UTF-8 (a mark at its start is dropped); ToolError if it is not."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ToolError(
            f"{path}: {what} is not text in UTF-8 (byte {error.start}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise ToolError(f"{path}: {what} cannot be read ({error.strerror})") from None
