"""What the layouts of raw pictures share: what they find, and names that are safe.

A layout finds pictures (``Found``); ``collection`` gives them labels, an order and crops.
"""

from __future__ import annotations

import gc
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.packed import Packed
from imagenet_prep.dataset.names import CROP_SUFFIX
from imagenet_prep.storage.byte_range import Place
from imagenet_prep.storage.location import Entry, Location, Url, location_in

SPLIT_OF = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "evaluation": "test",
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


class Found(NamedTuple):
    """What may be a picture; ``inside`` is its crop's path below the split, still with suffix.

    ``inside`` has safe parts only, and the first of them stands for the class.
    """

    key: str
    split: str
    class_name: str
    inside: str
    place: Place


class FoundList(Packed[Found]):
    """Pictures in a list for very many of them, sorted by key.

    Its rows are key, split, class, the usual name of the crop, what that leaves out of the
    picture's own, and the place. ``counts`` are the pictures by split and class.
    """

    def __init__(self, found: Iterable[Found] = ()) -> None:
        super().__init__(_plain, _found)
        self.counts: Counter[tuple[str, str]] = Counter()
        self._hashes = array("q")
        self.extend(found)

    def _add(self, row: tuple[Any, ...]) -> None:
        super()._add(row)
        self.counts[row[1:3]] += 1
        self._hashes.append(hash(row[3].lower()))

    def shared(self) -> frozenset[int]:
        """The hashes of the usual names that more than one crop would have, in lower case.

        To be asked once, when all are found.
        """
        import numpy as np

        values = np.frombuffer(self._hashes, np.int64)
        self._hashes = array("q")
        values.sort()
        return frozenset(values[1:][values[1:] == values[:-1]].tolist())


def _plain(item: Found) -> tuple[Any, ...]:
    key, split, class_name, inside, place = item
    stem, dot, suffix = inside.rpartition(".")
    if "/" in suffix or not stem or stem[-1] == "/":
        stem, dot, suffix = inside, "", ""
    crop = f"{split}/{stem}{CROP_SUFFIX}"
    # An equal text is kept once: for class folders in JPEG the key is the crop's name.
    return key, split, class_name, key if crop == key else crop, dot + suffix, *place


def _found(row: tuple[Any, ...]) -> Found:
    key, split, class_name, crop, suffix, *place = row
    inside = crop[len(split) + 1 : -len(CROP_SUFFIX)] + suffix
    return Found(key, split, class_name, inside, Place(*place))


@dataclass(frozen=True)
class Finding:
    """What a layout finds; ``found`` is read once, and a layout may still be searching then.

    ``order`` lists the classes in the order of their labels where the layout knows it;
    otherwise they are the sorted classes of train. ``readable`` may name more than that.
    ``unasked`` says that there are pictures behind URLs whose servers were not yet asked.
    """

    found: Iterable[Found]
    readable: Mapping[str, str]
    order: tuple[str, ...] | None = None
    unasked: bool = False


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


def safe_part(text: str) -> str:
    """Any text -> one part of a path that is no other folder, not hidden and not too long."""
    plain = "".join("_" if char in "/\\" or not char.isprintable() else char for char in text)
    plain = plain.strip()
    if not plain or plain.startswith("."):
        plain = f"_{plain[1:]}"
    data = plain.encode("utf-8", "backslashreplace")
    return data[:_LONGEST_PART_BYTES].decode("utf-8", "ignore")


def text_of(name: str | Url) -> str:
    """A file name as text that UTF-8 can hold: foreign bytes become ``\\xNN``."""
    if isinstance(name, Url):
        return str(name)
    if name.isascii():
        return name
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def suffix_of(name: str) -> str:
    """``a.b.JPG`` -> ``.jpg``; not through Path, which costs seconds for a million names."""
    stem, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() if stem else ""


def entries_of(folder: str | Location) -> list[Entry]:
    """What is in ``folder``, sorted, without what is hidden or left by other programs."""
    if isinstance(folder, Url):
        return _kept(folder.entries())
    try:
        with os.scandir(folder) as entries:
            return _kept(entries)
    except OSError as error:
        raise ToolError(
            f"{folder}: cannot be listed ({error.strerror}); allow it or take it out of the source"
        ) from None


def _kept(entries: Iterable[Entry]) -> list[Entry]:
    kept = [
        entry
        for entry in entries
        if not entry.name.startswith(".") and entry.name.lower() not in _JUNK_FOLDERS
    ]
    return sorted(kept, key=lambda entry: entry.name)


def is_worth_trying(name: str) -> bool:
    """Whether a file of this name may be a picture: not hidden, not plainly something else."""
    if name[:1] == ".":
        return False
    suffix = suffix_of(name)
    return suffix in PICTURES or not (suffix in _NOT_PICTURES or name.lower() in _JUNK_NAMES)


def may_be_picture(entry: Entry) -> bool:
    """Whether to try it: a file, or a link to nothing (which then fails with its reason)."""
    if not is_worth_trying(entry.name):
        return False
    try:
        return entry.is_file() or (entry.is_symlink() and not location_in(entry).exists())
    except OSError:
        return True  # a link to itself: it fails when it is read, with the reason


def is_folder(entry: Entry) -> bool:
    """Whether it is a folder or a link to one; a link to itself is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def place_of(archive: Place, offset: int, length: int, fault: str) -> Place:
    """Where a member of an archive lies; with a fault, what fails with it when it is read."""
    form = f"unusable:{fault}" if fault else ""
    return Place(archive.file, offset, length, form, archive.seen)


def read_text(path: Location, what: str) -> str:
    """A small text file in UTF-8 (a mark at its start is dropped); ToolError if it is not."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ToolError(
            f"{path}: {what} is not text in UTF-8 (byte {error.start}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise ToolError(f"{path}: {what} cannot be read ({error.strerror})") from None
