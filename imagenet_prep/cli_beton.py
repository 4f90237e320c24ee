"""The doorway of the betons: ``imagenet-prep build`` and ``info``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from imagenet_prep import outcome
from imagenet_prep.artifacts import STATS_NAME, UsageError
from imagenet_prep.cli_common import (
    FOLDER,
    jobs_option,
    json_option,
    print_result,
    warn_stock_pillow,
)
from imagenet_prep.terminal import Bar


@click.command()
@click.option(
    "--src", type=FOLDER, default=Path("cropped"), show_default=True, help="Folder of crops."
)
@click.option("--dst", type=FOLDER, default=Path(), show_default=".", help="Folder for the betons.")
@click.option(
    "--stats",
    "stats_file",
    type=FOLDER,
    help=f"The statistics of the training crops.  [default: {STATS_NAME} in --src]",
)
@jobs_option
@json_option
def build(src: Path, dst: Path, stats_file: Path | None, jobs: int | None, as_json: bool) -> None:
    """Packs the crops into train.beton, val.beton, ..., with manifest and statistics.

    \b
    Example: imagenet-prep build --src cropped --dst .
    """
    warn_stock_pillow()
    value = make_betons(src, dst, src / STATS_NAME if stats_file is None else stats_file, jobs)
    print_result(as_json, value, outcome.build_lines(value))


def make_betons(src: Path, dst: Path, stats_file: Path, jobs: int | None) -> dict[str, Any]:
    from imagenet_prep import artifacts
    from imagenet_prep.beton import build_beton
    from imagenet_prep.journal import list_crops, list_splits, settings_text

    start = time.perf_counter()
    crops = {split: list_crops(src, split) for split in list_splits(src) or ("train",)}
    statistics = artifacts.load_stats(stats_file)
    classes = artifacts.load_classes(src)
    digest = artifacts.file_digest(stats_file)
    betons = []
    bar = Bar()
    try:
        for split, pairs in crops.items():
            path = dst / f"{split}.beton"
            manifest = build_beton(
                src,
                split,
                path,
                stats=statistics,
                stats_digest=digest,
                classes=classes,
                crops=pairs,
                crop_settings=settings_text(src),
                jobs=jobs,
                progress=bar,
            )
            betons.append(
                {
                    "path": str(path),
                    "samples": manifest.samples,
                    "bytes": manifest.bytes,
                    "digest": manifest.digest,
                }
            )
    finally:
        bar.close()
    seconds = time.perf_counter() - start
    rate = outcome.rate(sum(map(len, crops.values())), seconds)
    return {"betons": betons, "seconds": round(seconds, 3), "images_per_second": rate}


@click.command()
@click.argument("path", type=FOLDER, required=False)
@click.option("--picture", type=FOLDER, help="Draw a contact sheet of a beton into this PNG.")
@json_option
def info(path: Path | None, picture: Path | None, as_json: bool) -> None:
    """Says what a beton, a statistics file or a folder of crops is; alone, what is installed.

    \b
    Example: imagenet-prep info train.beton --picture train.png
    """
    from imagenet_prep import describe

    if path is None:
        warn_stock_pillow()
        value = describe.installed()
    elif path.is_dir():
        value = describe.about_crops(path)
    elif path.suffix == ".npz":
        value = describe.about_stats(path)
    else:
        value = describe.about_beton(path, picture)
    if picture is not None and value["what"] != "beton":
        raise UsageError("--picture: draws the pictures of a beton; name one")
    width = max(map(len, value))
    print_result(
        as_json, value, [f"{name:<{width}}  {outcome.plain(item)}" for name, item in value.items()]
    )
