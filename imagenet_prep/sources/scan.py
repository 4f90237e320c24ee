"""A raw image collection -> its layout, its classes and its images (``Source``).

Each layout has its own functions, which find images; here they get their labels, by the file of
``--classes`` or as the layout defines, and the names of their crops. No image is opened: whether
one can be read shows when it is decoded.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from itertools import islice
from operator import itemgetter

from imagenet_prep.containers import imagenet
from imagenet_prep.containers.names import Given, read_text, without_collector
from imagenet_prep.containers.source import Finding, Source
from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.core.threads import map_in_threads
from imagenet_prep.dataset.classes import Classes
from imagenet_prep.dataset.names import CROP_SUFFIX
from imagenet_prep.sources.layouts import LAYOUTS, find
from imagenet_prep.storage.location import Location, Url
from imagenet_prep.storage.remote import AT_ONCE

__all__ = ["LAYOUTS", "Scan", "Source", "scan"]

_LONGEST_NAME_BYTES = 255
_SOME = 3

Choice = Sequence[tuple[str, str]]
"""(class, name for people or "") in the order of the labels."""


class Scan:
    """The images of a collection, found while they are iterated over, in no order of keys.

    Iterate once. ``layout`` is the name of the recognised layout, ``classes`` the class list.
    After the iteration ``splits`` has the number of images of each split and ``notices`` what
    was assumed or left out. Iterating raises ToolError for faults of the
    collection and where it has no image at all.
    """

    def __init__(
        self, src: Location, layout: str, finding: Finding, choice: Choice | None, order: str
    ) -> None:
        self.layout = layout
        self.notices = finding.notices
        self.splits: dict[str, int] = {}
        self._src = src
        self._finding = finding
        self._chosen = choice is not None
        self._labels = _labels(src, finding, choice, order)
        readable = {c: finding.readable[c] for c in self._labels if c in finding.readable}
        readable |= {name: title for name, title in choice or () if title}
        self.classes = Classes(tuple(self._labels), readable)

    @cached_property
    def sources(self) -> list[Source]:
        """All images in memory, sorted by key."""
        with without_collector():
            return sorted(self)

    def __iter__(self) -> Iterator[Source]:
        counts: Counter[tuple[str, str]] = Counter()
        for group in self._finding.groups:
            kept = [s for s in group if s.class_name in self._labels]
            if len(kept) < len(group) and not self._chosen:
                foreign = next(s for s in group if s.class_name not in self._labels)
                raise _foreign_class(self._src, foreign.split, foreign.class_name, "the class list")
            counts.update(map(itemgetter(1, 2), kept))  # (split, class)
            yield from self._named(kept)
        if not counts:
            raise ToolError(
                "source.empty",
                f"{self._src}: no images found; put them into one folder per class, or name "
                "the layout with --layout",
            )
        for (split, _), count in sorted(counts.items()):
            self.splits[split] = self.splits.get(split, 0) + count
        self.notices += _empty_classes(self._finding, self._labels, counts)
        self.notices += imagenet.count_notices(self._labels, self.splits)

    def _named(self, group: Sequence[Source]) -> Iterator[Source]:
        """The sources of a group with their labels and the names of their crops."""
        labels, new = self._labels, tuple.__new__
        crops = [_usual(source) for source in group]
        if len({_folded(crop) for crop in crops}) < len(crops):
            crops = _unique(self._src, group, crops)
        for source, crop in zip(group, crops, strict=True):
            key, split, class_name = source[:3]
            if len(crop) > 60:
                crop = _fitting(crop, key)
            elif crop == key:
                crop = key  # one text in memory, not two
            # As source._replace would, in a third of the time.
            yield new(Source, (key, split, class_name, labels[class_name], crop, *source[5:]))


def scan(
    src: Location,
    *,
    layout: str | None = None,
    classes: Location | None = None,
    splits: Given | None = None,
    class_order: str | None = None,
) -> Scan:
    """A folder, file or URL of raw images -> what is in it.

    ``layout`` is one of LAYOUTS; None: it is recognised. ``classes`` is a file with the classes
    to take in the order of their labels (``read_choice``); otherwise the layout defines the
    order, or it is the order of the names, of numbers as numbers (``class_order``: "name" or
    "number"). ``splits`` maps folders to the splits that they are. Raises UsageError or ToolError
    for what is missing, damaged, or leaves it open which class an image has.
    """
    src = src.anew() if isinstance(src, Url) else src
    if not src.exists():
        raise UsageError(
            "source.missing", f"{src}: no such folder or file; give the folder of the raw images"
        )
    if not src.is_dir() and not src.is_file():
        raise UsageError(
            "source.not_a_file", f"{src}: is a pipe, socket or device; give a folder or a file"
        )
    with without_collector():
        name, found = find(src, layout, splits or {})
        if found.unasked or (isinstance(src, Url) and src.web):
            found.groups = _asked(src, found.groups)
        known = set().union(*found.classes.values(), found.order or ())
        choice = None if classes is None else read_choice(classes, known)
        return Scan(src, name, found, choice, class_order or "")


def _asked(src: Location, groups: Iterable[Sequence[Source]]) -> Iterator[list[Source]]:
    """The same groups, with what the servers report of images that were not listed with it.

    Raises ToolError where they report nothing of all images, or of many one after the other:
    then the server is the fault and not the images, and their crops are kept.
    """
    silent, answered = 0, False
    for group in groups:
        rest, known = iter(group), []
        while batch := list(islice(rest, 4 * AT_ONCE)):
            unasked = [source for source in batch if source.place.needs_asking()]
            answers = map_in_threads(_ask, unasked, jobs=AT_ONCE, ahead=1)
            for source in batch:
                if source.place.needs_asking():
                    source, reason = next(answers)
                    silent, answered = (silent + 1, answered) if reason else (0, True)
                    if silent > AT_ONCE:
                        raise _silence(src, reason)
                known.append(source)
        yield known
    if silent and not answered:
        raise _silence(src, reason)


def _silence(src: Location, reason: str) -> ToolError:
    return ToolError(
        "remote.silent",
        f"{src}: no response from the image server ({reason}); check the addresses, the "
        "credentials and the network, or try again later",
    )


def _ask(source: Source) -> tuple[Source, str]:
    """A source with what its server reports, or the reason why that may fail."""
    place, reason = source.place.asked()
    return source._replace(seen=place.seen), reason


def read_choice(path: Location, known: Collection[str]) -> Choice:
    """One class a line, with a name for people after a tab, a comma or a space -> the choice.

    The space is that of Kaggle's LOC_synset_mapping.txt. A comma or space may belong to the
    class's own name, where ``known`` has such a class. Empty lines are skipped. Raises
    UsageError or ToolError for a class that is not ``known`` or is listed twice.
    """
    if not path.is_file():
        what = "is not a file" if path.exists() else "no such file"
        raise UsageError("classes.missing", f"{path}: {what}; give a file with one class a line")
    chosen: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "the class list").splitlines(), 1):
        if not line.strip():
            continue
        name, title = _parts(line.strip(), known)
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {_some(known)}"
            raise ToolError(
                "classes.unknown", f"{path}: line {number}: the source has no class {name}; {hint}"
            )
        if name in chosen:
            raise ToolError(
                "classes.duplicate",
                f"{path}: line {number}: the class {name} is listed twice; remove one",
            )
        chosen[name] = title
    if not chosen:
        raise ToolError("classes.empty", f"{path}: lists no classes; write one a line")
    return tuple(chosen.items())


def _parts(line: str, known: Collection[str]) -> tuple[str, str]:
    """(class, name for people) of a line."""
    if line in known:
        return line, ""
    parts = [line.partition(separator) for separator in "\t, "]
    usable = [(name.strip(), title.strip()) for name, mark, title in parts if mark]
    return next((pair for pair in usable if pair[0] in known), usable[0] if usable else (line, ""))


def _some(known: Collection[str]) -> str:
    names = sorted(known)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _labels(src: Location, found: Finding, choice: Choice | None, how: str) -> dict[str, int]:
    """Class name -> label: as chosen, as the layout defines, or by the names of the classes of
    train; where there is no train, of all splits."""
    train = found.classes.get("train")
    if choice is not None:
        names: Iterable[str] = [name for name, _ in choice]
    elif found.order is not None:
        names = found.order
    else:
        names = _ordered(set(train or set().union(*found.classes.values())), how, found)
    labels = {name: label for label, name in enumerate(names)}
    for split, classes in sorted(found.classes.items()):
        foreign = sorted(set(classes) - labels.keys())
        if foreign and choice is None:
            whose = "train" if found.order is None else "the class list"
            raise _foreign_class(src, split, foreign[0], whose)
    _check_names(src, labels)
    return labels


def _ordered(names: set[str], how: str, found: Finding) -> list[str]:
    """The classes in the order of their names, or of the numbers that the names are."""
    by_name = sorted(names)
    if how == "name" or not all(name.isascii() and name.isdigit() for name in names):
        return by_name
    by_number = sorted(names, key=lambda name: (int(name), name))
    if by_number != by_name and how != "number":
        found.notices.append(
            "the classes are named by numbers and ordered as numbers; other tools order them as "
            "text (--class-order name)"
        )
    return by_number


def _check_names(src: Location, names: Iterable[str]) -> None:
    """ToolError for control characters, and for names that not every disk can tell apart."""
    folded: dict[str, str] = {}
    for name in names:
        if any(unicodedata.category(char) == "Cc" for char in name):
            raise ToolError(
                "source.class_name",
                f"{src}: the class {name!r} has a control character in its name; rename it",
            )
        other = folded.setdefault(_folded(name), name)
        if other != name:
            raise ToolError(
                "source.class_names_alike",
                f"{src}: the classes {other} and {name} differ only in upper and lower case or "
                "in their Unicode form, and not every disk can hold both; rename or merge them",
            )


def _foreign_class(src: Location, split: str, name: str, whose: str) -> ToolError:
    return ToolError(
        "source.class_unknown",
        f"{src}: the split {split} has the class {name}, which {whose} does not have; all splits "
        "need the same classes (leave classes out with --classes)",
    )


def _empty_classes(
    found: Finding, labels: dict[str, int], counts: Counter[tuple[str, str]]
) -> Iterator[str]:
    """One notice for each split about its classes without any image."""
    for split, classes in sorted(found.classes.items()):
        empty = sorted(name for name in classes if name in labels and not counts[split, name])
        if empty:
            some = ", ".join(empty[:_SOME]) + (", ..." if len(empty) > _SOME else "")
            yield f"{split}: {len(empty)} classes have no images and keep their labels: {some}"


def _folded(name: str) -> str:
    """What a disk that ignores case and Unicode forms takes a name for."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).lower()


def _usual(source: Source) -> str:
    """``train`` and ``ant/a.b.jpg`` -> ``train/ant/a.b.JPEG``."""
    inside = source.crop
    stem, _, suffix = inside.rpartition(".")
    if "/" in suffix or not stem or stem[-1] == "/":
        stem = inside
    return f"{source.split}/{stem}{CROP_SUFFIX}"


def _unique(src: Location, group: Sequence[Source], usual: list[str]) -> list[str]:
    """The names of crops, with the suffix of the image kept where two would be equal.

    That can meet a third one (``a.jpg``, ``a.png`` and ``a.jpg.png``), so it is repeated until
    nothing changes.
    """
    crops = list(usual)
    while True:
        counts = Counter(map(_folded, crops))
        clashing = [at for at, crop in enumerate(crops) if counts[_folded(crop)] > 1]
        if not clashing:
            return crops
        changing = [at for at in clashing if crops[at] is usual[at]]
        if not changing:
            raise _clash(src, [(group[at].key, crops[at]) for at in clashing])
        for at in changing:
            crops[at] = f"{group[at].split}/{group[at].crop}{CROP_SUFFIX}"


def _clash(src: Location, clashing: list[tuple[str, str]]) -> ToolError:
    """The error about the first two images whose crops cannot be told apart."""
    worst = _folded(clashing[0][1])
    one, two = [key for key, crop in clashing if _folded(crop) == worst][:2]
    if one == two:
        return ToolError("source.duplicate", f"{src}: {one} is there twice; remove one of them")
    return ToolError(
        "source.names_alike",
        f"{src}: {one} and {two} cannot both have a crop, because their names differ only in "
        "upper and lower case, in their Unicode form or in what a file name cannot hold; rename "
        "one of them",
    )


def _fitting(crop: str, key: str) -> str:
    """The same with a last part of at most 255 bytes; a digest takes the place of its end."""
    folder, _, name = crop.rpartition("/")
    if len(name.encode()) <= _LONGEST_NAME_BYTES:
        return key if crop == key else crop
    start = name.encode()[: _LONGEST_NAME_BYTES - 25].decode("utf-8", "ignore")
    return f"{folder}/{start}-{sha256(key.encode()).hexdigest()[:16]}{CROP_SUFFIX}"
