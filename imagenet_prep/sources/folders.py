"""Class folders -> what may be pictures in them.

``src/<class>/...`` is one split named train; ``src/train/<class>/...`` with ``val`` and
``test`` beside it are splits; a flat folder of pictures is one class named after it.
No picture is opened here: whether a file is one shows when it is decoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator
from pathlib import Path

from imagenet_prep.core.errors import ToolError
from imagenet_prep.sources.types import (
    PICTURES,
    SPLIT_OF,
    Finding,
    Found,
    entries_of,
    is_folder,
    may_be_picture,
    suffix_of,
    text_of,
)
from imagenet_prep.storage.byte_range import Place
from imagenet_prep.storage.location import Entry, Location, Url, listed_ahead, place_at


def find_folders(src: Location) -> Finding:
    """A folder of class folders -> its pictures.

    Hidden files and files that plainly are no pictures are left out; every other file,
    whatever its suffix, is found. Raises ToolError with one sentence for layouts that give
    a picture no class or a split twice, and for links that lead round in a circle.
    """
    splits = split_folders(src)
    return Finding(itertools.chain.from_iterable(_walk_split(src, *each) for each in splits), {})


def split_folders(src: Location) -> list[tuple[str, Location, str]]:
    """(split, its folder, the prefix of its keys) of each split of ``src``."""
    folders = [entry.name for entry in entries_of(src) if is_folder(entry)]
    named = [name for name in folders if name.lower() in SPLIT_OF]
    # Among other class folders "train" is a class (a railway), unless classes lie in it.
    deep = any(
        SPLIT_OF[name.lower()] == "train" and any(is_folder(e) for e in entries_of(src / name))
        for name in named
    )
    if not named and len(folders) == 1:
        _refuse_outer(src, src / folders[0])
    if not named or (len(named) < len(folders) and not deep):
        return [("train", src, "")]
    taken: dict[str, str] = {}
    for name in named:
        other = taken.setdefault(SPLIT_OF[name.lower()], name)
        if other != name:
            raise ToolError(
                f"{src}: the folders {other} and {name} both mean the split "
                f"{SPLIT_OF[name.lower()]}; merge them or move one away"
            )
    return [(split, src / name, f"{text_of(name)}/") for split, name in taken.items()]


def _refuse_outer(src: Location, inner: Location) -> None:
    """Raises where the only folder of ``src`` is no class but holds a set with its splits."""
    for entry in entries_of(inner):
        is_train = is_folder(entry) and SPLIT_OF.get(entry.name.lower()) == "train"
        if is_train and any(is_folder(e) for e in entries_of(inner / entry.name)):
            raise ToolError(f"{src}: holds a set in {inner.name}; give --src {inner}")


def _walk_split(src: Location, split: str, folder: Location, prefix: str) -> Iterator[Found]:
    """The files of one split. Without class folders they are one class, named after ``src``."""
    entries = entries_of(folder)
    loose = [entry for entry in entries if may_be_picture(entry)]
    empty = True
    for entry in listed_ahead(entries):
        if not is_folder(entry):
            continue
        class_name = text_of(entry.name)
        for place, inside in walk(entry.path, f"{class_name}/", (_identity(folder),)):
            if empty and loose:
                _refuse_loose(folder, loose)
            empty = False
            yield Found(prefix + inside, split, class_name, inside, place)
    if not empty:
        return
    class_name = text_of(src.resolve().name) or "pictures"
    for entry in loose:
        name = text_of(entry.name)
        yield Found(prefix + name, split, class_name, f"{class_name}/{name}", place_at(entry.path))


def _refuse_loose(folder: Location, loose: list[Entry]) -> None:
    """Raises for a picture that lies beside class folders; other strays are passed over."""
    for entry in loose:
        if suffix_of(entry.name) in PICTURES:
            raise ToolError(
                f"{text_of(entry.path)}: lies beside the class folders of {folder.name} and so "
                "has no class; move it into one of them"
            )


def walk(
    folder: str | Url, prefix: str, above: tuple[Hashable, ...] = ()
) -> Iterator[tuple[Place, str]]:
    """(place, ``prefix`` + path below ``folder``) of every file that may be a picture.

    Links are followed. Raises ToolError for one to a folder that it lies in: that would
    never end.
    """
    identity = _identity(folder)
    if identity in above:
        raise ToolError(
            f"{text_of(folder)}: is a link to a folder that it lies in, which never ends; "
            "remove the link"
        )
    for entry in entries_of(folder):
        if is_folder(entry):
            yield from walk(entry.path, f"{prefix}{text_of(entry.name)}/", (*above, identity))
        elif may_be_picture(entry):
            yield place_at(entry.path), prefix + text_of(entry.name)


def _identity(folder: str | Location) -> Hashable:
    if isinstance(folder, Url):
        return folder.full
    status = Path(folder).stat()
    return status.st_dev, status.st_ino
