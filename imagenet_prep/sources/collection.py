"""What a layout found -> the collection: labels, an order that never changes, safe crop names.

Nothing here holds the sources one by one, so that a hundred million of them fit into memory:
they are packed (``packed``) as they are found, and their crops' names are made as they are
read. Only where two would share a crop are the names of their like looked at together.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Collection as Items
from dataclasses import dataclass
from typing import NamedTuple, overload

from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset.classes import Classes
from imagenet_prep.dataset.names import CROP_SUFFIX
from imagenet_prep.sources.types import Choice, Finding, Found, FoundList
from imagenet_prep.storage.byte_range import Place
from imagenet_prep.storage.location import Location


class Source(NamedTuple):
    """One raw picture: ``key`` relative to the source, ``crop`` relative to the destination."""

    key: str
    split: str
    label: int
    place: Place
    crop: str


@dataclass(frozen=True)
class Sources(Sequence[Source]):
    """The pictures of a collection, sorted by key; made anew whenever they are read.

    ``longer`` are the crops, by key, that do not have the short name. Reading one by its
    number reads all before it.
    """

    found: FoundList
    labels: Mapping[str, int]
    longer: Mapping[str, str]
    total: int

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Source]:
        labels, longer, new = self.labels, self.longer, tuple.__new__
        for row in self.found.rows():
            key, split, class_name, crop = row[:4]
            label = labels.get(class_name)
            if label is None:
                continue  # of a class that was not chosen
            if longer:
                crop = longer.get(key, crop)
            # As Source(...) and Place(...) would, in half of the time.
            yield new(Source, (key, split, label, new(Place, row[5:]), crop))

    @overload
    def __getitem__(self, index: int) -> Source: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Source]: ...
    def __getitem__(self, index: int | slice) -> Source | Sequence[Source]:
        if isinstance(index, slice):
            return list(self)[index]
        at = index + self.total * (index < 0)
        if not 0 <= at < self.total:
            raise IndexError(index)
        return next(itertools.islice(self, at, None))


@dataclass(frozen=True)
class Collection:
    """The classes of a raw collection and its pictures, sorted by key."""

    classes: Classes
    sources: Sequence[Source]


Choose = Callable[[set[str]], Choice]
"""The classes that there are -> those to take: what ``--classes`` asks for."""


def collect(src: Location, finding: Finding, choose: Choose | None = None) -> Collection:
    """What a layout found -> the collection, with only the classes that are chosen.

    Raises ToolError with one sentence when nothing is left, when a split has a class that
    the list of classes has not, and when two names differ only in upper and lower case.
    """
    found = finding.found if isinstance(finding.found, FoundList) else FoundList(finding.found)
    counts = dict(found.counts)
    choice = None
    if choose is not None:
        choice = choose({class_name for _, class_name in counts} | set(finding.order or ()))
        wanted = {name for name, _ in choice}
        counts = {pair: count for pair, count in counts.items() if pair[1] in wanted}
    if not counts:
        raise ToolError(
            f"{src}: holds no pictures where it would have them; put them into class folders "
            "below it, or say how it is organised with --layout"
        )
    labels = _labels(src, counts, finding.order, choice)
    readable = {name: finding.readable[name] for name in labels if name in finding.readable}
    readable |= {name: title for name, title in choice or () if title}
    sources = Sources(found, labels, _longer_names(src, found, labels), sum(counts.values()))
    return Collection(Classes(tuple(labels), readable), sources)


def _labels(
    src: Location,
    present: Items[tuple[str, str]],
    order: tuple[str, ...] | None,
    choice: Choice | None,
) -> dict[str, int]:
    """Class name -> label: as chosen, as the layout says, or the sorted classes of train.

    ``present`` are the pairs of split and class. Where there is no train they are the classes
    of all splits.
    """
    by_split: dict[str, set[str]] = {}
    for split, class_name in present:
        by_split.setdefault(split, set()).add(class_name)
    if choice is not None:
        names = [name for name, _ in choice]
    elif order is not None:
        names = list(order)
    else:
        names = sorted(by_split.get("train") or set().union(*by_split.values()))
    labels = {name: label for label, name in enumerate(names)}
    for split, classes in sorted(by_split.items()):
        foreign = sorted(classes - labels.keys())
        if foreign:
            raise ToolError(
                f"{src}: the split {split} has the class {foreign[0]}, which "
                f"{'train' if order is None else 'the list of classes'} does not have; the "
                "splits need the same classes"
            )
    lowered: dict[str, str] = {}
    for name in names:
        other = lowered.setdefault(name.lower(), name)
        if other != name:
            raise ToolError(
                f"{src}: the classes {other} and {name} differ only in upper and lower case, "
                "which not every disk can hold; rename or merge them"
            )
    return labels


def _longer_names(src: Location, found: FoundList, labels: Mapping[str, int]) -> dict[str, str]:
    """Key -> crop of those that cannot have the usual name.

    The whole name is kept where two files would share a crop. All names that a picture can
    get begin alike up to the first dot, so only those with such a beginning in common with
    one that is there twice are looked at together.
    """
    shared = found.shared()
    if not shared:
        return {}
    rows = ((row[2], row[3].lower()) for row in found.rows())
    beginnings = {
        _beginning(crop) for name, crop in rows if name in labels and hash(crop) in shared
    }
    groups: dict[str, list[tuple[Found, str]]] = {}
    rows = ((row[2], row[3]) for row in found.rows())
    for item, (class_name, crop) in zip(found, rows, strict=True):
        beginning = _beginning(crop.lower())
        if beginning in beginnings and class_name in labels:
            groups.setdefault(beginning, []).append((item, crop))
    return {
        item.key: crop
        for members in groups.values()
        for (item, _), crop in zip(members, _unique(src, members), strict=True)
    }


def _beginning(name: str) -> str:
    """``train/cat/a.b.jpeg`` -> ``train/cat/a``."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _unique(src: Location, members: list[tuple[Found, str]]) -> list[str]:
    """The crops of pictures that begin alike. The whole name is kept where two would share one.

    That can meet a third file (``a.jpg``, ``a.png`` and ``a.jpg.png``), so it is repeated
    until nothing changes. Disks that do not tell upper case from lower count too.
    """
    items, short = zip(*members, strict=True)
    names = list(short)
    while True:
        counts = Counter(name.lower() for name in names)
        if len(counts) == len(names):
            return names
        changed = False
        for index, item in enumerate(items):
            if counts[names[index].lower()] > 1 and names[index] is short[index]:
                names[index] = f"{item.split}/{item.inside}{CROP_SUFFIX}"
                changed = True
        if not changed:
            raise ToolError(_clash(src, items, names, counts))


def _clash(src: Location, items: Sequence[Found], names: list[str], counts: Counter[str]) -> str:
    """The sentence about the first two whose crops cannot be told apart."""
    worst = next(name.lower() for name in names if counts[name.lower()] > 1)
    one, two = [i.key for i, name in zip(items, names, strict=True) if name.lower() == worst][:2]
    if one == two:
        return f"{src}: {one} is there twice; remove one of them"
    if one.lower() == two.lower():
        return (
            f"{src}: {one} and {two} differ only in upper and lower case, which not every disk "
            "can hold; rename one of them"
        )
    return f"{src}: the crops of {one} and {two} would have the same name; rename one of them"
