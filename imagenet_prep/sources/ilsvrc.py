"""ILSVRC2012 as it is downloaded: its archives, read in place -> classes and images.

``ILSVRC2012_img_train.tar`` is a tar of a tar per class, named after its wnid; the class tars
may have been taken out of it already. ``ILSVRC2012_img_val.tar`` holds the 50,000 images of
validation, whose labels are built in; they may also be unpacked, in ``val``. Keys and crops
are those that the same images have in class folders.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from imagenet_prep.containers import imagenet
from imagenet_prep.containers.names import (
    entries_of,
    is_folder,
    is_worth_trying,
    place_of,
    safe_part,
)
from imagenet_prep.containers.source import Finding, Source, found
from imagenet_prep.containers.tar import Member, Tar, open_tar
from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.sources.folders import SplitFolder, find_in
from imagenet_prep.storage.location import Location, Url, each

TRAIN_NAME = "ILSVRC2012_img_train.tar"
VAL_NAME = "ILSVRC2012_img_val.tar"
_CLASS_TAR = re.compile(r"(n\d{8})\.tar")
_TRAIN_FOLDERS = ("train", "ILSVRC2012_img_train")
_VAL_FOLDERS = ("val", "ILSVRC2012_img_val")


def is_ilsvrc(src: Location) -> bool:
    """Whether ``src`` is the archive of train or val, or a folder with archives."""
    if not src.is_dir():
        return src.name in (TRAIN_NAME, VAL_NAME)
    return any((src / name).is_file() for name in (TRAIN_NAME, VAL_NAME)) or bool(_class_tars(src))


def find_ilsvrc(src: Location) -> Finding:
    """The archives in a folder, or one of them -> their images.

    Raises UsageError or ToolError for a missing or damaged archive.
    """
    folder = src if src.is_dir() else src.parent
    wanted = (TRAIN_NAME, VAL_NAME) if src.is_dir() else (src.name,)
    train, val = folder / TRAIN_NAME, folder / VAL_NAME
    has_val = VAL_NAME in wanted and val.is_file()
    tars = _class_tars(src) if src.is_dir() else {}
    classes: dict[str, set[str]] = {}
    groups: list[Iterator[list[Source]]] = []
    if TRAIN_NAME in wanted and train.is_file():
        classes["train"] = _classes_in(train)
        groups.append(_in_train_tar(train))
    elif tars:
        classes["train"] = set(tars)
        groups.append(_in_class_tars(tars))
    if has_val:
        classes["val"] = set()
        groups.append(list(_find_val(path)) for path in (val,))
    if not groups:
        raise UsageError(
            "source.layout_mismatch",
            f"{src}: has neither {TRAIN_NAME} nor {VAL_NAME}; give the folder of both",
        )
    for split, folders in (("train", _TRAIN_FOLDERS), ("val", _VAL_FOLDERS)):
        unpacked = next((src / name for name in folders if (src / name).is_dir()), None)
        if split not in classes and src.is_dir() and unpacked is not None:
            more = find_in(src, [SplitFolder(split, unpacked, f"{split}/")], {})
            classes |= {of: set(names) for of, names in more.classes.items()}
            groups.append(map(list, more.groups))
    finding = Finding((group for groups_ in groups for group in groups_), classes)
    finding.readable = imagenet.names()
    if "train" not in classes:
        finding.order = tuple(imagenet.names())
    return finding


def _class_tars(src: Location) -> dict[str, Location]:
    """wnid -> its tar, of the class tars in a folder or in its folder of train."""
    for folder in (src, *(src / name for name in _TRAIN_FOLDERS)):
        if folder is src or folder.is_dir():
            entries = [entry for entry in entries_of(folder) if not is_folder(entry)]
            matches = [(match, e) for e in entries if (match := _CLASS_TAR.fullmatch(e.name))]
            if matches:
                return {match[1]: folder / entry.name for match, entry in matches}
    return {}


def _in_class_tars(tars: dict[str, Location]) -> Iterator[list[Source]]:
    """The images of each class tar."""
    for wnid, path in tars.items():
        with open_tar(path) as tar:
            yield list(_images_of_class(tar, wnid))


def _classes_in(path: Location) -> set[str]:
    with open_tar(path) as outer:
        return {wnid for wnid, _ in _class_members(outer)}


def _in_train_tar(path: Location) -> Iterator[list[Source]]:
    """The images of each class of a tar of class tars."""
    with open_tar(path) as outer:
        find = functools.partial(_images_of_member, outer)
        yield from each(find, _class_members(outer), waiting=isinstance(path, Url))


def _class_members(outer: Tar) -> Iterator[tuple[str, Member]]:
    """(wnid, member) of every class."""
    seen: set[str] = set()
    for member in outer.members():
        name = member.name.rpartition("/")[2]
        wnid, _, suffix = name.rpartition(".")
        if suffix.lower() != "tar" or name.startswith("."):
            continue
        if member.fault or not wnid:
            raise ToolError(
                "archive.damaged",
                f"{outer.shown}: its member {member.name} is {member.fault or 'nameless'}",
            )
        if wnid in seen:
            raise ToolError(
                "source.duplicate", f"{outer.shown}: has {name} twice; fetch the archive again"
            )
        seen.add(wnid)
        yield wnid, member
    if not seen:
        raise ToolError(
            "archive.no_class_tars",
            f"{outer.shown}: holds no class archives (such as n01440764.tar); fetch it again",
        )


def _images_of_member(outer: Tar, archive: tuple[str, Member]) -> Iterator[list[Source]]:
    wnid, member = archive
    yield list(_images_of_class(outer.inner(member), wnid))


def _images_of_class(tar: Tar, wnid: str) -> Iterator[Source]:
    """The images of the tar of a class."""
    folder = safe_part(wnid)
    for image in tar.members():
        if is_worth_trying(image.name.rpartition("/")[2]):
            inside = f"{folder}/{image.name}"
            place = place_of(tar.place, image.offset, image.length, image.fault)
            yield found(f"train/{inside}", "train", wnid, inside, place)


def _find_val(path: Location) -> Iterator[Source]:
    """The images of the archive of validation."""
    with open_tar(path) as tar:
        for member in tar.members():
            name = member.name.rpartition("/")[2]
            if not is_worth_trying(name):
                continue
            wnid = imagenet.val_class(name)
            if not wnid:
                raise ToolError(
                    "source.no_class",
                    f"{path}: its member {member.name} is not one of the 50,000 images of "
                    "ImageNet's validation; fetch the archive again",
                )
            inside = f"{wnid}/{name}"
            place = place_of(tar.place, member.offset, member.length, member.fault)
            yield found(f"val/{inside}", "val", wnid, inside, place)
