"""The doorway of the statistics: ``imagenet-prep stats``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagenet_prep import outcome
from imagenet_prep.artifacts import STATS_NAME
from imagenet_prep.cli_common import (
    FOLDER,
    jobs_option,
    json_option,
    print_result,
    warn_stock_pillow,
)
from imagenet_prep.terminal import Bar

if TYPE_CHECKING:
    from imagenet_prep.artifacts import Stats


@click.command()
@click.option(
    "--src", type=FOLDER, default=Path("cropped"), show_default=True, help="Folder of crops."
)
@click.option("--out", type=FOLDER, help=f"The statistics file.  [default: {STATS_NAME} in --src]")
@click.option("--picture", type=FOLDER, help="Also draw them into this PNG.")
@jobs_option
@json_option
def stats(
    src: Path, out: Path | None, picture: Path | None, jobs: int | None, as_json: bool
) -> None:
    """Computes the mean picture and the colour statistics of the training crops, exactly.

    \b
    Example: imagenet-prep stats --src cropped --picture stats.png
    """
    warn_stock_pillow()
    target = src / STATS_NAME if out is None else out
    value, result = make_stats(src, target, jobs)
    if picture is not None:
        _draw_stats(result, src, picture)
    print_result(as_json, value, outcome.stats_lines(value))


def make_stats(src: Path, out: Path, jobs: int | None) -> tuple[dict[str, Any], Stats]:
    from imagenet_prep.stats_stage import run_stats

    bar = Bar()
    start = time.perf_counter()
    try:
        result = run_stats(src, out, jobs=jobs, progress=bar)
    finally:
        bar.close()
    seconds = time.perf_counter() - start
    speed = {"seconds": round(seconds, 3), "images_per_second": outcome.rate(result.count, seconds)}
    return {**outcome.stats_value(result), **speed, "out": str(out)}, result


def _draw_stats(result: Stats, src: Path, picture: Path) -> None:
    from imagenet_prep.artifacts import publish
    from imagenet_prep.crop import crop_pixels
    from imagenet_prep.crop_settings import CropSettings
    from imagenet_prep.journal import list_crops
    from imagenet_prep.pictures import stats_picture

    first = src / list_crops(src, "train")[0][0]
    png = stats_picture(result, crop_pixels(first.read_bytes(), CropSettings(result.size_px)))
    with publish(picture) as temporary:
        temporary.write_bytes(png)
