"""A beton file -> the files that belong to it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.dataset.classes import Classes
from imagenet_prep.dataset.manifest import Manifest, begins_as_beton
from imagenet_prep.dataset.names import manifest_beside
from imagenet_prep.dataset.shards import Betons, find_betons, stats_of, validation_beside
from imagenet_prep.dataset.statistics import Stats

_NAMED = re.compile(r"([A-Za-z][A-Za-z0-9_-]*)=(.+)")
_RESERVED = {"train", "val"}
# FFCV's header: version (uint16), number of fields (uint16), page size (uint64), samples ...


@dataclass(frozen=True)
class Data:
    """What a run reads: beton files that belong together, their statistics and classes.

    ``validation`` decides which epoch is the best; ``others`` are evaluated besides, by name.
    """

    train: Betons
    validation: Betons | None
    stats: Stats
    classes: Classes
    manifest: Manifest
    others: dict[str, Betons] = field(default_factory=dict)


def find_data(beton: Path, validation: Sequence[str] = ()) -> Data:
    """A beton file or a pattern of shards -> the data of a run.

    ``validation``: ``FILE`` in the place of the val.beton beside ``beton``, and any number of
    ``NAME=FILE``. ToolError where they do not fit together or are not ours.
    """
    train = find_betons(check_ours(beton))
    manifest = train.manifest
    stats = stats_of(train)
    classes = Classes(manifest.classes, manifest.readable)
    main: Betons | None = None
    others: dict[str, Betons] = {}
    for text in validation:
        named = None if Path(text).exists() else _NAMED.fullmatch(text)
        path = check_ours(Path(named[2] if named else text))
        if named is None and main is None:
            main = find_betons(path)
        elif named is not None and named[1] not in {*others, *_RESERVED}:
            others[named[1]] = find_betons(path)
        else:
            raise UsageError(
                "data.validation_names",
                f"--val {text}: give one FILE at most, and further sets as NAME=FILE with "
                "different names, not train or val",
            )
    main = main or validation_beside(train)
    for betons in ([main] if main else []) + [*others.values()]:
        if betons.manifest.classes != manifest.classes:
            raise ToolError(
                "data.other_classes",
                f"{betons}: has other classes than {beton}; build both from one source, or give "
                "another --val",
            )
    return Data(train, main, stats, classes, manifest, others)


def check_ours(beton: Path) -> Path:
    """A beton file, or the one that a symbolic link leads to where the link has no manifest.

    ToolError for a beton file of another tool: one without a manifest beside it.
    """
    if beton.is_symlink() and not manifest_beside(beton).exists():
        beton = beton.resolve()
    if not beton.is_file() or manifest_beside(beton).exists():
        return beton
    if begins_as_beton(beton):
        raise ToolError(
            "beton.foreign",
            f"{beton}: is an FFCV file of another tool, without manifest and statistics; "
            f"convert it with imagenet-prep crop --src {beton} --dst cropped, then "
            "imagenet-prep stats and imagenet-prep build",
        )
    return beton
