"""Names of the files that pass between the stages."""

from __future__ import annotations

import re
from pathlib import Path

SPLITS = ("train", "val", "test")
CLASSES_NAME = "classes.json"
JOURNAL_NAME = "crop.sqlite"
STATS_NAME = "stats.npz"
CROP_SUFFIX = ".JPEG"

SHARD_NUMBER = re.compile(r"-\d{5}-of-\d{5}$")
"""How the name of a shard ends, without ``.beton``."""


def manifest_beside(beton: Path) -> Path:
    """``train.beton`` -> ``train.beton.json``."""
    return beton.with_name(beton.name + ".json")


def stats_beside(beton: Path) -> Path:
    """``train.beton``, and each of its shards -> ``train.stats.npz``."""
    return beton.with_name(SHARD_NUMBER.sub("", beton.stem) + ".stats.npz")
