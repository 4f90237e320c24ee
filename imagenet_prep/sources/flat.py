"""Flat files named by class, ``cat.12.jpg`` -> their classes and images.

The class is what stands before the last dot, underscore or hyphen that only digits follow
up to the suffix: ``cat.12.jpg`` is a cat, ``Great_Dane_7.jpg`` a Great_Dane. The files lie in
one folder, or in train/, val/ and test/ in it. By itself only the form with the dot is
recognised, since cameras too write ``IMG_0001.jpg``.
"""

from __future__ import annotations

import re

from imagenet_prep.containers.names import (
    IMAGES,
    Given,
    entries_of,
    is_folder,
    may_be_image,
    safe_part,
    suffix_of,
    text_of,
)
from imagenet_prep.containers.source import Finding, Source, found, in_memory
from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.sources.folders import split_folders
from imagenet_prep.storage.location import Entry, Location, place_at

_NAMED = re.compile(r"(.*[^._-])[._-]+\d+\.[^.]+", re.DOTALL)
_DOTTED = re.compile(r".*[^.]\.\d+\.[^.]+", re.DOTALL)


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
        names = _images(entries)
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
        names = set(_images(entries))
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


def _images(entries: list[Entry]) -> list[str]:
    return [e.name for e in entries if suffix_of(e.name) in IMAGES and may_be_image(e)]


def _class_of(name: str) -> str:
    """``cat.12.jpg`` -> ``cat``; empty where there is none."""
    match = _NAMED.fullmatch(name)
    return match[1] if match else ""
