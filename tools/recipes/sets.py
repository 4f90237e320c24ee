"""The raw data of the recipes: where it is, and which images to take.

A data set is used as it was downloaded. If a recipe takes a part of it, or parts of two, it gets a
list (CSV: path, class, split) beside links to the folders.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.core.files import publish
from imagenet_prep.sources.scan import Scan, scan

LIST_NAME, CLASSES_NAME = "list.csv", "classes.txt"
HELD_OUT_SHARE = 0.2

_IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
_FASHION_TEXT = "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle_boot"
_TENCH = "n01440764"


@dataclass(frozen=True)
class RawSet:
    """A public data set: what to download, its folders (``content``), how to recognise it.

    ``names`` are its usual folder names; ``marks`` are alternatives, each a pattern of a path in
    its folder. ``readable`` has readable class names.
    """

    title: str
    download: str
    content: str
    names: tuple[str, ...]
    marks: tuple[str, ...]
    layout: str | None = None
    readable: Mapping[str, str] = field(default_factory=dict)
    classes: int | None = None

    def missing(self, place: Path) -> str:
        """The message that tells what to download and where to put it."""
        return (
            f"{place}: {self.title} is not there; download {self.download}, and name in --raw "
            f"the folder with {self.content}"
        )


SETS = {
    "cats-dogs": RawSet(
        "Cats and Dogs",
        "Kaggle's competition 'Dogs vs. Cats' (train.zip), unpacked",
        "cat.0.jpg, dog.0.jpg ..., or with train/ and test/ of such files",
        ("cats-dogs", "dogs-vs-cats", "PetImages"),
        ("train/cat.*", "cat.*", "train/[Cc]at/*", "train/[Cc]ats/*", "[Cc]at/*", "[Cc]ats/*"),
    ),
    "imagenette": RawSet(
        "Imagenette",
        "fast.ai's imagenette2.tgz, unpacked",
        "train/<wnid>/ and val/<wnid>/",
        ("imagenette", "imagenette2", "imagenette2-320", "imagenette2-160"),
        (f"train/{_TENCH}/*",),
        "folders",
        _IMAGENETTE,
    ),
    "tiny-imagenet": RawSet(
        "Tiny ImageNet",
        "tiny-imagenet-200.zip of the CS231n course, unpacked",
        "train/<wnid>/images/, val/images/, val/val_annotations.txt and wnids.txt",
        ("tiny-imagenet-200", "tiny-imagenet"),
        ("val/val_annotations.txt",),
        "tiny",
    ),
    "imagenet": RawSet(
        "ImageNet (ILSVRC2012)",
        "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar of image-net.org",
        "these two archives, not unpacked",
        ("ilsvrc2012", "ILSVRC2012", "imagenet"),
        ("ILSVRC2012_img_train.tar",),
        "ilsvrc",
    ),
    "fashion-mnist": RawSet(
        "FashionMNIST",
        "the four files of Zalando's fashion-mnist (train- and t10k-, images and labels)",
        "train-images-idx3-ubyte.gz and its three companions",
        ("fashion-mnist", "FashionMNIST", "FashionMNIST/raw"),
        ("train-images-idx3-ubyte*",),
        "idx",
        {str(n): name.replace("_", " ") for n, name in enumerate(_FASHION_TEXT.split())},
    ),
    "cat-fish": RawSet(
        "a set of cats and fish",
        "Cats and Dogs (Kaggle's 'Dogs vs. Cats') and Imagenette (fast.ai's imagenette2.tgz)",
        "both of their folders, cats-dogs/ and imagenette/, or one of your own with train/ and "
        "val/ of two class folders each",
        ("cat-fish",),
        ("train/*/*",),
        "folders",
        classes=2,
    ),
}


class Listed(NamedTuple):
    """A raw image: its path relative to the list, its class, its split."""

    path: str
    label: str
    split: str


@dataclass(frozen=True)
class Source:
    """Options of ``imagenet-prep prepare`` that describe the data."""

    src: Path
    layout: str | None
    classes: Path | None
    subset: int | None = None

    def words(self) -> list[str]:
        """The options of the command line."""
        words = ["--src", str(self.src)]
        for option, value in (
            ("--layout", self.layout),
            ("--classes", self.classes),
            ("--subset", self.subset),
        ):
            words += [] if value is None else [option, str(value)]
        return words


@dataclass(frozen=True)
class Choice:
    """Which of a set's images to take: ``per_class`` of each class in training, and in
    validation ``val_per_class`` (None: all, or of what is held out as many as in training);
    the first ``classes`` classes (None: all)."""

    per_class: int | None = None
    val_per_class: int | None = None
    classes: int | None = None

    @property
    def everything(self) -> bool:
        """Whether no image is left out."""
        return self.name == ""

    @property
    def name(self) -> str:
        """A short word for folders: ``1000-500-20``; empty where everything is taken."""
        parts = (self.per_class, self.val_per_class, self.classes)
        return "" if parts == (None, None, None) else "-".join(str(n or "all") for n in parts)


def locate(raw_set: RawSet, place: Path) -> Path | None:
    """The set's own folder: one in ``place`` that bears its name, or ``place``; None if absent."""
    for folder in (*(place / name for name in raw_set.names), place):
        if folder.is_dir() and any(_exists(folder, mark) for mark in raw_set.marks):
            return folder
    return None


def _exists(folder: Path, mark: str) -> bool:
    return next(folder.glob(mark), None) is not None


def source_of(name: str, place: Path, work: Path, choice: Choice) -> Source:
    """The raw set ``name`` in ``place`` -> what to prepare; lists are written into ``work``.

    Raises UsageError or ToolError where the set is absent, or lies in
    another way than it should.
    """
    if name == "cat-fish":
        both = [locate(SETS[part], place) for part in ("cats-dogs", "imagenette")]
        if both[0] is not None and both[1] is not None:
            images = list(_cats_and_fish(both[0], both[1], work))
            return _listed(images, {}, work, choice)
    raw_set = SETS[name]
    folder = locate(raw_set, place)
    if folder is None:
        raise UsageError("recipe.no_data", raw_set.missing(place))
    if raw_set.layout in ("idx", "ilsvrc"):
        return _as_downloaded(raw_set, folder, work, choice)
    collection = scan(folder, layout=raw_set.layout)
    found = sorted(collection.classes.names)
    if raw_set.classes not in (None, len(found)):
        raise ToolError(
            "recipe.classes",
            f"{folder}: has {len(found)} classes, and this recipe takes {raw_set.classes}; keep "
            f"{raw_set.content}",
        )
    if choice.everything and any(source.split == "val" for source in collection.sources):
        return Source(folder, raw_set.layout, _class_file(found, raw_set.readable, work))
    images = list(_images(collection, folder, _link(folder, work)))
    return _listed(images, raw_set.readable or collection.classes.readable, work, choice)


def _as_downloaded(raw_set: RawSet, folder: Path, work: Path, choice: Choice) -> Source:
    """A data set whose images are not separate files: all of it, or a subset by hash."""
    names = sorted(raw_set.readable)
    if choice.classes is not None or choice.val_per_class is not None:
        raise UsageError(
            "recipe.no_files",
            f"{folder}: its images are not separate files, so --classes and --val-per-class cannot "
            "select them; use --per-class alone",
        )
    count = len(names) if names else 1000
    subset = None if choice.per_class is None else choice.per_class * count
    return Source(folder, raw_set.layout, _class_file(names, raw_set.readable, work), subset)


def _class_file(names: Sequence[str], readable: Mapping[str, str], work: Path) -> Path | None:
    """The classes with their names for people, where any are known; else None."""
    if not any(name in readable for name in names):
        return None
    path = work / CLASSES_NAME
    work.mkdir(parents=True, exist_ok=True)
    with publish(path) as temporary:
        lines = [f"{name}\t{readable.get(name, '')}".rstrip("\t") for name in names]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _link(folder: Path, work: Path) -> Path:
    """A link to ``folder`` in ``work``, so that lists have short paths without a machine's."""
    link = work / folder.resolve().name
    work.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.resolve() != folder.resolve():
        link.unlink()
    if not link.is_symlink():
        link.symlink_to(folder.resolve(), target_is_directory=True)
    return link


def _images(found: Scan, folder: Path, link: Path) -> Iterator[Listed]:
    """What was found in ``folder`` and is there, with paths through ``link``."""
    splits = {source.split for source in found.sources}
    for source in found.sources:
        split = source.split
        if split == "test":  # nobody needs a third set here
            if "val" in splits:
                continue
            split = "val"
        if (folder / source.key).is_file():
            yield Listed(f"{link.name}/{source.key}", found.classes.names[source.label], split)


def _cats_and_fish(cats: Path, fish: Path, work: Path) -> Iterator[Listed]:
    """Cats of one set, tench of the other."""
    for image in _images(scan(cats), cats, _link(cats, work)):
        if image.label.lower().startswith("cat"):
            yield image._replace(label="cat")
    for image in _images(scan(fish), fish, _link(fish, work)):
        if image.label == _TENCH:
            yield image._replace(label="fish")


def _listed(
    images: Sequence[Listed], readable: Mapping[str, str], work: Path, choice: Choice
) -> Source:
    """The selected ``images`` as a list in ``work``."""
    chosen = choose(images, choice)
    path = work / LIST_NAME
    with publish(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        writer.writerows(chosen)
    names = sorted({image.label for image in chosen})
    return Source(path, "csv", _class_file(names, readable, work))


def choose(images: Iterable[Listed], choice: Choice) -> list[Listed]:
    """Images -> the chosen ones, sorted by path.

    Of each class the first by the hash of their paths in the set: always the same ones, and a
    smaller choice is part of a larger one. Where nothing of a class is for validation, images
    of training are held out for it: as many as are trained on, a fifth where all are taken, and
    never less than a fifth. Raises ToolError where a class has too few for that.
    """
    images = list(images)
    classes = sorted({image.label for image in images})[: choice.classes]
    chosen: list[Listed] = []
    for label in classes:
        of = sorted((p for p in images if p.label == label), key=lambda p: _hash(p))
        train = [p for p in of if p.split == "train"]
        val = [p for p in of if p.split == "val"]
        if not val:
            most = round(len(train) * (1 - HELD_OUT_SHARE))
            most = min(most, choice.per_class or most)
            train, rest = train[:most], train[most:]
            held_out = choice.val_per_class or (choice.per_class or len(rest))
            val = [p._replace(split="val") for p in rest[:held_out]]
        if not (train and val):
            raise ToolError(
                "recipe.too_few",
                f"class {label}: {len(of)} images are too few for training and validation; add "
                "some, or leave the class out",
            )
        chosen += train[: choice.per_class] + val[: choice.val_per_class]
    return sorted(chosen)


def _hash(image: Listed) -> bytes:
    """Of the path inside the set: the set's folder may be called anything."""
    inside = image.path.partition("/")[2]
    return hashlib.sha256(inside.encode("utf-8", "surrogateescape")).digest()
