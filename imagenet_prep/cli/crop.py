"""The commands around crops: ``crop``, ``merge`` and ``failures``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imagenet_prep.cli import results as outcome
from imagenet_prep.cli.options import (
    FOLDER,
    Where,
    json_option,
    part_of,
    print_result,
    size_option,
    warn_stock_pillow,
    where_options,
)
from imagenet_prep.core.console import Bar, one_line
from imagenet_prep.dataset.crop_settings import EXIF, FILTERS, FITS, TRUNCATED, CropSettings
from imagenet_prep.sources.scan import LAYOUTS
from imagenet_prep.storage.location import Location, location_of

if TYPE_CHECKING:
    from imagenet_prep.crop.run import CropReport
    from imagenet_prep.workers.processes import Jobs

F = TypeVar("F", bound=Callable[..., Any])


def source_options(command: F) -> F:
    """Where raw pictures come from: --src, --layout, --classes."""
    for option in (
        click.option(
            "--classes",
            type=location_of,
            metavar="PATH|URL",
            help="File of the classes to take, one a line, a readable name after a tab or comma.",
        ),
        click.option(
            "--layout",
            type=click.Choice(LAYOUTS),
            help="How --src is organised.  [default: recognised]",
        ),
        click.option(
            "--src",
            type=location_of,
            metavar="PATH|URL",
            required=True,
            help="Raw pictures: a folder, archives or a list; a path or a URL (s3://bucket/raw).",
        ),
    ):
        command = option(command)
    return command


def crop_options(command: F) -> F:
    """How pictures become crops: the fields of CropSettings, and --max-failures."""
    for option in (
        click.option(
            "--max-failures",
            metavar="N|none",
            callback=_limit,
            default="none",
            show_default=True,
            help="Stop when more pictures than this fail.",
        ),
        _choice("truncated", TRUNCATED, "Incomplete files: fail, or keep what is there."),
        _choice("exif", EXIF, "Turn pictures as their EXIF orientation says, or not."),
        _choice("filter", FILTERS, "Antialiasing filter."),
        _choice("fit", FITS, "Short side to --size and cut out the centre; or squash it all."),
        click.option(
            "--quality",
            type=click.IntRange(min=1, max=100),
            default=CropSettings.quality,
            show_default=True,
            help="JPEG quality of the crops.",
        ),
        size_option,
    ):
        command = option(command)
    return command


def _limit(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """The text of an option -> the number; None for "none"."""
    if value == "none":
        return None
    if not value.isdecimal():
        raise click.BadParameter(f"{value!r} is neither a number nor none", ctx, param)
    return int(value)


def _choice(name: str, values: tuple[str, ...], text: str) -> Callable[[F], F]:
    default = getattr(CropSettings, name)
    return click.option(
        f"--{name}", type=click.Choice(values), default=default, show_default=True, help=text
    )


@click.command(short_help="Makes a square crop of every picture.")
@source_options
@click.option("--dst", type=FOLDER, required=True, help="Folder for the crops.")
@crop_options
@click.option(
    "--part", metavar="K/N", callback=part_of, help="Only the K-th of N parts, to be merged."
)
@where_options
@json_option
def crop(
    src: Location,
    dst: Path,
    part: tuple[int, int] | None,
    where: Where,
    as_json: bool,
    **options: Any,
) -> None:
    """Makes a square crop of every picture: short side to --size, then the centre.

    Does only what is missing or changed, so an interrupted run goes on where it was.

    \b
    Example: imagenet-prep crop --src raw --dst cropped
    \b
    On two machines, which share the disk or whose crops are copied together afterwards:
      imagenet-prep crop --src raw --dst cropped --part 1/2
      imagenet-prep crop --src raw --dst cropped --part 2/2
      imagenet-prep merge cropped

    \b
    On the machines of a Dask cluster that share the disk:
      imagenet-prep crop --src raw --dst cropped --backend dask --address tcp://head:8786
    """
    warn_stock_pillow()
    with where.workers(reads=[src], writes=[dst]) as jobs:
        report = make_crops(where.path(src), where.path(dst), part=part, jobs=jobs, **options)
    print_result(as_json, outcome.crop_value(report), outcome.crop_lines(report, dst))


def make_crops(
    src: Location,
    dst: Path,
    *,
    layout: str | None,
    classes: Location | None,
    jobs: Jobs,
    max_failures: int | None,
    part: tuple[int, int] | None = None,
    **settings: Any,
) -> CropReport:
    """Runs ``run_crop`` with a bar; ``settings`` are the fields of CropSettings."""
    from imagenet_prep.crop.run import run_crop
    from imagenet_prep.dataset.journal import Part

    bar = Bar()
    try:
        return run_crop(
            src,
            dst,
            CropSettings(**settings),
            layout=layout,
            classes=classes,
            jobs=jobs,
            max_failures=max_failures,
            part=None if part is None else Part(*part),
            progress=bar,
        )
    finally:
        bar.close()


@click.command(short_help="Joins the parts of a crop.")
@click.argument("folder", type=FOLDER, default="cropped")
@json_option
def merge(folder: Path, as_json: bool) -> None:
    """Joins what crop --part 1/N to N/N have made in one folder, as one run would have left it.

    Where the parts were made on disks of their own, copy them into one folder first.

    \b
    Example: imagenet-prep merge cropped
    """
    from imagenet_prep.crop.merge import merge_parts

    report = merge_parts(folder)
    value = outcome.crop_merge_value(report)
    print_result(as_json, value, outcome.crop_merge_lines(value, folder))


@click.command(short_help="Lists the sources that gave no crop.")
@click.argument("folder", type=FOLDER, default="cropped")
@click.option("--reason", help="Only those whose reason contains this text.")
@json_option
def failures(folder: Path, reason: str | None, as_json: bool) -> None:
    """Lists the sources that gave no crop: one a line, a tab, the reason.

    Made for other programs, to fetch the files again; --json counts them by reason as well, and
    has names as they are where here a line break or tab in one is written as \\n or \\t.

    \b
    Example: imagenet-prep failures cropped | cut -f1
    """
    from imagenet_prep.dataset.journal import all_rows

    # Also of a run that was stopped, perhaps because of them.
    with all_rows(folder) as journal:
        failed = journal.execute(
            "SELECT key, remark FROM source WHERE status = 'failed' AND instr(remark, ?) "
            "ORDER BY key",
            (reason or "",),
        ).fetchall()
    value = {
        "failed": len(failed),
        "reasons": dict(Counter(why for _, why in failed).most_common()),
        "failures": [{"source": key, "reason": why} for key, why in failed],
    }
    if as_json:
        print_result(as_json, value, ())
        return
    for key, why in failed:
        click.echo(f"{one_line(key)}\t{why}")
