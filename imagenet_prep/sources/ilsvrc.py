"""ILSVRC2012 as it is downloaded: its archives, read in place -> classes and images.

``ILSVRC2012_img_train.tar`` is a tar of a tar per class, named after its wnid; the class tars
may have been taken out of it already. ``ILSVRC2012_img_val.tar`` holds the 50,000 images of
validation, whose labels are built in; they may also be unpacked, in ``val``. Archives are read
as folders, so keys and crops are those that the same images have in class folders.
"""

from __future__ import annotations

import functools
import re

from imagenet_prep.containers import imagenet
from imagenet_prep.containers.archive import open_tar_of_tars, open_tars
from imagenet_prep.containers.names import entries_of, is_folder, is_worth_trying
from imagenet_prep.containers.source import Finding
from imagenet_prep.core.errors import ToolError
from imagenet_prep.sources.folders import SplitFolder, find_in
from imagenet_prep.storage.location import Location

TRAIN_NAME = "ILSVRC2012_img_train.tar"
VAL_NAME = "ILSVRC2012_img_val.tar"
_CLASS_TAR = re.compile(r"(n\d{8})\.tar")
_FOLDERS = {"train": ("train", "ILSVRC2012_img_train"), "val": ("val", "ILSVRC2012_img_val")}


def is_ilsvrc(src: Location) -> bool:
    """Whether ``src`` is the archive of train or val, or a folder with archives."""
    if not src.is_dir():
        return src.name in (TRAIN_NAME, VAL_NAME)
    return any((src / name).is_file() for name in (TRAIN_NAME, VAL_NAME)) or bool(_class_tars(src))


def find_ilsvrc(src: Location) -> Finding | None:
    """The archives in a folder, or one of them -> their images; None: there are none.

    Raises ToolError for a damaged archive.
    """
    splits = [
        SplitFolder(split, folder, f"{split}/")
        for split, name in (("train", TRAIN_NAME), ("val", VAL_NAME))
        if (folder := _folder(src, split, name)) is not None
    ]
    if not splits:
        return None
    finding = find_in(src, splits, {})
    finding.readable = imagenet.names()
    if "train" not in finding.classes:
        finding.order = tuple(imagenet.names())
    return finding


def _folder(src: Location, split: str, name: str) -> Location | None:
    """The images of a split: its archive, its class tars, or a folder of the unpacked images."""
    archive = src / name if src.is_dir() else src
    if archive.name == name and archive.is_file():
        root = open_tar_of_tars(archive, functools.partial(_path, archive, split))
        if split == "train" and not any(map(is_folder, entries_of(root))):
            raise ToolError(
                "archive.no_class_tars",
                f"{archive}: holds no class archives (such as n01440764.tar); fetch it again",
            )
        return root
    if not src.is_dir():
        return None
    tars = _class_tars(src) if split == "train" else {}
    if tars:
        return open_tars(src, tars)
    return next((src / name for name in _FOLDERS[split] if (src / name).is_dir()), None)


def _path(archive: Location, split: str, name: str) -> str:
    """Where an image of an archive lies in the folder of its split: that of val in its class."""
    if split == "train" or not is_worth_trying(name):
        return name
    wnid = imagenet.val_class(name)
    if not wnid:
        raise ToolError(
            "source.no_class",
            f"{archive}: its member {name} is not one of the 50,000 images of ImageNet's "
            "validation; fetch the archive again",
        )
    return f"{wnid}/{name}"


def _class_tars(src: Location) -> dict[str, Location]:
    """wnid -> its tar, of the class tars in a folder or in its folder of train."""
    for folder in (src, *(src / name for name in _FOLDERS["train"])):
        if folder is src or folder.is_dir():
            entries = [entry for entry in entries_of(folder) if not is_folder(entry)]
            matches = [(match, e) for e in entries if (match := _CLASS_TAR.fullmatch(e.name))]
            if matches:
                return {match[1]: folder / entry.name for match, entry in matches}
    return {}
