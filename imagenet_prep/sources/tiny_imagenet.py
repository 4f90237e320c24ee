"""Tiny ImageNet's own layout -> its classes and images.

``train/<wnid>/images/``, ``val/images/`` with the classes in ``val/val_annotations.txt``
(name, wnid and a box, between tabs), ``wnids.txt`` and ``words.txt``. Scripts often move the
images of val into ``val/<wnid>/`` or ``val/<wnid>/images/``, all or some of them. The images
of ``test`` have no classes and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from imagenet_prep.containers.names import (
    entries_of,
    is_folder,
    may_be_image,
    read_text,
    text_of,
)
from imagenet_prep.containers.source import Finding, Source, found, in_memory
from imagenet_prep.core.errors import ToolError
from imagenet_prep.storage.location import Entry, Location, each, location_in, place_at

_ANNOTATIONS = "val_annotations.txt"


def is_tiny(src: Location) -> bool:
    """Whether ``src`` is a folder with the marks of Tiny ImageNet."""
    if not src.is_dir():
        return False
    if (src / "val" / _ANNOTATIONS).is_file():
        return True
    return (src / "wnids.txt").is_file() and (src / "train").is_dir()


def find_tiny(src: Location) -> Finding | None:
    """The folder of Tiny ImageNet -> its images; None: it is none. Labels follow the sorted wnids.

    Raises ToolError for what is missing or has no class.
    """
    train, val = src / "train", src / "val"
    if not train.is_dir() and not (val / _ANNOTATIONS).is_file():
        return None
    sources = list(_in_folders(train, "train")) if train.is_dir() else []
    if val.is_dir():
        sources += _find_val(val)
    finding = in_memory(sources)
    if (src / "wnids.txt").is_file():
        finding.order = sorted(set(read_text(src / "wnids.txt", "the list of wnids").split()))
    present = set().union(*finding.classes.values(), finding.order or ())
    finding.readable = _words(src / "words.txt", present)
    if (src / "test").is_dir():
        finding.notices.append("test: left out, its images have no classes")
    return finding


def _in_folders(folder: Location, split: str) -> Iterator[Source]:
    """The images of class folders, with or without ``images`` in them."""

    def find(entry: Entry) -> Iterator[Source]:
        if not is_folder(entry) or entry.name == "images":
            return
        wnid = text_of(entry.name)
        images = location_in(entry) / "images"
        # The boxes lie beside images/; without that folder the images lie there too.
        below = "images/" if images.is_dir() else ""
        for image in entries_of(images if below else location_in(entry)):
            if may_be_image(image):
                name = text_of(image.name)
                key = f"{split}/{wnid}/{below}{name}"
                yield found(key, split, wnid, f"{wnid}/{name}", place_at(image.path))

    return each(find, entries_of(folder), folder)


def _find_val(val: Location) -> Iterator[Source]:
    """The images of val where they came, and those that were moved into class folders."""
    path, images = val / _ANNOTATIONS, val / "images"
    moved = {source.key.rpartition("/")[2]: source for source in _in_folders(val, "val")}
    entries = entries_of(images) if images.is_dir() else []
    there = {text_of(entry.name) for entry in entries if may_be_image(entry)}
    if not path.is_file():
        if there or not moved:
            raise ToolError(
                "list.missing", f"{path}: is missing, and so are the classes of val; fetch it again"
            )
        yield from moved.values()
        return
    wnids = _annotations(path)
    foreign = sorted((there | moved.keys()) - wnids.keys())
    if foreign:
        raise ToolError(
            "source.no_class", f"{path}: has no line for the image {foreign[0]}; fetch both again"
        )
    for name, wnid in wnids.items():
        if name in there or name not in moved:  # one that is missing fails when it is read
            place = place_at(images / name)
            yield found(f"val/images/{name}", "val", wnid, f"{wnid}/{name}", place)
        elif moved[name].class_name != wnid:
            raise ToolError(
                "source.class_conflict",
                f"{val}: {name} lies in {moved[name].class_name}, but {_ANNOTATIONS} gives it "
                f"the class {wnid}; fetch the set again",
            )
        else:
            yield moved[name]


def _annotations(path: Location) -> dict[str, str]:
    """Image -> wnid."""
    wnids: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "the classes of val").splitlines(), 1):
        name, *fields = line.split("\t")
        if not line.strip():
            continue
        if not fields or not _is_plain(fields[0]) or wnids.get(name, fields[0]) != fields[0]:
            raise ToolError(
                "list.row", f"{path}: line {number} does not give one class; fetch it again"
            )
        if not _is_plain(name):
            raise ToolError(
                "list.unsafe_path",
                f"{path}: line {number}: {name} would lie outside of the images; remove it",
            )
        wnids[name] = fields[0]
    return wnids


def _is_plain(name: str) -> bool:
    """Whether it is the name of a file or folder and nothing that leads elsewhere."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _words(path: Location, wnids: set[str]) -> dict[str, str]:
    """``words.txt`` -> the words of ``wnids``, of the 82,000 that it has."""
    if not path.is_file():
        return {}
    rows = (line.partition("\t") for line in read_text(path, "the list of words").splitlines())
    return {wnid: words.strip() for wnid, _, words in rows if wnid in wnids and words.strip()}
