"""The door of raw collections: recognises how one is organised -> its classes and pictures.

Each layout has a module of its own, which finds pictures; ``source_types.collect`` gives
them labels, an order that never changes and the names of their crops. No picture is opened:
whether one can be read shows when it is decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from imagenet_prep.artifacts import UsageError
from imagenet_prep.source_classes import read_choice
from imagenet_prep.source_flat import find_flat, is_flat
from imagenet_prep.source_folders import find_folders
from imagenet_prep.source_idx import find_idx, is_idx
from imagenet_prep.source_ilsvrc import find_ilsvrc, is_ilsvrc
from imagenet_prep.source_lists import find_csv, find_tsv, is_csv, is_tsv
from imagenet_prep.source_tiny import find_tiny, is_tiny
from imagenet_prep.source_types import Collection, Finding, Source, collect, without_collector
from imagenet_prep.source_webdataset import find_webdataset, is_webdataset

__all__ = ["LAYOUTS", "Collection", "Source", "scan"]

_Recognise = Callable[[Path], bool]
_Find = Callable[[Path], Finding]
# The first that recognises a source has it; class folders are what is left.
_KNOWN: dict[str, tuple[_Recognise, _Find]] = {
    "ilsvrc": (is_ilsvrc, find_ilsvrc),
    "tiny": (is_tiny, find_tiny),
    "idx": (is_idx, find_idx),
    "flat": (is_flat, find_flat),
    "webdataset": (is_webdataset, find_webdataset),
    "csv": (is_csv, find_csv),
    "tsv": (is_tsv, find_tsv),
    "folders": (Path.is_dir, find_folders),
}
LAYOUTS = tuple(sorted(_KNOWN))


def scan(src: Path, *, layout: str | None = None, classes: Path | None = None) -> Collection:
    """A folder or file of raw pictures -> its classes and sources, sorted by key.

    ``layout`` is one of LAYOUTS; None: it is recognised. ``classes`` is a file with the
    classes to take in the order of their labels, one a line, each with a readable name after
    a tab or comma if wanted; otherwise labels are the positions in the layout's own list or
    in the sorted names of the classes of train. Raises UsageError or ToolError with one
    sentence for what is missing, damaged or leaves a picture without a class.
    """
    if not src.exists():
        raise UsageError(f"{src}: no such folder or file; name what holds the raw pictures")
    with without_collector():
        finding = _find(src, layout)
        choice = None
        if classes is not None:
            known = {item.class_name for item in finding.found} | set(finding.order or ())
            choice = read_choice(classes, known)
        return collect(src, finding, choice)


def _find(src: Path, layout: str | None) -> Finding:
    if layout is not None:
        if layout not in _KNOWN:
            raise UsageError(f"{layout}: no such layout; there are {', '.join(LAYOUTS)}")
        if layout == "folders" and not src.is_dir():
            raise UsageError(f"{src}: is a file; name the folder that holds the class folders")
        return _KNOWN[layout][1](src)
    for recognise, find in _KNOWN.values():
        if recognise(src):
            return find(src)
    raise UsageError(
        f"{src}: is a file, but no list (.csv, .tsv), array (-idx3-ubyte) or archive (.tar); "
        "name the folder that holds the raw pictures"
    )
