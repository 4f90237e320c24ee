"""The doorway: options in, one sentence or a table out, and an exit status.

Only this file prints. Everything heavy is imported inside the command that needs it, so
that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagenet_prep import __version__, outcome
from imagenet_prep.artifacts import (
    DEFAULT_QUALITY,
    DEFAULT_SIZE_PX,
    STATS_NAME,
    UsageError,
)
from imagenet_prep.terminal import Bar, run_command, say

if TYPE_CHECKING:
    from imagenet_prep.artifacts import Stats
    from imagenet_prep.crop_stage import CropReport

PROGRAM = "imagenet-prep"
_FOLDER = click.Path(path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
jobs_option = click.option(
    "--jobs", type=click.IntRange(min=1), help="Worker processes.  [default: one per processor]"
)
size_option = click.option(
    "--size",
    type=click.IntRange(min=1, max=4096),
    default=DEFAULT_SIZE_PX,
    show_default=True,
    help="Side of the crops in pixels.",
)


def _print(as_json: bool, value: dict[str, Any], lines: Sequence[str]) -> None:
    """The result of a command: ``value`` as JSON, or ``lines`` for people."""
    click.echo(json.dumps(value) if as_json else "\n".join(lines))


def _warn_stock_pillow() -> None:
    from imagenet_prep import describe

    sentence = describe.stock_pillow()
    if sentence:
        say(f"{PROGRAM}: warning: {sentence}")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Prepares raw pictures for training, once: crops, exact statistics, betons.

    \b
    Example:
      imagenet-prep crop --src raw --dst cropped
      imagenet-prep stats
      imagenet-prep build
    """


@cli.command()
@click.option("--dst", type=_FOLDER, required=True, help="Folder for the pictures.")
@click.option("--train", type=click.IntRange(min=1), default=2000, show_default=True)
@click.option("--val", type=click.IntRange(min=0), default=500, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@jobs_option
@json_option
def sample(dst: Path, train: int, val: int, seed: int, jobs: int | None, as_json: bool) -> None:
    """Draws a data set of ten classes to try everything with.

    \b
    Example: imagenet-prep sample --dst raw --train 2000 --val 500
    """
    from imagenet_prep.sample import make_sample

    _warn_stock_pillow()
    bar = Bar()
    try:
        report = make_sample(dst, train=train, val=val, seed=seed, jobs=jobs, progress=bar)
    finally:
        bar.close()
    rate = round(report.images_per_second, 1)
    value = {
        "images": report.images,
        "broken": report.broken,
        "seconds": round(report.seconds, 3),
        "images_per_second": rate,
        "dst": str(dst),
    }
    text = (
        f"{report.images} pictures and {report.broken} broken files in {dst}: "
        f"{report.seconds:.1f} s, {rate} images/s"
    )
    _print(as_json, value, [text])


@cli.command()
@click.option("--src", type=_FOLDER, required=True, help="Folder with the raw pictures.")
@click.option("--dst", type=_FOLDER, required=True, help="Folder for the crops.")
@size_option
@click.option(
    "--quality",
    type=click.IntRange(min=1, max=100),
    default=DEFAULT_QUALITY,
    show_default=True,
    help="JPEG quality of the crops.",
)
@jobs_option
@click.option(
    "--max-failures",
    type=click.IntRange(min=0),
    help="Stop when more pictures than this fail.  [default: never]",
)
@json_option
def crop(
    src: Path,
    dst: Path,
    size: int,
    quality: int,
    jobs: int | None,
    max_failures: int | None,
    as_json: bool,
) -> None:
    """Makes a square crop of every picture: short side to --size, then the centre.

    Does only what is missing or changed, so an interrupted run goes on where it was.

    \b
    Example: imagenet-prep crop --src raw --dst cropped
    """
    _warn_stock_pillow()
    report = _crop(src, dst, size, quality, jobs, max_failures)
    _print(as_json, outcome.crop_value(report), outcome.crop_lines(report, dst))


def _crop(
    src: Path, dst: Path, size: int, quality: int, jobs: int | None, max_failures: int | None
) -> CropReport:
    from imagenet_prep.crop import CropSettings
    from imagenet_prep.crop_stage import run_crop

    bar = Bar()
    try:
        settings = CropSettings(size=size, quality=quality)
        return run_crop(src, dst, settings, jobs=jobs, max_failures=max_failures, progress=bar)
    finally:
        bar.close()


@cli.command()
@click.option(
    "--src", type=_FOLDER, default=Path("cropped"), show_default=True, help="Folder of crops."
)
@click.option("--out", type=_FOLDER, help=f"The statistics file.  [default: {STATS_NAME} in --src]")
@click.option("--picture", type=_FOLDER, help="Also draw them into this PNG.")
@jobs_option
@json_option
def stats(
    src: Path, out: Path | None, picture: Path | None, jobs: int | None, as_json: bool
) -> None:
    """Computes the mean picture and the colour statistics of the training crops, exactly.

    \b
    Example: imagenet-prep stats --src cropped --picture stats.png
    """
    _warn_stock_pillow()
    target = src / STATS_NAME if out is None else out
    value, result = _stats(src, target, jobs)
    if picture is not None:
        _draw_stats(result, src, picture)
    _print(as_json, value, outcome.stats_lines(value))


def _stats(src: Path, out: Path, jobs: int | None) -> tuple[dict[str, Any], Stats]:
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
    from imagenet_prep.crop_stage import list_crops
    from imagenet_prep.pictures import stats_picture

    first = src / list_crops(src, "train")[0][0]
    png = stats_picture(result, crop_pixels(first.read_bytes(), result.size_px))
    with publish(picture) as temporary:
        temporary.write_bytes(png)


@cli.command()
@click.option(
    "--src", type=_FOLDER, default=Path("cropped"), show_default=True, help="Folder of crops."
)
@click.option(
    "--dst", type=_FOLDER, default=Path(), show_default=".", help="Folder for the betons."
)
@click.option(
    "--stats",
    "stats_file",
    type=_FOLDER,
    help=f"The statistics of the training crops.  [default: {STATS_NAME} in --src]",
)
@jobs_option
@json_option
def build(src: Path, dst: Path, stats_file: Path | None, jobs: int | None, as_json: bool) -> None:
    """Packs the crops into train.beton, val.beton, ..., with manifest and statistics.

    \b
    Example: imagenet-prep build --src cropped --dst .
    """
    _warn_stock_pillow()
    value = _build(src, dst, src / STATS_NAME if stats_file is None else stats_file, jobs)
    _print(as_json, value, outcome.build_lines(value))


def _build(src: Path, dst: Path, stats_file: Path, jobs: int | None) -> dict[str, Any]:
    from imagenet_prep import artifacts
    from imagenet_prep.beton import build_beton
    from imagenet_prep.crop_stage import list_crops, list_splits, settings_digest

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
                crop_settings=settings_digest(src),
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


@cli.command()
@click.option("--src", type=_FOLDER, required=True, help="Folder with the raw pictures.")
@click.option(
    "--dst", type=_FOLDER, default=Path(), show_default=".", help="Folder for everything made."
)
@size_option
@jobs_option
@json_option
def prepare(src: Path, dst: Path, size: int, jobs: int | None, as_json: bool) -> None:
    """Does it all: --dst gets cropped/, stats.npz, and train.beton, val.beton, ...

    \b
    Example: imagenet-prep prepare --src raw --dst .
    """
    _warn_stock_pillow()
    start = time.perf_counter()
    cropped = dst / "cropped"
    report = _crop(src, cropped, size, DEFAULT_QUALITY, jobs, None)
    statistics, _ = _stats(cropped, dst / STATS_NAME, jobs)
    built = _build(cropped, dst, dst / STATS_NAME, jobs)
    seconds = time.perf_counter() - start
    value = {
        "crop": outcome.crop_value(report),
        "stats": statistics,
        "build": built,
        "betons": built["betons"],
        "seconds": round(seconds, 3),
    }
    lines = [
        *outcome.crop_lines(report, cropped),
        *outcome.stats_lines(statistics),
        *outcome.build_lines(built),
        f"all of it: {seconds:.1f} s",
    ]
    _print(as_json, value, lines)


@cli.command()
@click.argument("path", type=_FOLDER, required=False)
@click.option("--picture", type=_FOLDER, help="Draw a contact sheet of a beton into this PNG.")
@json_option
def info(path: Path | None, picture: Path | None, as_json: bool) -> None:
    """Says what a beton, a statistics file or a folder of crops is; alone, what is installed.

    \b
    Example: imagenet-prep info train.beton --picture train.png
    """
    from imagenet_prep import describe

    if path is None:
        _warn_stock_pillow()
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
    _print(
        as_json, value, [f"{name:<{width}}  {outcome.plain(item)}" for name, item in value.items()]
    )


def run(arguments: Sequence[str] | None = None) -> int:
    """Command line arguments (default: the process's) -> exit status; says what went wrong."""
    from imagenet_prep.parallel import WorkerDied

    try:
        return run_command(cli, PROGRAM, arguments, "interrupted; the same command continues")
    except WorkerDied as error:
        say(f"{PROGRAM}: {error}; run it again with fewer --jobs")
        return 1


def main() -> None:
    """The console script ``imagenet-prep``."""
    sys.exit(run())


if __name__ == "__main__":
    main()
