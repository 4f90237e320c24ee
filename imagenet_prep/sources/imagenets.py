"""ImageNet and Tiny ImageNet as they are distributed -> classes and images.

Kaggle's competition "imagenet-object-localization-challenge":

    ILSVRC/Data/CLS-LOC/train/<wnid>/*.JPEG
    ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_*.JPEG       labels: LOC_val_solution.csv or built in
    ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_*.JPEG     no labels; left out

The source is the outer folder, ``ILSVRC``, or ``CLS-LOC``; keys are relative to ``CLS-LOC``.

ILSVRC2012's archives: ``ILSVRC2012_img_train.tar`` is a tar of a tar per class, named after its
wnid; the class tars may have been taken out of it already. ``ILSVRC2012_img_val.tar`` holds the
50,000 images of validation, whose labels are built in; they may also be unpacked, in ``val``.
Archives are read as folders, so keys and crops are those that the same images have in class
folders.

Tiny ImageNet: ``train/<wnid>/images/``, ``val/images/`` with the classes in
``val/val_annotations.txt`` (name, wnid and a box, between tabs), ``wnids.txt`` and ``words.txt``.
Scripts often move the images of val into ``val/<wnid>/`` or ``val/<wnid>/images/``, all or some of
them. The images of ``test`` have no classes and are left out.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from imagenet_prep.containers import imagenet
from imagenet_prep.containers.archive import open_tar_of_tars, open_tars
from imagenet_prep.containers.names import (
    entries_of,
    is_folder,
    is_worth_trying,
    may_be_image,
    read_text,
    text_of,
)
from imagenet_prep.containers.source import Finding, Source, found, in_memory
from imagenet_prep.core.errors import ToolError
from imagenet_prep.sources.folders import SplitFolder, find_in
from imagenet_prep.storage.location import Entry, Location, each, location_in, place_at

_SOLUTION = "LOC_val_solution.csv"
_PATHS = (("ILSVRC", "Data", "CLS-LOC"), ("Data", "CLS-LOC"))
TRAIN_NAME = "ILSVRC2012_img_train.tar"
VAL_NAME = "ILSVRC2012_img_val.tar"
_CLASS_TAR = re.compile(r"(n\d{8})\.tar")
_FOLDERS = {"train": ("train", "ILSVRC2012_img_train"), "val": ("val", "ILSVRC2012_img_val")}
_ANNOTATIONS = "val_annotations.txt"


def is_kaggle(src: Location) -> bool:
    """Whether ``src`` is one of the folders of Kaggle's set."""
    return src.is_dir() and _base(src) is not None


def find_kaggle(src: Location) -> Finding | None:
    """Kaggle's set -> its train and val; None: it is not there. Raises ToolError."""
    base = _base(src)
    if base is None:
        return None
    splits = [
        SplitFolder(name, base / name, f"{name}/")
        for name in ("train", "val")
        if (base / name).is_dir()
    ]
    finding = find_in(src, splits, {}, _val_classes(src))
    if (base / "test").is_dir():
        finding.notices.append("test: left out, its images have no classes")
    return finding


def _base(src: Location) -> Location | None:
    """The folder CLS-LOC."""
    if src.name == "CLS-LOC" and (src / "train").is_dir():
        return src
    for path in _PATHS:
        base = functools.reduce(lambda folder, name: folder / name, path, src)
        if (base / "train").is_dir() or (base / "val").is_dir():
            return base
    return None


def _val_classes(src: Location) -> functools.partial[str]:
    """The class of an image of val by its name: from the solution where it is there."""
    solution: dict[str, str] = {}
    for folder in (src, src.parent, src.parent.parent.parent):
        path = folder / _SOLUTION
        if folder is not src and src.name not in ("ILSVRC", "CLS-LOC"):
            break
        if path.is_file():
            for number, line in enumerate(read_text(path, "the labels of val").splitlines(), 1):
                image, _, boxes = line.partition(",")
                if line.strip() and image != "ImageId":
                    if not boxes.split():
                        raise ToolError(
                            "list.row", f"{path}: line {number} has no class; fetch it again"
                        )
                    solution[image] = boxes.split()[0]
            break
    return functools.partial(_class_of, solution)


def _class_of(solution: dict[str, str], name: str) -> str:
    return solution.get(name.rpartition(".")[0], "") or imagenet.val_class(name)


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
