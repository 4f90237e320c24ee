"""The options about the layout of raw images, and how what was recognised is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imagenet_prep.core.console import say
from imagenet_prep.dataset.names import SPLITS

if TYPE_CHECKING:
    from imagenet_prep.sources.scan import Scan
    from imagenet_prep.storage.location import Location

SCAN_OPTIONS = ("layout", "classes", "splits", "class_order")
"""The parameters of ``sources.scan.scan`` that are options."""
F = TypeVar("F", bound=Callable[..., Any])


def scan_options(command: F) -> F:
    """--split and --class-order."""
    for option in (
        click.option(
            "--class-order",
            type=click.Choice(("name", "number")),
            help="Order of classes that are named by numbers.  [default: number, with a notice]",
        ),
        click.option(
            "--split",
            "splits",
            metavar="NAME=SPLIT",
            multiple=True,
            callback=_splits,
            help="Folder NAME of --src is train, val or test; or class: no split. Repeatable.",
        ),
    ):
        command = option(command)
    return command


def _splits(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """``NAME=train`` of each option -> by name."""
    found = {}
    for value in values:
        name, _, split = value.rpartition("=")
        if not name or split not in (*SPLITS, "class"):
            raise click.BadParameter(
                f"{value!r} is not NAME=train, NAME=val, NAME=test or NAME=class", ctx, param
            )
        found[name.strip("/")] = split
    return found


def look(src: Location, **options: Any) -> Scan:
    """What ``crop --dry-run`` shows: the scan, with all images counted."""
    from imagenet_prep.sources.scan import scan

    found = scan(src, **options)
    for _ in found:
        pass
    return found


def show_scan(found: Scan) -> None:
    """What was recognised -> stderr."""
    for line in scan_lines(found):
        say(line)


def scan_value(found: Scan) -> dict[str, Any]:
    """What ``crop --dry-run --json`` prints."""
    return {
        "layout": found.layout,
        "classes": len(found.classes),
        "splits": dict(sorted(found.splits.items())),
        "notices": list(found.notices),
    }


def scan_lines(found: Scan) -> list[str]:
    """What was recognised, for people: layout, classes, images of each split; the notices."""
    splits = ", ".join(f"{split} {count:,}" for split, count in sorted(found.splits.items()))
    head = f"layout {found.layout}: {len(found.classes):,} classes; images: {splits}"
    return [head, *(f"note: {notice}" for notice in found.notices)]
