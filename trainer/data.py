"""A beton -> the files that belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset.classes import Classes
from imagenet_prep.dataset.manifest import Manifest
from imagenet_prep.dataset.shards import Betons, find_betons, stats_of, validation_beside
from imagenet_prep.dataset.statistics import Stats


@dataclass(frozen=True)
class Data:
    """What a run reads: betons that belong together, their statistics and classes."""

    train: Betons
    validation: Betons | None
    stats: Stats
    classes: Classes
    manifest: Manifest


def find_data(beton: Path) -> Data:
    """The betons and statistics that belong to ``beton``, a file or a pattern of shards;
    ToolError where they do not fit."""
    train = find_betons(beton)
    manifest = train.manifest
    stats = stats_of(train)
    classes = Classes(manifest.classes, manifest.readable)
    validation = validation_beside(train)
    if validation is not None and validation.manifest.classes != manifest.classes:
        raise ToolError(
            f"{validation}: has other classes than {beton}; build both from one source, or "
            "move one of them elsewhere"
        )
    return Data(train, validation, stats, classes, manifest)
