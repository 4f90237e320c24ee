"""What the layouts share: names of splits, safe names, what may be an image."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from imagenet_prep.core.errors import ToolError
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
Given = Mapping[str, str]
"""``--split``: a folder's path below the source -> train, val, test, or class (no split)."""

# What other sets add to the name of a split: training_set, seg_train, train.X1, test1 ...
_AROUND_SPLIT = re.compile(
    r"(?:(?:seg|images?|imgs?|data|dataset|ilsvrc|imagenet|the)[^a-z]*)*"
    rf"(?P<split>{'|'.join(sorted(SPLIT_OF, key=len, reverse=True))})"
    r"(?:[^a-z]*(?:sets?|split|images?|imgs?|data|folder|files|part|x))*[^a-z]*"
)
_JUNK_NAMES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db"})
_JUNK_FOLDERS = frozenset(
    {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "#recycle", "@recycle", "recycler"}
    | {"recycled", "lost+found", "system volume information", "thumbnails", "thumbs"}
)
_NOT_IMAGES_TEXT = """
    .csv .tsv .txt .json .jsonl .md .rst .xml .yaml .yml .toml .ini .cfg .log .html .htm .css .js
    .py .ipynb .sh .m .mat .npz .npy .pkl .pt .pth .h5 .hdf5 .parquet .sqlite .db .doc .docx .pdf
    .xls .xlsx .zip .tar .gz .tgz .bz2 .xz .zst .7z .rar .mp4 .avi .mov .mp3 .wav .beton .lst
    .arrow .part .crdownload .tmp .lock .sha256 .md5
"""
_IMAGES_TEXT = """
    .jpg .jpeg .jpe .jfif .mpo .png .apng .gif .webp .avif .tif .tiff .bmp .dib .ppm .pgm .pbm
    .pnm .jp2 .j2k .jpx .ico .pcx .heic .heif .jxl
"""
_NOT_IMAGES = frozenset(_NOT_IMAGES_TEXT.split())
IMAGES = frozenset(_IMAGES_TEXT.split())
_LONGEST_PART_BYTES = 180  # of the 255 that disks allow, so that suffixes and splits fit


def split_of(name: str) -> str:
    """The split that a folder's name stands for, also ``training_set``; "" for other names."""
    match = _AROUND_SPLIT.fullmatch(name.lower())
    return SPLIT_OF[match["split"]] if match else ""


def split_in(words: Iterable[str]) -> str:
    """The split that the first of the words tells that tells one; train where none does."""
    return next((SPLIT_OF[word] for word in words if word in SPLIT_OF), "train")


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
            "source.unreadable",
            f"{folder}: cannot be listed ({error.strerror}); allow it or take it out of the source",
        ) from None


def _kept(entries: Iterable[Entry]) -> list[Entry]:
    kept = [
        entry
        for entry in entries
        if not entry.name.startswith(".") and entry.name.lower() not in _JUNK_FOLDERS
    ]
    return sorted(kept, key=lambda entry: entry.name)


def is_worth_trying(name: str) -> bool:
    """Whether a file of this name may be an image: not hidden, not plainly something else."""
    if name[:1] == ".":
        return False
    suffix = suffix_of(name)
    return suffix in IMAGES or not (suffix in _NOT_IMAGES or name.lower() in _JUNK_NAMES)


def may_be_image(entry: Entry) -> bool:
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


def read_text(path: Location, what: str) -> str:
    """A small text file in UTF-8 (a mark at its start is dropped); ToolError if it is not."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ToolError(
            "list.encoding",
            f"{path}: {what} is not text in UTF-8 (byte {error.start}); save it as UTF-8",
        ) from None
    except OSError as error:
        raise ToolError(
            "source.unreadable", f"{path}: {what} cannot be read ({error.strerror})"
        ) from None
