"""The doorway of the betons: ``imagenet-prep build``, ``verify`` and ``info``."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imagenet_prep.cli import results as outcome
from imagenet_prep.cli.options import (
    FILE,
    FOLDER,
    Where,
    jobs_option,
    json_option,
    print_result,
    warn_stock_pillow,
    where_options,
)
from imagenet_prep.core.console import Bar
from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.dataset.names import SPLITS, STATS_NAME
from imagenet_prep.dataset.shards import MOST_SHARDS, check_way, find_betons

if TYPE_CHECKING:
    from imagenet_prep.workers.processes import Jobs

F = TypeVar("F", bound=Callable[..., Any])
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def _format(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    from imagenet_prep.beton.options import Packing

    return Packing(format=value).format


def _shuffle(_ctx: click.Context, _param: click.Parameter, value: str) -> int | None:
    if value == "off":
        return None
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise click.BadParameter(f"{value!r} is neither a seed (0, 1, 2, ...) nor off")
    return int(value)


def _subset(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | float | None:
    from imagenet_prep.beton.options import Packing

    if value is None:
        return None
    try:
        return Packing(subset=int(value) if value.isdecimal() else float(value)).subset
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is neither a number of samples (1000) nor a share (0.1)"
        ) from None


def _page_size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    from imagenet_prep.beton.options import Packing

    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,10})([KMG]?)(iB|B)?", value)
    if not found:
        raise click.BadParameter(f"{value!r} is not a size such as 8M or 8388608")
    return Packing(page_size=int(found[1]) << 10 * _POWERS[found[2]]).page_size


def _shard_size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """Bytes of a size for people: 4GB are 4 * 10^9, 4GiB and 4G 4 * 2^30."""
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([KMGT]?)(iB|B)?", value)
    size = 0
    if found:
        base = 1000 if found[3] == "B" else 1024
        size = int(Decimal(found[1]) * base ** _POWERS[found[2]])
    if size < 1:
        raise click.BadParameter(f"{value!r} is not a size such as 4GB, 500MB or 4GiB")
    return size


def packing_options(command: Callable[..., None]) -> Callable[..., None]:
    """How crops become betons: the options, which the command gets as one ``packing``, the
    fields of Packing by name."""

    @functools.wraps(command)
    def with_packing(
        *,
        format: str,
        shuffle: int | None,
        subset: int | float | None,
        page_size: int | None,
        shards: int | None,
        shard_size: int | None,
        **options: Any,
    ) -> None:
        from imagenet_prep.beton.options import Packing

        packing = Packing(format, shuffle, subset, page_size, shards, shard_size)
        command(packing=asdict(packing), **options)

    for option in (
        click.option(
            "--shard-size",
            metavar="SIZE",
            callback=_shard_size,
            help="The same in as many files as it takes for none to be larger, such as 4GB or "
            "500MB (powers of 1000), 4GiB or 4G (of 1024).",
        ),
        click.option(
            "--shards",
            metavar="N",
            type=click.IntRange(min=1, max=MOST_SHARDS),
            help="In N files, train-00000-of-0000N.beton and so on, of equal numbers of samples: "
            "one data set, called 'train-*.beton' (in quotes) from then on.",
        ),
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
        with_packing = option(with_packing)
    return with_packing


@click.command(short_help="Packs the crops into betons.")
@click.option(
    "--src", type=FOLDER, default=Path("cropped"), show_default=True, help="Folder of crops."
)
@click.option(
    "--dst", type=FOLDER, default=Path(), show_default=True, help="Folder for the betons."
)
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
@where_options
@json_option
def build(
    src: Path,
    dst: Path,
    stats_file: Path | None,
    splits: tuple[str, ...],
    where: Where,
    as_json: bool,
    packing: dict[str, Any],
) -> None:
    """Packs the crops into train.beton, val.beton, ..., with manifest and statistics.

    Betons of the same names are replaced. Betons of another number of shards are not: they are
    named, and nothing is done until they are deleted or moved; with --shard-size that shows for
    each split when its turn comes.

    \b
    Example: imagenet-prep build --src cropped --dst . --format mixed:0.5
    In shards: imagenet-prep build --shard-size 4GB
    """
    warn_stock_pillow()
    statistics = src / STATS_NAME if stats_file is None else stats_file
    with where.workers(reads=[src], writes=[dst]) as jobs:
        value = make_betons(
            where.path(src), where.path(dst), statistics, jobs, splits=splits, **packing
        )
    print_result(as_json, value, outcome.build_lines(value))


def make_betons(
    src: Path,
    dst: Path,
    stats_file: Path,
    jobs: Jobs,
    *,
    splits: Sequence[str] = (),
    **packing: Any,
) -> dict[str, Any]:
    from imagenet_prep.beton.build import build_beton
    from imagenet_prep.core.files import file_digest
    from imagenet_prep.dataset.classes import load_classes
    from imagenet_prep.dataset.journal import Crops
    from imagenet_prep.dataset.statistics import load_stats

    start = time.perf_counter()
    found = Crops(src)
    statistics = load_stats(stats_file)
    classes = load_classes(src)
    digest = file_digest(stats_file)
    betons = []
    chosen = [s for s in SPLITS if s in splits] or found.splits or ("train",)
    require_way(dst, chosen, **packing)
    _require_samples({split: found.counts.get(split, 0) for split in chosen}, **packing)
    bar = Bar()
    try:
        for split in chosen:
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


def _require_samples(
    counts: dict[str, int], *, shards: int | None, subset: int | float | None, **_: Any
) -> None:
    """UsageError, before anything is built, for a split with fewer samples than files."""
    from imagenet_prep.beton.options import subset_count

    for split, available in counts.items():
        count = subset_count(available, subset)
        if count and shards is not None and shards > count:
            raise UsageError(
                f"--shards: the {count} samples of {split} cannot fill {shards} files; choose at "
                f"most {count}, or build the splits one by one with --split"
            )


def require_way(
    dst: Path, splits: Sequence[str], *, shards: int | None, shard_size: int | None, **_: Any
) -> None:
    """UsageError where betons of other shards lie where those of ``splits`` are to be made; of
    a number that is not known yet (``shard_size``) that is seen when they are built."""
    for split in splits:
        if shard_size is None:
            check_way(dst / f"{split}.beton", shards)


@click.command(short_help="Checks every byte of a beton.")
@click.argument("files", metavar="FILE...", type=FOLDER, nargs=-1, required=True)
@click.option("--decode", is_flag=True, help="Decode every picture too.")
@jobs_option
@json_option
def verify(files: tuple[Path, ...], decode: bool, jobs: int | None, as_json: bool) -> None:
    """Checks every byte of a beton, its manifest and its statistics; names damaged samples.

    FILE... are all the shards of a set, or a pattern in quotes that means them.

    \b
    Example: imagenet-prep verify train.beton --decode
    In shards: imagenet-prep verify 'train-*.beton'
    """
    from imagenet_prep.beton.verify import check_betons

    start = time.perf_counter()
    betons = find_betons(*files)
    bar = Bar()
    try:
        report = check_betons(betons, decode=decode, jobs=jobs, progress=bar)
    finally:
        bar.close()
    value = outcome.verify_value(report, betons, time.perf_counter() - start)
    print_result(as_json, value, outcome.verify_lines(value))
    if not report.good:
        raise ToolError(
            f"{betons}: is damaged ({len(report.damaged)} of {report.samples} samples); "
            "build it again with imagenet-prep build"
        )


@click.command(short_help="Says what a file or folder is.")
@click.argument("files", metavar="[FILE...]", type=FOLDER, nargs=-1)
@click.option("--picture", type=FILE, help="Draw a contact sheet of a beton into this PNG.")
@json_option
def info(files: tuple[Path, ...], picture: Path | None, as_json: bool) -> None:
    """Says what a beton, a statistics file or a folder of crops is; alone, what is installed.

    FILE... is one of them, or all the shards of a set, or a pattern in quotes that means them.

    \b
    Example: imagenet-prep info train.beton --picture train.png
    In shards: imagenet-prep info 'train-*.beton'
    """
    from imagenet_prep.cli import info as describe

    if not files:
        warn_stock_pillow()
        value = describe.installed()
    elif len(files) == 1 and files[0].is_dir():
        value = describe.about_crops(files[0])
    elif len(files) == 1 and files[0].suffix == ".npz":
        value = describe.about_stats(files[0])
    else:
        value = describe.about_betons(find_betons(*files, part=True), picture)
    if picture is not None and value["what"] != "beton":
        raise UsageError("--picture: draws the pictures of a beton; name one")
    print_result(as_json, value, outcome.info_lines(value))
