"""The door of raw collections: recognises how one is organised -> its classes and pictures.

Each layout has a module of its own, which finds pictures; ``collection.collect`` gives
them labels, an order that never changes and the names of their crops. No picture is opened:
whether one can be read shows when it is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.sources.class_list import read_choice
from imagenet_prep.sources.collection import Collection, Source, collect
from imagenet_prep.sources.csv_list import find_csv, find_tsv, is_csv, is_tsv
from imagenet_prep.sources.flat import find_flat, is_flat
from imagenet_prep.sources.folders import find_folders
from imagenet_prep.sources.idx import find_idx, is_idx
from imagenet_prep.sources.ilsvrc import find_ilsvrc, is_ilsvrc
from imagenet_prep.sources.tiny_imagenet import find_tiny, is_tiny
from imagenet_prep.sources.types import Finding, Found, without_collector
from imagenet_prep.sources.webdataset import find_webdataset, is_webdataset
from imagenet_prep.storage.location import Location, Url
from imagenet_prep.storage.remote import AT_ONCE, in_parallel

__all__ = ["LAYOUTS", "Collection", "Source", "scan"]

_Recognise = Callable[[Location], bool]
_Find = Callable[[Location], Finding]
# The first that recognises a source has it; class folders are what is left.
_KNOWN: dict[str, tuple[_Recognise, _Find]] = {
    "ilsvrc": (is_ilsvrc, find_ilsvrc),
    "tiny": (is_tiny, find_tiny),
    "idx": (is_idx, find_idx),
    "flat": (is_flat, find_flat),
    "webdataset": (is_webdataset, find_webdataset),
    "csv": (is_csv, find_csv),
    "tsv": (is_tsv, find_tsv),
    "folders": (lambda src: src.is_dir(), find_folders),
}
LAYOUTS = tuple(sorted(_KNOWN))


def scan(
    src: Location, *, layout: str | None = None, classes: Location | None = None
) -> Collection:
    """A folder or file of raw pictures -> its classes and sources, sorted by key.

    It is on a disk or behind a URL, which comes to the same.
    ``layout`` is one of LAYOUTS; None: it is recognised. ``classes`` is a file with the
    classes to take in the order of their labels, one a line, each with a readable name after
    a tab or comma if wanted; otherwise labels are the positions in the layout's own list or
    in the sorted names of the classes of train. Raises UsageError or ToolError with one
    sentence for what is missing, damaged or leaves a picture without a class.
    """
    src = src.anew() if isinstance(src, Url) else src
    if not src.exists():
        raise UsageError(f"{src}: no such folder or file; name what holds the raw pictures")
    with without_collector():
        choose = None if classes is None else partial(read_choice, classes)
        finding = _find(src, layout)
        if finding.unasked or (isinstance(src, Url) and src.web):
            finding = replace(finding, found=_asked(src, finding.found))
        return collect(src, finding, choose)


def _asked(src: Location, found: Iterable[Found]) -> Iterator[Found]:
    """The same with what servers say of the pictures, where listing them did not say it.

    Raises ToolError where they say nothing of all of them, or of many one after the other:
    that says nothing of the pictures, and crops of theirs are to be kept.
    """
    source, silent, answered = iter(found), 0, False
    while batch := list(islice(source, 4 * AT_ONCE)):
        asked = in_parallel(_ask, [item for item in batch if item.place.needs_asking()])
        for item in batch:
            if item.place.needs_asking():
                item, reason = next(asked)
                silent, answered = (silent + 1, answered) if reason else (0, True)
                if silent > AT_ONCE:
                    raise _silence(src, reason)
            yield item
    if silent and not answered:
        raise _silence(src, reason)


def _silence(src: Location, reason: str) -> ToolError:
    return ToolError(
        f"{src}: the servers of its pictures say nothing of them ({reason}); check the addresses, "
        "the credentials and the network, or try again later"
    )


def _ask(item: Found) -> tuple[Found, str]:
    """A picture with what its server says of it, or the reason why that may come to nothing."""
    place, reason = item.place.asked()
    return item._replace(place=place), reason


def _find(src: Location, layout: str | None) -> Finding:
    if layout is not None:
        if layout not in _KNOWN:
            raise UsageError(f"{layout}: no such layout; there are {', '.join(LAYOUTS)}")
        if layout == "folders" and not src.is_dir():
            raise UsageError(f"{src}: is a file; name the folder that holds the class folders")
        return _KNOWN[layout][1](src)
    for recognise, find in _KNOWN.values():
        if recognise(src):
            return find(src)
    slash = ", and end its URL with /" if isinstance(src, Url) and src.web else ""
    raise UsageError(
        f"{src}: is a file, but no list (.csv, .tsv), array (-idx3-ubyte) or archive (.tar); "
        f"name the folder that holds the raw pictures{slash}"
    )
