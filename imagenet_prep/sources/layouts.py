"""The layouts that raw images come in, and which of them a source is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from imagenet_prep.containers.archive import is_archive, open_archive
from imagenet_prep.containers.arrays import find_cifar, find_idx, is_cifar, is_idx
from imagenet_prep.containers.beton import find_beton, is_beton
from imagenet_prep.containers.huggingface import find_huggingface, is_huggingface
from imagenet_prep.containers.names import (
    IMAGES,
    Given,
    entries_of,
    is_folder,
    split_of,
    suffix_of,
    text_of,
)
from imagenet_prep.containers.source import Finding
from imagenet_prep.core.errors import UsageError
from imagenet_prep.sources.folders import find_flat, find_folders, is_flat, split_folders
from imagenet_prep.sources.imagenets import (
    find_ilsvrc,
    find_kaggle,
    find_tiny,
    is_ilsvrc,
    is_kaggle,
    is_tiny,
)
from imagenet_prep.sources.lists import LISTS, find_list, is_list
from imagenet_prep.sources.webdataset import find_webdataset, is_webdataset
from imagenet_prep.storage.location import Location, Url

_Recognise = Callable[[Location], bool]
_Find = Callable[[Location], Finding | None]
# The first that recognises a source is taken; class folders are what is left.
_KNOWN: dict[str, tuple[_Recognise, _Find]] = {
    "kaggle": (is_kaggle, find_kaggle),
    "ilsvrc": (is_ilsvrc, find_ilsvrc),
    "tiny": (is_tiny, find_tiny),
    "idx": (is_idx, find_idx),
    "cifar": (is_cifar, find_cifar),
    "flat": (is_flat, lambda src: find_flat(src, {})),
    "webdataset": (is_webdataset, find_webdataset),
    "beton": (is_beton, find_beton),
    "huggingface": (is_huggingface, find_huggingface),
    **{kind: (partial(is_list, kind=kind), partial(find_list, kind=kind)) for kind in LISTS},
}
_OF_FILES = {"idx", "cifar", "beton", *LISTS}
"""The layouts that are a file, or a folder with files in it: no other folder is one."""
_OF_FOLDERS = {"flat": find_flat, "folders": find_folders}
"""The layouts whose folders can be named with ``--split``."""
LAYOUTS = tuple(sorted([*_KNOWN, "archive", "folders"]))


def find(src: Location, layout: str | None, given: Given) -> tuple[str, Finding]:
    """A source -> (its layout, what is found in it). Raises UsageError or ToolError."""
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(
            "source.layout_unknown", f"{layout}: no such layout; choose from {', '.join(LAYOUTS)}"
        )
    if layout == "folders" and not src.is_dir():
        raise UsageError(
            "source.not_a_folder", f"{src}: is a file; give the folder of the class folders"
        )
    name = layout or _recognised(src)
    if name == "archive" or (not name and is_archive(src)):
        return "archive", _in_archive(src, given)
    if not name and not src.is_dir():
        slash = ", and end its URL with /" if isinstance(src, Url) and src.web else ""
        raise UsageError(
            "source.layout_unknown",
            f"{src}: is a file of an unknown layout; give the folder of the raw images{slash}, or "
            f"name the layout with --layout ({', '.join(LAYOUTS)})",
        )
    inner = _wrapped(src, given) if not name else None
    if inner is not None:
        name, finding = find(inner, None, {})
        finding.notices.insert(0, f"{src} has only the folder {text_of(inner.name)}; it is used")
        return name, finding
    name = name or "folders"
    if name in _OF_FOLDERS:
        if layout == "folders":
            return name, find_folders(src, given, trusted=True)
        return name, _OF_FOLDERS[name](src, given)
    if given:
        raise UsageError(
            "source.split_unused",
            f"--split: {src} has the layout {name}, which defines its splits; leave it out",
        )
    found = _KNOWN[name][1](src)
    if found is None:
        raise _mismatch(src, name)
    return name, found


def _mismatch(src: Location, name: str) -> UsageError:
    return UsageError(
        "source.layout_mismatch",
        f"{src}: has no files of the layout {name} (docs/data-preparation.md); leave out --layout, "
        "or give the folder of the set",
    )


def _in_archive(src: Location, given: Given) -> Finding:
    """What is found in the folders of an archive."""
    if not is_archive(src):
        raise _mismatch(src, "archive")
    name, finding = find(open_archive(src), None, given)
    if name == "folders" and not any(s for s in finding.classes.values()):
        return finding
    finding.notices.insert(0, f"{src}: has the layout {name}")
    return finding


def _recognised(src: Location) -> str:
    """The name of the layout that a source shows; "" where none does."""
    files = not src.is_dir() or any(not is_folder(entry) for entry in entries_of(src))
    possible = ((n, known[0]) for n, known in _KNOWN.items() if files or n not in _OF_FILES)
    return next((name for name, recognise in possible if recognise(src)), "")


def _wrapped(src: Location, given: Given) -> Location | None:
    """The only folder of ``src`` where that is no class but holds the set."""
    entries = entries_of(src)
    folders = [entry for entry in entries if is_folder(entry)]
    if len(folders) != 1 or given or any(suffix_of(e.name) in IMAGES for e in entries):
        return None
    if split_of(folders[0].name):
        return None
    inner = src / folders[0].name
    below = [entry for entry in entries_of(inner) if is_folder(entry)]
    if _recognised(inner) or split_folders(inner, {}, [])[0].prefix:
        return inner
    if any(suffix_of(entry.name) in IMAGES for entry in entries_of(inner)):
        return None
    if len(below) == 1:
        return inner if _wrapped(inner, {}) is not None else None
    return inner if sum(_has_image(inner / entry.name) for entry in below) > 1 else None


def _has_image(folder: Location) -> bool:
    return any(suffix_of(entry.name) in IMAGES for entry in entries_of(folder))
