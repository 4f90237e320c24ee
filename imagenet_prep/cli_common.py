"""What the commands of ``imagenet-prep`` share: options, and how a result is printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from imagenet_prep.crop_settings import CropSettings
from imagenet_prep.terminal import one_line, say

PROGRAM = "imagenet-prep"
FOLDER = click.Path(path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
jobs_option = click.option(
    "--jobs", type=click.IntRange(min=1), help="Workers.  [default: one per processor]"
)
size_option = click.option(
    "--size",
    type=click.IntRange(min=1, max=4096),
    default=CropSettings.size,
    show_default=True,
    help="Side of the crops in pixels.",
)


def print_result(as_json: bool, value: dict[str, Any], lines: Sequence[str]) -> None:
    """The result of a command: ``value`` as JSON, or ``lines`` for people."""
    click.echo(json.dumps(value) if as_json else "\n".join(map(one_line, lines)))


def warn_stock_pillow() -> None:
    from imagenet_prep import describe

    sentence = describe.stock_pillow()
    if sentence:
        say(f"{PROGRAM}: warning: {sentence}")
