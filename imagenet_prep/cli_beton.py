"""The doorway of the betons: ``imagenet-prep build``, ``verify`` and ``info``."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from imagenet_prep import outcome
from imagenet_prep.artifacts import SPLITS, STATS_NAME, ToolError, UsageError
from imagenet_prep.cli_common import (
    FOLDER,
    jobs_option,
    json_option,
    print_result,
    warn_stock_pillow,
)
from imagenet_prep.terminal import Bar

F = TypeVar("F", bound=Callable[..., Any])
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _format(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    from imagenet_prep.packing import Packing

    return Packing(format=value).format


def _shuffle(_ctx: click.Context, _param: click.Parameter, value: str) -> int | None:
    if value == "off":
        return None
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise click.BadParameter(f"{value!r} is neither a seed (0, 1, 2, ...) nor off")
    return int(value)


def _subset(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | float | None:
    from imagenet_prep.packing import Packing

    if value is None:
        return None
    try:
        return Packing(subset=int(value) if value.isdecimal() else float(value)).subset
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is neither a number of samples (1000) nor a share (0.1)"
        ) from None


def _page_size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    from imagenet_prep.packing import Packing

    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,10})([KMG]?)(iB|B)?", value)
    if not found:
        raise click.BadParameter(f"{value!r} is not a size such as 8M or 8388608")
    return Packing(page_size=int(found[1]) * _UNITS[found[2]]).page_size


def packing_options(command: F) -> F:
    """How crops become a beton: the fields of Packing."""
    for option in (
        click.option(
            "--page-size",
            metavar="SIZE",
            callback=_page_size,
            help="A power of two from 2M to 1G.  [default: fits the samples, 2M or more]",
        ),
        click.option(
            "--subset",
            metavar="N|SHARE",
            callback=_subset,
            help="At most N samples of each split, or a share of them such as 0.1: always the "
            "same ones, chosen by hash, and smaller subsets are parts of larger ones.",
        ),
        click.option(
            "--shuffle",
            metavar="SEED|off",
            callback=_shuffle,
            default="0",
            show_default=True,
            help="Seed of the order in the file; off: in that of the paths, class by class.",
        ),
        click.option(
            "--format",
            metavar="jpeg|raw|mixed:P",
            callback=_format,
            default="jpeg",
            show_default=True,
            help="The crops' own JPEG bytes; their pixels; or a share P as JPEG, the rest raw.",
        ),
    ):
        command = option(command)
    return command


@click.command(short_help="Packs the crops into betons.")
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
@click.option(
    "--split",
    "splits",
    type=click.Choice(SPLITS),
    multiple=True,
    help="Only this split; can be given again.  [default: all that there are]",
)
@packing_options
@jobs_option
@json_option
def build(
    src: Path,
    dst: Path,
    stats_file: Path | None,
    splits: tuple[str, ...],
    jobs: int | None,
    as_json: bool,
    **packing: Any,
) -> None:
    """Packs the crops into train.beton, val.beton, ..., with manifest and statistics.

    \b
    Example: imagenet-prep build --src cropped --dst . --format mixed:0.5
    """
    warn_stock_pillow()
    statistics = src / STATS_NAME if stats_file is None else stats_file
    value = make_betons(src, dst, statistics, jobs, splits=splits, **packing)
    print_result(as_json, value, outcome.build_lines(value))


def make_betons(
    src: Path,
    dst: Path,
    stats_file: Path,
    jobs: int | None,
    *,
    splits: Sequence[str] = (),
    **packing: Any,
) -> dict[str, Any]:
    from imagenet_prep import artifacts
    from imagenet_prep.beton import build_beton
    from imagenet_prep.journal import Crops

    start = time.perf_counter()
    found = Crops(src)
    statistics = artifacts.load_stats(stats_file)
    classes = artifacts.load_classes(src)
    digest = artifacts.file_digest(stats_file)
    betons = []
    bar = Bar()
    try:
        for split in [s for s in SPLITS if s in splits] or found.splits or ("train",):
            path = dst / f"{split}.beton"
            manifest = build_beton(
                src,
                split,
                path,
                stats=statistics,
                stats_digest=digest,
                classes=classes,
                crops=found.of(split),
                crop_settings=found.settings,
                jobs=jobs,
                progress=bar,
                **packing,
            )
            betons.append(outcome.beton_value(path, manifest))
    finally:
        bar.close()
    seconds = time.perf_counter() - start
    rate = outcome.rate(sum(beton["samples"] for beton in betons), seconds)
    return {"betons": betons, "seconds": round(seconds, 3), "images_per_second": rate}


@click.command(short_help="Checks every byte of a beton.")
@click.argument("path", metavar="FILE", type=FOLDER)
@click.option("--decode", is_flag=True, help="Decode every picture too.")
@jobs_option
@json_option
def verify(path: Path, decode: bool, jobs: int | None, as_json: bool) -> None:
    """Checks every byte of a beton, its manifest and its statistics; names damaged samples.

    \b
    Example: imagenet-prep verify train.beton --decode
    """
    from imagenet_prep.beton_check import check_beton

    start = time.perf_counter()
    bar = Bar()
    try:
        report = check_beton(path, decode=decode, jobs=jobs, progress=bar)
    finally:
        bar.close()
    value = outcome.verify_value(report, path, time.perf_counter() - start)
    print_result(as_json, value, outcome.verify_lines(value))
    if not report.good:
        raise ToolError(
            f"{path}: is damaged ({len(report.damaged)} of {report.samples} samples); "
            "build it again with imagenet-prep build"
        )


@click.command(short_help="Says what a file or folder is.")
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
    print_result(as_json, value, outcome.info_lines(value))
