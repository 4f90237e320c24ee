"""What is known of ImageNet (ILSVRC2012) itself: classes, names, the labels of val, counts.

The tables are files beside this module: ``data/imagenet_classes.tsv`` (wnid, ILSVRC2012_ID,
name; in the order of the labels) and ``data/imagenet_val_labels.txt`` (line i: the label of
image i of val).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from importlib import resources

COUNTS = {"train": 1_281_167, "val": 50_000}
_WNID_NAME = re.compile(r"(?:n\d{8}_\d+|ILSVRC2012_val_\d{8})_(n\d{8})\.[^./]+")
_VAL_NAME = re.compile(r"(?:.*/)?ILSVRC2012_val_(\d{8})(?:_n\d{8})?\.[^./]+", re.DOTALL)


@functools.cache
def names() -> dict[str, str]:
    """wnid -> name of the 1,000 classes, in the order of their labels."""
    rows = [line.split("\t") for line in _table("imagenet_classes.tsv").splitlines()[1:]]
    return {wnid: name for wnid, _, name in rows}


@functools.cache
def _val_wnids() -> tuple[str, ...]:
    wnids = tuple(names())
    return tuple(wnids[int(line)] for line in _table("imagenet_val_labels.txt").split())


def val_class(name: str) -> str:
    """``ILSVRC2012_val_00000001.JPEG`` -> its wnid; "" for any other name."""
    match = _VAL_NAME.fullmatch(name)
    number = int(match[1]) if match else 0
    return _val_wnids()[number - 1] if 1 <= number <= COUNTS["val"] else ""


def class_in_name(name: str) -> str:
    """The wnid of an image by its name, as Hugging Face's archives and ImageNet's val have it:
    ``n01440764_10026_n01440764.JPEG``, ``ILSVRC2012_val_00000001.JPEG``; "" for others."""
    match = _WNID_NAME.fullmatch(name)
    return match[1] if match and match[1] in names() else val_class(name)


def count_notices(classes: Collection[str], splits: Mapping[str, int]) -> list[str]:
    """For ImageNet's own 1,000 classes: each split whose number of images is another."""
    if set(classes) != names().keys():
        return []
    return [
        f"{split} has {count:,} images; ImageNet has {COUNTS[split]:,} ({count - COUNTS[split]:+,})"
        for split, count in sorted(splits.items())
        if split in COUNTS and count != COUNTS[split]
    ]


def _table(name: str) -> str:
    file = resources.files("imagenet_prep.containers") / "data" / name
    return file.read_text(encoding="utf-8")
