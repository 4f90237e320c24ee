"""WebDataset shards, a folder of tars -> their classes and images, read in place.

Members that share a name up to its first dot are one sample: ``0001.jpg`` with its class in
``0001.cls`` (a number or a name), else in ``0001.json`` ({"label": ...}), else in
``0001.txt``. A shard belongs to the split that a word of its name or folder says
(``imagenet-val-0003.tar``), else to train. Numbers are the labels as they are.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.sources.names import (
    IMAGES,
    SPLIT_OF,
    entries_of,
    is_folder,
    may_be_image,
    place_of,
    safe_part,
    text_of,
)
from imagenet_prep.sources.source import Finding, Source, found, in_memory
from imagenet_prep.sources.tar import Member, Tar, open_tar
from imagenet_prep.storage.location import Location, Url, each, location_in

_LABELS = ("cls", "json", "txt")
_JSON_NAMES = ("label", "cls", "class", "class_id", "class_name", "target")
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAX_LABEL_BYTES = 1 << 20
_MAX_NAME = 200
_MAX_CLASSES = 100_000
_LOOKED_AT = 50
_CAPTIONS_FROM = 50


@dataclass
class _Sample:
    """The members of a sample that matter."""

    images: list[Member] = field(default_factory=list)
    labels: dict[str, Member] = field(default_factory=dict)


def is_webdataset(src: Location) -> bool:
    """Whether ``src`` is a tar, a folder of nothing but tars, or one whose first tar looks so.

    Nothing but tars counts even where they are damaged or compressed, so that it is said.
    """
    if not src.is_dir():
        return _is_shard(src.name)
    shards = list(_shards(src))
    if not shards:
        return False
    holding = {name.rpartition("/")[0] for name, _ in shards}
    if all(
        entry.name in holding if is_folder(entry) else not may_be_image(entry)
        for entry in entries_of(src)
    ):
        return True
    samples: dict[str, _Sample] = {}
    try:
        with open_tar(shards[0][1]) as tar:
            for member, _ in zip(tar.members(), range(_LOOKED_AT), strict=False):
                _sort_in(samples, member)
    except ToolError:
        return False
    return any(sample.images and sample.labels for sample in samples.values())


def find_webdataset(src: Location) -> Finding:
    """A folder of shards, or one shard -> their images.

    Raises UsageError or ToolError for a missing, damaged or compressed
    shard and for samples without a class.
    """
    shards = list(_shards(src)) if src.is_dir() else [(text_of(src.name), src)]
    if not shards:
        raise UsageError(
            "source.layout_mismatch",
            f"{src}: has no shards (.tar); name the folder that holds them",
        )
    sources: list[Source] = []
    interned: dict[str, str] = {}
    captions = 0
    find = functools.partial(_find_shard, interned)
    for item, kind in each(find, shards, waiting=isinstance(src, Url)):
        captions += kind == "txt"
        sources.append(item)
    if captions == len(sources) >= _CAPTIONS_FROM and len(interned) > len(sources) // 2:
        raise ToolError(
            "webdataset.captions",
            f"{src}: the .txt members differ from sample to sample, so they are captions and no "
            "classes; a class belongs into a .cls member",
        )
    finding = in_memory(sources)
    finding.order = _order(src, interned)
    return finding


def _order(src: Location, names: dict[str, str]) -> tuple[str, ...]:
    """The classes by label: numbers are labels, so those between that are missing count too."""
    if not all(re.fullmatch(r"0|[1-9]\d{0,17}", name, re.ASCII) for name in names):
        return tuple(sorted(names))
    most = max(map(int, names), default=-1)
    if most >= _MAX_CLASSES:
        raise ToolError(
            "webdataset.label",
            f"{src}: has a sample of class {most}, which is not believable; check it",
        )
    return tuple(map(str, range(most + 1)))


def _shards(src: Location) -> Iterator[tuple[str, Location]]:
    """(name below ``src``, where it is) of the archives in it and in its folders of splits."""
    for entry in entries_of(src):
        if is_folder(entry):
            if entry.name.lower() in SPLIT_OF:
                for shard in entries_of(entry.path):
                    if not is_folder(shard) and _is_shard(shard.name):
                        yield text_of(f"{entry.name}/{shard.name}"), location_in(shard)
        elif _is_shard(entry.name):
            yield text_of(entry.name), location_in(entry)


def _is_shard(name: str) -> bool:
    return name.lower().endswith((".tar", *_PACKED))


def _find_shard(
    interned: dict[str, str], shard: tuple[str, Location]
) -> Iterator[tuple[Source, str]]:
    """(image, kind of its label) of every sample of a shard that has a image."""
    shown, where = shard
    if shown.lower().endswith(_PACKED):
        raise ToolError(
            "archive.compressed",
            f"{where}: is compressed, so its members cannot be read in place; unpack the "
            "shards with gunzip or the like first (images do not get smaller by it)",
        )
    shown = shown.removesuffix(".tar")
    folder = safe_part(shown.replace("/", "-"))
    words = re.split(r"[^a-z0-9]+", shown.lower())
    split = next((SPLIT_OF[word] for word in words if word in SPLIT_OF), "train")
    with open_tar(where) as tar:
        for image, name, kind in _images(tar, where):
            name = interned.setdefault(name, name)
            inside = f"{safe_part(name)}/{folder}/{image.name}"
            place = place_of(tar.place, image.offset, image.length, image.fault)
            yield found(f"{shown}.tar/{image.name}", split, name, inside, place), kind


def _images(tar: Tar, where: Location) -> Iterator[tuple[Member, str, str]]:
    """(image, its class, the kind of member that says so) of every sample with a image."""
    samples: dict[str, _Sample] = {}
    for member in tar.members():
        if _sort_in(samples, member) and isinstance(where, Url):
            tar.keep(member)
    for key, sample in samples.items():
        if not sample.images:
            continue
        kind = next((kind for kind in _LABELS if kind in sample.labels), "")
        if not kind:
            raise ToolError(
                "webdataset.no_label",
                f"{tar.shown}: the sample {key} has no class; it needs a member {key}.cls",
            )
        name = _label_of(tar, sample.labels[kind], kind)
        for image in sample.images:
            yield image, name, kind


def _sort_in(samples: dict[str, _Sample], member: Member) -> bool:
    """Puts a member to the sample that it belongs to; says whether it may give that a class."""
    folder, slash, name = member.name.rpartition("/")
    stem, dot, kind = name.partition(".")
    if not stem or not dot:
        return False
    sample = samples.setdefault(folder + slash + stem, _Sample())
    kind = kind.lower()
    if f".{kind}" in IMAGES:
        sample.images.append(member)
    elif kind in _LABELS:
        return sample.labels.setdefault(kind, member) is member
    return False


def _label_of(tar: Tar, member: Member, kind: str) -> str:
    """The class that a label's member says."""
    what = f"{tar.shown}: its member {member.name}"
    if member.fault:
        raise ToolError("webdataset.label", f"{what} is {member.fault}")
    try:
        text = tar.read(member, _MAX_LABEL_BYTES).decode("utf-8-sig").strip()
        value: Any = json.loads(text) if kind == "json" else text
    except (ValueError, RecursionError):
        raise ToolError(
            "webdataset.label", f"{what} is not {'JSON' if kind == 'json' else 'text'} in UTF-8"
        ) from None
    if isinstance(value, dict):
        value = next((value[name] for name in _JSON_NAMES if name in value), None)
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise ToolError(
            "webdataset.label", f'{what} says no class; give it one, such as {{"label": 3}} or 3'
        )
    name = str(value).strip().splitlines()[0]
    if len(name) > _MAX_NAME:
        raise ToolError(
            "webdataset.label",
            f"{what} has {len(name)} letters, too many for a class; use a .cls member",
        )
    return name
