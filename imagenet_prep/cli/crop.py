"""``imagenet-prep crop``, ``merge`` and ``failures``."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagenet_prep.cli import results
from imagenet_prep.cli.options import (
    FOLDER,
    Where,
    all_of,
    json_option,
    option,
    print_result,
    warn_stock_pillow,
    where_options,
)
from imagenet_prep.core.console import Bar, one_line, say
from imagenet_prep.core.errors import UsageError
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.dataset.names import SPLITS
from imagenet_prep.sources.scan import LAYOUTS, Scan, scan
from imagenet_prep.storage.location import Location, location_of

if TYPE_CHECKING:
    from imagenet_prep.crop.run import CropReport
    from imagenet_prep.dataset.journal import Part

SCAN_OPTIONS = ("layout", "classes", "splits", "class_order")
"""The parameters of ``sources.scan.scan`` that are options."""


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


source_options = all_of(
    option(
        "--split splits",
        "Folder NAME of --src is train, val or test; or class: no split. Repeatable.",
        multiple=True,
        metavar="NAME=SPLIT",
        callback=_splits,
    ),
    option(
        "--class-order",
        "Order of classes that are named by numbers.  [default: number, with a notice]",
        click.Choice(("name", "number")),
    ),
    option(
        "--src",
        "Raw images: path or URL (s3://bucket/raw) of a folder, an archive or a list.",
        location_of,
        required=True,
        metavar="PATH|URL",
    ),
    option("--layout", "Layout of --src.  [default: recognised]", click.Choice(LAYOUTS)),
    option(
        "--classes",
        "List of classes: one per line, with an optional name after a tab or comma.",
        location_of,
        metavar="PATH|URL",
    ),
)
"""The raw images."""


def _limit(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """The text of an option -> the number; None for "none"."""
    if value == "none":
        return None
    if not value.isdecimal():
        raise click.BadParameter(f"{value!r} is neither a number nor none", ctx, param)
    return int(value)


def _setting(field: Field[Any]) -> Callable[[Any], Any]:
    """The option of a field of CropSettings."""
    allowed = field.metadata["allowed"]
    kind = click.Choice(allowed) if isinstance(field.default, str) else click.IntRange(*allowed)
    return option(f"--{field.name}", field.metadata["help"], kind, field.default)


crop_options = all_of(
    *map(_setting, fields(CropSettings)),
    option(
        "--max-failures",
        "Largest number of failed images; more end the run with an error.",
        default="none",
        metavar="N|none",
        callback=_limit,
    ),
)
"""How images are cropped."""


def _part(context: click.Context, option: click.Parameter, value: str | None) -> Part | None:
    """``K/N`` -> the K-th of N parts."""
    from imagenet_prep.dataset.journal import Part

    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        reason = f"{value!r} is not K/N with K from 1 to N, such as 2/8."
        raise click.BadParameter(reason, context, option)
    return Part(int(match[1]), int(match[2]))


@click.command(short_help="Crop every image to a square.")
@source_options
@option("--dst", "Folder of the crops.  [required without --dry-run]", FOLDER)
@crop_options
@option(
    "--part", "K-th of N parts of the images, joined later by merge.", metavar="K/N", callback=_part
)
@option("--dry-run", "Recognise --src and count its images only.", is_flag=True)
@where_options
@json_option
def crop(
    src: Location,
    dst: Path | None,
    part: Part | None,
    dry_run: bool,
    where: Where,
    as_json: bool,
    **options: Any,
) -> None:
    """Crop every image to a square: short side scaled to --size, then the centre.

    Only missing and changed images are done, so an interrupted run continues.

    \b
    Example: imagenet-prep crop --src raw --dst cropped
    \b
    On two machines that share a disk, or whose crops are copied into one folder:
      imagenet-prep crop --src raw --dst cropped --part 1/2
      imagenet-prep crop --src raw --dst cropped --part 2/2
      imagenet-prep merge cropped

    \b
    On a Dask cluster whose machines share the disk:
      imagenet-prep crop --src raw --dst cropped --backend dask --address tcp://head:8786
    """
    if dry_run:
        found = scan(where.path(src), **{name: options[name] for name in SCAN_OPTIONS})
        collections.deque(found, maxlen=0)  # counts the images
        value = {
            "layout": found.layout,
            "classes": len(found.classes),
            "splits": dict(sorted(found.splits.items())),
            "notices": list(found.notices),
        }
        print_result(as_json, value, _scan_lines(found))
        return
    if dst is None:
        raise UsageError("crop.no_dst", "--dst is missing: name the folder of the crops")
    warn_stock_pillow()
    with where.workers(reads=[src], writes=[dst]) as jobs:
        report = make_crops(where.path(src), where.path(dst), part=part, jobs=jobs, **options)
    print_result(as_json, results.crop_value(report), results.crop_lines(report, dst))


def _scan_lines(found: Scan) -> list[str]:
    """What was recognised, for people: layout, classes, images of each split; the notices."""
    splits = ", ".join(f"{split} {count:,}" for split, count in sorted(found.splits.items()))
    noun = "class" if len(found.classes) == 1 else "classes"
    head = f"layout {found.layout}: {len(found.classes):,} {noun}; images: {splits}"
    return [head, *(f"note: {notice}" for notice in found.notices)]


def _show_scan(found: Scan) -> None:
    """What was recognised -> stderr."""
    for line in _scan_lines(found):
        say(line)


def make_crops(src: Location, dst: Path, **options: Any) -> CropReport:
    """Runs ``run_crop`` with a progress bar; ``options`` are its own and the fields of
    CropSettings."""
    from imagenet_prep.crop.run import run_crop

    names = [field.name for field in fields(CropSettings)]
    settings = CropSettings(**{name: options.pop(name) for name in names})
    with Bar() as bar:
        return run_crop(
            src, dst, settings, recognised=_show_scan, progress=bar,
            notice=lambda text: say(f"note: {text}"), **options,
        )  # fmt: skip


@click.command(short_help="Join the parts of a crop.")
@click.argument("folder", type=FOLDER, default="cropped")
@json_option
def merge(folder: Path, as_json: bool) -> None:
    """Join the results of crop --part 1/N to N/N in FOLDER (default: cropped).

    The result is the same as that of one run. Parts on separate disks are first copied into one
    folder.

    \b
    Example: imagenet-prep merge cropped
    """
    from imagenet_prep.crop.merge import merge_parts

    report = merge_parts(folder)
    value = results.crop_merge_value(report)
    print_result(as_json, value, results.crop_merge_lines(value, folder))


@click.command(short_help="List the images that failed.")
@click.argument("folder", type=FOLDER, default="cropped")
@option("--reason", "Text that the reason must contain.")
@json_option
def failures(folder: Path, reason: str | None, as_json: bool) -> None:
    """List the images of FOLDER (default: cropped) that failed: path, tab, reason.

    Line breaks and tabs in a path are written as \\n and \\t; --json has paths as they are, and
    counts by reason.

    \b
    Example: imagenet-prep failures cropped | cut -f1
    """
    from imagenet_prep.dataset.journal import all_rows

    # Also of a run that ended early, perhaps because of them.
    with all_rows(folder) as journal:
        failed = journal.execute(
            "SELECT key, remark FROM source WHERE status = 'failed' AND instr(remark, ?) "
            "ORDER BY key",
            (reason or "",),
        ).fetchall()
    value = {
        "failed": len(failed),
        "reasons": dict(collections.Counter(why for _, why in failed).most_common()),
        "failures": [{"source": key, "reason": why} for key, why in failed],
    }
    if as_json:
        print_result(as_json, value, ())
        return
    for key, why in failed:
        click.echo(f"{one_line(key)}\t{why}")
