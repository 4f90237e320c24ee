"""Class folders, and flat files named by class -> what may be images in them.

``src/<class>/...`` is one split named train; ``src/train/<class>/...`` with ``val`` and
``test`` beside it are splits; a flat folder of images is one class named after it. A flat
``val`` beside the class folders of ImageNet's train has the labels of the built-in table.

In flat files the class is what stands before the last dot, underscore or hyphen that only digits
follow up to the suffix: ``cat.12.jpg`` is a cat, ``Great_Dane_7.jpg`` a Great_Dane. By itself only
the form with the dot is recognised, since cameras too write ``IMG_0001.jpg``.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagenet_prep.containers import imagenet
from imagenet_prep.containers.archive import Inside
from imagenet_prep.containers.names import (
    IMAGES,
    Given,
    entries_of,
    is_folder,
    may_be_image,
    safe_part,
    split_of,
    suffix_of,
    text_of,
)
from imagenet_prep.containers.source import Finding, Source, found, in_memory
from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.storage.byte_range import Place
from imagenet_prep.storage.location import Entry, Location, Url, each, place_at

_CONTAINERS_TEXT = """
    images image imgs img pictures photos jpegimages annotations annotation masks mask labels label
    trimaps bboxes boxes attributes metadata meta docs scripts
"""
_CONTAINERS = frozenset(_CONTAINERS_TEXT.split())
_NUMBERED = re.compile(r"(.*?)\d+")
_FLAT = re.compile(r"(.*[^._-])[._-]+\d+\.[^.]+", re.DOTALL)
_DOTTED = re.compile(r".*[^.]\.\d+\.[^.]+", re.DOTALL)


@dataclass(frozen=True)
class SplitFolder:
    """A folder of one split; ``prefix`` begins the keys of its images."""

    split: str
    folder: Location
    prefix: str


def find_folders(src: Location, given: Given, *, trusted: bool = False) -> Finding:
    """A folder of class folders -> its images; ``trusted``: the user has named this layout.

    Hidden files and files that plainly are no images are left out; every other file, whatever
    its suffix, is found. Raises ToolError for layouts that leave an image without a class, for
    a class that has the name of a split, and for links that lead round in a circle.
    """
    notices: list[str] = []
    finding = find_in(src, split_folders(src, given, notices), given, trusted=trusted)
    finding.notices[:0] = notices
    return finding


def find_in(
    src: Location,
    splits: list[SplitFolder],
    given: Given,
    class_of: Callable[[str], str] = imagenet.class_in_name,
    *,
    trusted: bool = False,
) -> Finding:
    """The images of the folders of splits; ``class_of`` gives the class of an image of a flat
    split by its name, "" where it is not known. ``trusted``: the first folder below a split is
    a class, also where the images look as if they lay in classes below it."""
    listed = [(at, entries_of(at.folder)) for at in splits]
    images = {at: [e for e in entries if may_be_image(e)] for at, entries in listed
              if not _has_classes(entries)}  # fmt: skip
    known = {at: [class_of(text_of(e.name)) for e in flat] for at, flat in images.items()}
    has_classes = len(images) < len(listed) or any(map(any, known.values()))
    classes: dict[str, set[str]] = defaultdict(set)
    finding = Finding((), classes)
    groups: list[Iterator[list[Source]]] = []
    flat: dict[str, list[Source]] = defaultdict(list)
    for at, entries in listed:
        if at not in images:
            names = [text_of(entry.name) for entry in entries if is_folder(entry)]
            _check_classes(src, at, names, given, classes[at.split], trusted=trusted)
            classes[at.split].update(names)
            groups.append(_class_groups(at, entries, trusted=trusted))
            continue
        if has_classes and images[at] and not any(known[at]) and at.split == "test":
            finding.notices.append(f"{at.prefix[:-1]}: left out, its images have no classes")
            continue
        if not has_classes and isinstance(at.folder, Inside):
            has_classes = True  # the name of an archive is no class
        if not has_classes:
            known[at] = [text_of(src.resolve().name) or "images"] * len(images[at])
        without = next((e for e, name in zip(images[at], known[at], strict=True) if not name), None)
        if without is not None:
            raise _no_class(without)
        # A flat folder of ImageNet's val has the names of val, whatever it is called.
        is_val = images[at] and imagenet.val_class(text_of(images[at][0].name))
        split = "val" if is_val else at.split
        classes[split].update(known[at])
        flat[split] += _in_flat(at, split, images[at], known[at])
    finding.groups = (group for found in [*groups, flat.values()] for group in found)
    every = set().union(*classes.values())
    finding.readable = {wnid: name for wnid, name in imagenet.names().items() if wnid in every}
    return finding


def _has_classes(entries: list[Entry]) -> bool:
    """Whether there are class folders, and not a folder of something else beside images."""
    folders = [entry for entry in entries if is_folder(entry)]
    if any(suffix_of(entry.name) in IMAGES and may_be_image(entry) for entry in entries):
        folders = [f for f in folders if next(walk(f.path, ""), None) is not None]
    return bool(folders)


def split_folders(src: Location, given: Given, notices: list[str]) -> list[SplitFolder]:
    """The folders of the splits of ``src``; itself as train where it has none."""
    folders = [entry.name for entry in entries_of(src) if is_folder(entry)]
    named = {name: given.get(text_of(name), split_of(name)) for name in folders}
    named = {name: split for name, split in named.items() if split not in ("", "class")}
    # Among class folders "train" may be a class (a railway), unless classes lie in it.
    deep = any(
        text_of(name) in given or any(map(is_folder, entries_of(src / name))) for name in named
    )
    if not named or (len(named) < len(folders) and not deep):
        return [SplitFolder("train", src, "")]
    notices += [
        f"{text_of(name)}: left out, it is no split (name its split with --split)"
        for name in folders
        if name not in named and not isinstance(src, Url) and _holds_images(src / name)
    ]
    _check_twice(src, named, given)
    return [_innermost(split, src / name, f"{text_of(name)}/") for name, split in named.items()]


def _holds_images(folder: Location) -> bool:
    """Whether there are images in it, or in a folder in it."""
    entries = entries_of(folder)
    inner = [entry for e in entries if is_folder(e) for entry in entries_of(e.path)]
    return any(suffix_of(e.name) in IMAGES and may_be_image(e) for e in [*entries, *inner])


def _innermost(split: str, folder: Location, prefix: str) -> SplitFolder:
    """``seg_train/seg_train/`` is one split."""
    entries = entries_of(folder)
    only = entries[0] if len(entries) == 1 and is_folder(entries[0]) else None
    if only is not None and split_of(only.name) == split:
        return _innermost(split, folder / only.name, f"{prefix}{text_of(only.name)}/")
    return SplitFolder(split, folder, prefix)


def _check_twice(src: Location, named: dict[str, str], given: Given) -> None:
    """ToolError where two folders are one split, unless they are numbered or were named so."""
    by_split: dict[str, list[str]] = defaultdict(list)
    for name, split in named.items():
        by_split[split].append(name)
    for split, names in by_split.items():
        starts = {match[1] if (match := _NUMBERED.fullmatch(name)) else name for name in names}
        if len(starts) > 1 and not all(text_of(name) in given for name in names):
            raise ToolError(
                "source.split_twice",
                f"{src}: the folders {names[0]} and {names[1]} both mean the split {split}; move "
                "one away, or name both with --split",
            )


def _check_classes(
    src: Location,
    at: SplitFolder,
    names: Sequence[str],
    given: Given,
    others: set[str],
    *,
    trusted: bool,
) -> None:
    """ToolError for a class that has a split's name, lies in two folders of one split, or has
    the name of a folder that other sets keep all their images or their annotations in."""
    for name in names:
        path = at.prefix + name
        if name.lower() in _CONTAINERS and not trusted and given.get(path) != "class":
            raise ToolError(
                "source.container_as_class",
                f"{src}: the folder {path} would be a class; give --src the folder that holds "
                f"the class folders, or --split {path}=class if it is one",
            )
        if split_of(name) and given.get(path) != "class":
            raise ToolError(
                "source.split_as_class",
                f"{src}: the folder {path} would be a class, but has the name of a split; use "
                f"--split {path}={split_of(name)} if it is one, --split {path}=class if not",
            )
        if name in others:
            raise ToolError(
                "source.class_twice",
                f"{src}: two folders of the split {at.split} have the class {name}; merge them",
            )


def _no_class(image: Entry) -> ToolError:
    return ToolError(
        "source.no_class",
        f"{text_of(image.path)}: lies in no class folder, so it has no class; move it into one",
    )


def _class_groups(
    at: SplitFolder, entries: list[Entry], *, trusted: bool
) -> Iterator[list[Source]]:
    """The images of the class folders of a split, class by class."""
    below: dict[str, set[str]] = {}
    direct = False
    for name, group in each(functools.partial(_class_group, at), entries, at.folder):
        if group:
            nested = {s.crop.split("/", 2)[1] for s in group if s.crop.count("/") > 1}
            direct = direct or len(nested) == 0 or any(s.crop.count("/") == 1 for s in group)
            below[name] = nested
        yield group
    many = next((name for name, nested in below.items() if len(nested) > 1), None)
    if many is not None and not trusted and (len(below) == 1 or not direct):
        raise ToolError(
            "source.one_class" if len(below) == 1 else "source.nested_classes",
            f"{at.folder}: the images lie in folders below those that would be the classes, such "
            f"as {many}/{min(below[many])}; give --src the folder that holds the class folders, "
            "or confirm with --layout folders",
        )


def _class_group(at: SplitFolder, entry: Entry) -> Iterator[tuple[str, list[Source]]]:
    """The class that an entry of the folder of a split is, and its images; nothing for a file."""
    if is_folder(entry):
        name = text_of(entry.name)
        places = walk(entry.path, f"{name}/", (_identity(at.folder),))
        yield name, [found(at.prefix + path, at.split, name, path, place) for place, path in places]
    elif suffix_of(entry.name) in IMAGES and may_be_image(entry):
        raise _no_class(entry)


def _in_flat(at: SplitFolder, split: str, images: list[Entry], classes: list[str]) -> list[Source]:
    """The images that lie in the folder of a split itself."""
    group = []
    for image, class_name in zip(images, classes, strict=True):
        name = text_of(image.name)
        place = place_at(image.path)
        inside = f"{safe_part(class_name)}/{name}"
        group.append(found(at.prefix + name, split, class_name, inside, place))
    return group


def walk(
    folder: str | Url, prefix: str, above: tuple[Hashable, ...] = ()
) -> Iterator[tuple[Place, str]]:
    """(place, ``prefix`` + path below ``folder``) of every file that may be an image.

    Links are followed. Raises ToolError for one to a folder that it lies in.
    """
    identity = _identity(folder)
    if identity in above:
        raise ToolError(
            "source.link_circle",
            f"{text_of(folder)}: is a link to a folder that it lies in; remove the link",
        )
    for entry in entries_of(folder):
        if is_folder(entry):
            yield from walk(entry.path, f"{prefix}{text_of(entry.name)}/", (*above, identity))
        elif may_be_image(entry):
            yield place_at(entry.path), prefix + text_of(entry.name)


def _identity(folder: str | Location) -> Hashable:
    if isinstance(folder, Url):
        return folder.full
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def is_flat(src: Location) -> bool:
    """Whether ``src`` has no class folders, and all images are ``<class>.<number>.<suffix>``.

    There have to be two classes at least. Test images may have no class.
    """
    if not src.is_dir():
        return False
    classes: set[str] = set()
    for at in split_folders(src, {}, []):
        entries = entries_of(at.folder)
        if any(is_folder(entry) for entry in entries):
            return False
        names = _named_images(entries)
        dotted = [name for name in names if _DOTTED.fullmatch(name)]
        if len(dotted) < len(names) and (dotted or at.split != "test"):
            return False
        classes.update(_class_of(name) for name in dotted)
    return len(classes) > 1


def find_flat(src: Location, given: Given) -> Finding:
    """A folder of files named by class -> its images.

    A test folder in which no file has a class is left out. Raises UsageError or ToolError
    for a file that is not named by class.
    """
    if not src.is_dir():
        raise UsageError(
            "source.not_a_folder", f"{src}: is a file; give the folder of the images named by class"
        )
    sources: list[Source] = []
    notices: list[str] = []
    for at in split_folders(src, given, notices):
        entries = [entry for entry in entries_of(at.folder) if may_be_image(entry)]
        names = set(_named_images(entries))
        if at.split == "test" and not any(_class_of(name) for name in names):
            notices.append(f"{at.prefix[:-1]}: left out, its images have no classes")
            continue
        for entry in entries:
            if entry.name not in names:
                continue  # such as a LICENSE
            class_name = _class_of(entry.name)
            if not class_name:
                raise ToolError(
                    "source.no_class",
                    f"{text_of(entry.path)}: is not named by a class and a number, such as "
                    "cat.12.jpg; rename it or move it away",
                )
            name, shown = text_of(entry.name), text_of(class_name)
            inside = f"{safe_part(shown)}/{name}"
            sources.append(found(at.prefix + name, at.split, shown, inside, place_at(entry.path)))
    return in_memory(sources, notices)


def _named_images(entries: list[Entry]) -> list[str]:
    return [e.name for e in entries if suffix_of(e.name) in IMAGES and may_be_image(e)]


def _class_of(name: str) -> str:
    """``cat.12.jpg`` -> ``cat``; empty where there is none."""
    match = _FLAT.fullmatch(name)
    return match[1] if match else ""
