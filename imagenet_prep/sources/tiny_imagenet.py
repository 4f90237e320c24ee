"""Tiny ImageNet's own layout -> its classes and pictures.

``train/<wnid>/images/``, ``val/images/`` with the classes in ``val/val_annotations.txt``
(name, wnid and a box, between tabs), ``wnids.txt`` and ``words.txt``. The pictures of
``test`` have no classes and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.sources.types import (
    Finding,
    Found,
    entries_of,
    is_folder,
    may_be_picture,
    read_text,
    text_of,
)
from imagenet_prep.storage.location import (
    Location,
    listed_ahead,
    location_in,
    place_at,
    place_of_file,
)

_ANNOTATIONS = "val_annotations.txt"


def is_tiny(src: Location) -> bool:
    """Whether ``src`` is a folder with the marks of Tiny ImageNet."""
    if not src.is_dir():
        return False
    if (src / "val" / _ANNOTATIONS).is_file():
        return True
    return (src / "wnids.txt").is_file() and (src / "train").is_dir()


def find_tiny(src: Location) -> Finding:
    """The folder of Tiny ImageNet -> its pictures. Labels follow the sorted wnids.

    Raises UsageError or ToolError with one sentence for what is missing or has no class.
    """
    train, val = src / "train", src / "val"
    if not train.is_dir() and not (val / _ANNOTATIONS).is_file():
        raise UsageError(f"{src}: has neither train/ nor val/{_ANNOTATIONS}; name their folder")
    found = list(_find_train(train)) if train.is_dir() else []
    if val.is_dir():
        found.extend(_find_val(val))
    order = None
    if (src / "wnids.txt").is_file():
        order = tuple(sorted(set(read_text(src / "wnids.txt", "the list of wnids").split())))
    present = {item.class_name for item in found}
    return Finding(found, _words(src / "words.txt", present | set(order or ())), order)


def _find_train(train: Location) -> Iterator[Found]:
    for folder in listed_ahead(entries_of(train)):
        if not is_folder(folder):
            continue
        wnid = text_of(folder.name)
        images = location_in(folder) / "images"
        # The boxes lie beside images/; without that folder the pictures lie there too.
        below = "images/" if images.is_dir() else ""
        for entry in entries_of(images if below else location_in(folder)):
            if may_be_picture(entry):
                name = text_of(entry.name)
                key = f"train/{wnid}/{below}{name}"
                yield Found(key, "train", wnid, f"{wnid}/{name}", place_at(entry.path))


def _find_val(val: Location) -> Iterator[Found]:
    path = val / _ANNOTATIONS
    if not path.is_file():
        raise ToolError(f"{path}: is missing, and with it the classes of val; fetch it again")
    wnids: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "the classes of val").splitlines(), 1):
        name, *fields = line.split("\t")
        if not line.strip():
            continue
        if not fields or not _is_plain(fields[0]) or wnids.get(name, fields[0]) != fields[0]:
            raise ToolError(f"{path}: line {number} gives no picture one class; fetch it again")
        wnids[name] = fields[0]
    images = val / "images"
    there = {text_of(entry.name) for entry in entries_of(images) if may_be_picture(entry)}
    foreign = sorted(there - wnids.keys())
    if foreign:
        raise ToolError(f"{images / foreign[0]}: has no line in {path.name}; fetch both again")
    for name, wnid in wnids.items():
        if not _is_plain(name):
            raise ToolError(f"{path}: the picture {name} would lie outside of {images}; remove it")
        place = place_of_file(images / name)  # one that is missing fails when it is read
        yield Found(f"val/images/{name}", "val", wnid, f"{wnid}/{name}", place)


def _is_plain(name: str) -> bool:
    """Whether it is the name of a file or folder and nothing that leads elsewhere."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _words(path: Location, wnids: set[str]) -> dict[str, str]:
    """``words.txt`` -> the words of ``wnids``, of the 82,000 that it has."""
    if not path.is_file():
        return {}
    rows = (line.partition("\t") for line in read_text(path, "the list of words").splitlines())
    return {wnid: words.strip() for wnid, _, words in rows if wnid in wnids and words.strip()}
