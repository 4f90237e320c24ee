"""WebDataset shards, a folder of tars -> their classes and images, read in place.

Members that share a name up to its first dot are one sample: ``0001.jpg`` with its class in
``0001.cls`` (a number or a name), ``.label``, ``.json`` ({"label": ...}) or ``.txt``. Where no
member has a plain suffix behind its first dot, names go up to their last dot
(``img.0001.jpg``). A shard belongs to the split that a word of its name or folder tells
(``imagenet-val-0003.tar``), else to train. Numbers are the labels as they are.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from imagenet_prep.containers.archive import is_archive
from imagenet_prep.containers.names import (
    IMAGES,
    entries_of,
    is_folder,
    may_be_image,
    safe_part,
    split_in,
    text_of,
)
from imagenet_prep.containers.source import Finding, Source, found, in_memory
from imagenet_prep.containers.tar import Member, Tar, open_tar
from imagenet_prep.core.errors import ToolError
from imagenet_prep.storage.location import Location, Url, each, location_in

_LABELS = ("cls", "label", "class", "json", "txt")
_JSON_NAMES = ("label", "cls", "class", "class_id", "class_name", "target")
_MAX_LABEL_BYTES = 1 << 20
_MAX_NAME = 200
_MAX_CLASSES = 100_000
_LOOKED_AT = 50
_LOOKED_AT_SHARDS = 4
_LOOKED_AT_FOLDERS = 3
_CAPTIONS_FROM = 50


@dataclass
class _Sample:
    """The members of a sample that matter."""

    images: list[Member] = field(default_factory=list)
    others: list[Member] = field(default_factory=list)
    labels: dict[str, Member] = field(default_factory=dict)


@dataclass
class _Left:
    """What was left out: by reason the number of samples, and the first."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        """Counts one."""
        self.counts[reason] += 1
        self.first.setdefault(reason, where)

    def notices(self) -> list[str]:
        """One notice for each reason."""
        return [
            f"{count} samples left out: {reason} (first: {self.first[reason]})"
            for reason, count in self.counts.most_common()
        ]


def is_webdataset(src: Location) -> bool:
    """Whether ``src`` is a tar, or a folder with tars, of images and labels.

    A folder of nothing but tars counts too where it is no archive of folders, so that the
    reason shows.
    """
    if not src.is_dir():
        return _is_shard(src.name) and _has_samples(src)
    first = list(itertools.islice(_shards(src, few=True), _LOOKED_AT_SHARDS))
    if any(_has_samples(where) for _, where in first):
        return True
    if not first or is_archive(src):
        return False
    holding = {name.partition("/")[0] for name, _ in _shards(src, few=True)}
    folders = [entry for entry in entries_of(src) if is_folder(entry)]
    others = (e for e in entries_of(src) if not is_folder(e) and not _is_shard(e.name))
    return all(text_of(f.name) in holding for f in folders[:_LOOKED_AT_FOLDERS]) and not any(
        map(may_be_image, others)
    )


def _has_samples(where: Location) -> bool:
    try:
        members = list(itertools.islice(open_tar(where).members(), _LOOKED_AT))
    except ToolError:
        return False
    return any(sample.images and sample.labels for sample in _samples(members).values())


def find_webdataset(src: Location) -> Finding | None:
    """A folder of shards, or one shard -> their images; None: there are no shards.

    Samples without a class, and empty shards, are left out and counted. Raises ToolError for a
    damaged shard, and where no sample has a class.
    """
    shards = list(_shards(src)) if src.is_dir() else [(text_of(src.name), src)]
    if not shards:
        return None
    left, interned, captions = _Left(), dict[str, str](), 0
    sources: list[Source] = []
    find = functools.partial(_find_shard, interned, left)
    for source, kind in each(find, shards, src):
        captions += kind == "txt"
        sources.append(source)
    if not sources and left.counts:
        raise ToolError("webdataset.no_label", f"{src}: {left.notices()[0]}")
    if captions == len(sources) >= _CAPTIONS_FROM and len(interned) > len(sources) // 2:
        raise ToolError(
            "webdataset.captions",
            f"{src}: the .txt members differ from sample to sample, so they are captions and not "
            "classes; put the class into a .cls member",
        )
    finding = in_memory(sources, left.notices())
    finding.order = _order(src, interned)
    return finding


def _order(src: Location, names: dict[str, str]) -> tuple[str, ...]:
    """The classes by label: numbers are labels, so those between that are missing count too."""
    if not all(re.fullmatch(r"0|[1-9]\d{0,17}", name, re.ASCII) for name in names):
        return tuple(sorted(names))
    most = max(map(int, names), default=-1)
    if most >= _MAX_CLASSES:
        raise ToolError(
            "webdataset.label", f"{src}: has a sample of class {most}, which is too many; check it"
        )
    return tuple(map(str, range(most + 1)))


def _shards(
    src: Location, prefix: str = "", *, few: bool = False
) -> Iterator[tuple[str, Location]]:
    """(name below ``src``, where it is) of the tars in it and in its folders; ``few``: only in
    the first folders, to find out whether there are any."""
    try:
        entries = entries_of(src)
    except ToolError:
        if not few:
            raise
        return  # whoever needs it will tell
    folders = [entry for entry in entries if is_folder(entry)]
    looked_at = {entry.name for entry in folders[: _LOOKED_AT_FOLDERS if few else None]}
    for entry in entries:
        name = f"{prefix}{text_of(entry.name)}"
        if entry.name in looked_at:
            yield from _shards(location_in(entry), f"{name}/", few=few)
        elif _is_shard(entry.name) and entry not in folders:
            yield name, location_in(entry)


def _is_shard(name: str) -> bool:
    return name.lower().endswith(".tar")


def _find_shard(
    interned: dict[str, str], left: _Left, shard: tuple[str, Location]
) -> Iterator[tuple[Source, str]]:
    """(image, kind of its label) of every sample of a shard that has an image and a class."""
    shown, where = shard[0].removesuffix(".tar"), shard[1]
    folder = safe_part(shown.replace("/", "-"))
    split = split_in(re.split(r"[^a-z0-9]+", shown.lower()))
    try:
        tar = open_tar(where)
        for image, name, kind in _images(tar, where, shown, left):
            name = interned.setdefault(name, name)
            inside = f"{safe_part(name)}/{folder}/{image.name}"
            key, place = f"{shown}.tar/{image.name}", tar.place_of(image)
            yield found(key, split, name, inside, place), kind
    except ToolError as error:
        if error.code != "archive.empty":
            raise
        left.add("the shard is empty", f"{shown}.tar")


def _images(
    tar: Tar, where: Location, shown: str, left: _Left
) -> Iterator[tuple[Member, str, str]]:
    """(image, its class, the kind of member that tells it) of every sample with an image."""
    members = []
    for member in tar.members(joined=True):
        members.append(member)
        if isinstance(where, Url) and member.name.rpartition(".")[2].lower() in _LABELS:
            tar.keep(member)
    if not members:
        left.add("the shard is empty", f"{shown}.tar")
    for key, sample in _samples(members).items():
        images = sample.images or sample.others[:1]
        if not images:
            continue
        kind = next((kind for kind in _LABELS if kind in sample.labels), "")
        name, fault = _label_of(tar, sample.labels[kind]) if kind else ("", "it has no class")
        if fault:
            left.add(fault, f"{shown}.tar/{key}")
            continue
        for image in images:
            yield image, name, kind


def _samples(members: list[Member]) -> dict[str, _Sample]:
    """Key -> the members of each sample."""
    names = (member.name.rpartition("/")[2].partition(".")[2].lower() for member in members)
    plain = any(kind in _LABELS or f".{kind}" in IMAGES for kind in names)
    by_last = {} if plain else _by_key(members, str.rpartition)
    if any(sample.images and sample.labels for sample in by_last.values()):
        return by_last
    return _by_key(members, str.partition)


def _by_key(
    members: list[Member], cut: Callable[[str, str], tuple[str, str, str]]
) -> dict[str, _Sample]:
    samples: dict[str, _Sample] = {}
    for member in members:
        folder, slash, name = member.name.rpartition("/")
        stem, dot, kind = cut(name, ".")
        kind = kind.lower()
        if not stem or not dot or name[0] == ".":
            continue
        sample = samples.setdefault(folder + slash + stem, _Sample())
        last = kind.rpartition(".")[2]
        if f".{kind}" in IMAGES:
            sample.images.append(member)
        elif kind in _LABELS or (last in _LABELS[:3] and last not in sample.labels):
            sample.labels.setdefault(last, member)
        elif f".{last}" in IMAGES:
            sample.others.append(member)
    return samples


def _label_of(tar: Tar, member: Member) -> tuple[str, str]:
    """(the class that a label's member tells, why it tells none)."""
    kind = member.name.rpartition(".")[2].lower()
    if member.fault:
        return "", f"its label is {member.fault}"
    if member.length > _MAX_LABEL_BYTES:
        return "", "its label is too large"
    try:
        text = tar.read(member, _MAX_LABEL_BYTES).decode("utf-8-sig").strip()
        value: Any = json.loads(text) if kind == "json" else text
    except (ValueError, RecursionError):
        return "", f"its label is not {'JSON' if kind == 'json' else 'text'} in UTF-8"
    if isinstance(value, dict):
        value = next((value[name] for name in _JSON_NAMES if name in value), None)
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        return "", "its label has no class"
    name = str(value).strip().splitlines()[0]
    return (name, "") if len(name) <= _MAX_NAME else ("", "its class has a name that is too long")
