"""``imagenet-prep build``, ``verify`` and ``info``."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagenet_prep.cli import results
from imagenet_prep.cli.options import (
    FILE,
    FOLDER,
    PROGRAM,
    Where,
    all_of,
    jobs_option,
    json_option,
    option,
    print_result,
    warn_stock_pillow,
    where_options,
)
from imagenet_prep.core.console import Bar, say
from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.dataset.names import SPLITS, STATS_NAME
from imagenet_prep.dataset.shards import MOST_SHARDS, check_way, find_betons

if TYPE_CHECKING:
    from imagenet_prep.workers.processes import Jobs

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def _shuffle(_ctx: click.Context, _param: click.Parameter, value: str) -> int | None:
    if value == "off":
        return None
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise click.BadParameter(f"{value!r} is neither a seed (0, 1, 2, ...) nor off")
    return int(value)


def _subset(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | float | None:
    try:
        return None if value is None else int(value) if value.isdecimal() else float(value)
    except ValueError:
        message = f"{value!r} is neither a count (1000) nor a fraction in (0, 1]"
        raise click.BadParameter(message) from None


def _size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """Bytes: 4GB are 4 * 10^9, 4GiB and 4G 4 * 2^30."""
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([KMGT]?)(iB|B)?", value)
    base = 1000 if found and found[3] == "B" else 1024
    size = int(Decimal(found[1]) * base ** _POWERS[found[2]]) if found else 0
    if size < 1:
        raise click.BadParameter(f"{value!r} is not a size such as 8M, 4GB, 500MB or 4GiB")
    return size


def packing_options(command: Callable[..., None]) -> Callable[..., None]:
    """The fields of Packing, checked, which the command gets by name as one dict ``packing``."""

    @functools.wraps(command)
    def with_packing(**options: Any) -> None:
        from imagenet_prep.beton.options import Packing

        packing = Packing(**{field.name: options.pop(field.name) for field in fields(Packing)})
        command(packing=asdict(packing), **options)

    return _PACKING(with_packing)


_PACKING = all_of(
    option(
        "--format",
        "Samples: JPEG bytes of the crops, raw pixels, or a fraction P as JPEG, the rest raw.",
        default="jpeg",
        metavar="jpeg|raw|mixed:P",
    ),
    option(
        "--shuffle",
        "Seed of the order in the file; off: order of the paths, class by class.",
        default="0",
        metavar="SEED|off",
        callback=_shuffle,
    ),
    option(
        "--subset",
        "Count or fraction in (0, 1] of the samples per split: always the same ones, and "
        "a smaller subset is part of a larger one.  [default: all]",
        metavar="N|FRACTION",
        callback=_subset,
    ),
    option(
        "--page-size",
        "Page size: power of two, 2M to 1G.  [default: smallest that fits the samples]",
        metavar="SIZE",
        callback=_size,
    ),
    option(
        "--shards",
        "Number of files train-00000-of-0000N.beton, ... with equal numbers of samples, "
        "later named together as 'train-*.beton' (with quotes).  [default: one file]",
        click.IntRange(min=1, max=MOST_SHARDS),
        metavar="N",
    ),
    option(
        "--shard-size",
        "Largest size of a file, such as 4GB or 500MB (powers of 1000), 4GiB or 4G (of "
        "1024); as many shards as that takes.  [default: one file]",
        metavar="SIZE",
        callback=_size,
    ),
)


@click.command(short_help="Pack crops into beton files.")
@option("--src", "Folder of crops.", FOLDER, Path("cropped"))
@option("--dst", "Folder of the beton files.", FOLDER, Path())
@option(
    "--stats stats_file",
    f"Statistics file of the training crops.  [default: {STATS_NAME} in --src]",
    FOLDER,
)
@option(
    "--split splits",
    "Split; may be given several times.  [default: all splits]",
    click.Choice(SPLITS),
    multiple=True,
)
@option(
    "--allow-empty-classes",
    "Build also where all training images of a class failed.",
    is_flag=True,
)
@packing_options
@where_options
@json_option
def build(
    src: Path,
    dst: Path,
    stats_file: Path | None,
    splits: tuple[str, ...],
    allow_empty_classes: bool,
    where: Where,
    as_json: bool,
    packing: dict[str, Any],
) -> None:
    """Pack crops into train.beton, val.beton, ..., with manifest and statistics.

    Files of the same names are replaced. Files of a build with another number of shards are an
    error: delete or move them first.

    \b
    Example: imagenet-prep build --src cropped --dst . --format mixed:0.5
    In shards: imagenet-prep build --shard-size 4GB
    """
    warn_stock_pillow()
    statistics = src / STATS_NAME if stats_file is None else stats_file
    with where.workers(reads=[src], writes=[dst]) as jobs:
        value = make_betons(
            where.path(src), where.path(dst), statistics, jobs, splits=splits,
            allow_empty_classes=allow_empty_classes, **packing,
        )  # fmt: skip
    print_result(as_json, value, results.build_lines(value))


def make_betons(
    src: Path,
    dst: Path,
    stats_file: Path,
    jobs: Jobs,
    *,
    splits: Sequence[str] = (),
    allow_empty_classes: bool = False,
    **packing: Any,
) -> dict[str, Any]:
    """Builds the splits with a progress bar -> the JSON value of ``build``."""
    from imagenet_prep.beton.build import build_beton
    from imagenet_prep.core.files import file_digest
    from imagenet_prep.dataset.classes import load_classes
    from imagenet_prep.dataset.journal import Crops
    from imagenet_prep.dataset.statistics import load_stats

    start = time.perf_counter()
    found = Crops(src)
    statistics = load_stats(stats_file)
    chosen = [s for s in SPLITS if s in splits] or found.splits or ("train",)
    require_way(dst, chosen, **packing)
    empty = found.failed_labels.get("train", []) if "train" in chosen else []
    if empty and not allow_empty_classes:
        raise ToolError(
            "build.empty_classes",
            f"{src}: all training images of {len(empty)} classes failed, the first is "
            f"{load_classes(src).names[empty[0]]}; mend them and crop again, or build with "
            "--allow-empty-classes",
        )
    _require_samples({split: found.counts.get(split, 0) for split in chosen}, **packing)
    common = {
        "stats": statistics,
        "stats_digest": file_digest(stats_file),
        "classes": load_classes(src),
        "crop_settings": found.settings,
        "jobs": jobs,
        **packing,
    }
    betons = []
    with Bar() as bar:
        for split in chosen:
            path, crops = dst / f"{split}.beton", found.of(split)
            manifest = build_beton(src, split, path, crops=crops, progress=bar, **common)
            betons.append(results.beton_value(path, manifest))
    seconds = time.perf_counter() - start
    rate = results.rate(sum(beton["samples"] for beton in betons), seconds)
    return {"betons": betons, "seconds": round(seconds, 3), "images_per_second": rate}


def _require_samples(
    counts: dict[str, int], *, shards: int | None, subset: int | float | None, **_: Any
) -> None:
    """UsageError for a split with fewer samples than files, before anything is built."""
    from imagenet_prep.beton.options import subset_count

    for split, available in counts.items():
        count = subset_count(available, subset)
        if count and shards is not None and shards > count:
            raise UsageError(
                "build.too_many_shards",
                f"--shards: the {count} samples of {split} cannot fill {shards} files; choose at "
                f"most {count}, or build one split at a time with --split",
            )


def require_way(
    dst: Path, splits: Sequence[str], *, shards: int | None, shard_size: int | None, **_: Any
) -> None:
    """UsageError where files of another number of shards are in ``dst``; with ``shard_size`` the
    number is known, and checked, only when a split is built."""
    for split in splits:
        if shard_size is None:
            check_way(dst / f"{split}.beton", shards)


@click.command(short_help="Index a beton file for decoding on a GPU.")
@click.argument("files", metavar="FILE...", type=FOLDER, nargs=-1, required=True)
@jobs_option
@json_option
def index(files: tuple[Path, ...], jobs: int | None, as_json: bool) -> None:
    """Make FILE.rows, the index that lets a GPU decode the JPEGs of a beton file, also of one
    that another program wrote. build makes it by itself; train.beton gets train.beton.rows.

    \b
    Example: imagenet-prep index train.beton
    """
    from imagenet_prep.dataset.rows import make_rows, publish_rows, source_of
    from imagenet_prep.jpeg.index import rows_beside
    from imagenet_prep.workers.processes import resolve_jobs

    values = []
    with Bar() as bar:
        for path in files:
            start = time.perf_counter()
            found, source = make_rows(path, resolve_jobs(jobs), bar), source_of(path)
            publish_rows(path, found, source)
            seconds = time.perf_counter() - start
            values.append(results.index_value(rows_beside(path), found, seconds))
    print_result(as_json, {"indexes": values}, results.index_lines(values))


@click.command(short_help="Check every byte of a beton file.")
@click.argument("files", metavar="FILE...", type=FOLDER, nargs=-1, required=True)
@option("--decode", "Also decode every image.", is_flag=True)
@jobs_option
@json_option
@click.pass_context
def verify(
    context: click.Context,
    files: tuple[Path, ...],
    decode: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Check every byte of a beton file, its manifest and its statistics; list damaged samples.

    FILE... is one beton file, or all shards of a set, or a pattern of them in quotes.

    \b
    Example: imagenet-prep verify train.beton --decode
    In shards: imagenet-prep verify 'train-*.beton'
    """
    from imagenet_prep.beton.verify import check_betons

    start = time.perf_counter()
    betons = find_betons(*files)
    with Bar() as bar:
        report = check_betons(betons, decode=decode, jobs=jobs, progress=bar)
    value = results.verify_value(report, betons, time.perf_counter() - start)
    if report.good:
        print_result(as_json, value, results.verify_lines(value))
        return
    count = f"{len(report.damaged)} of {report.samples} samples"
    error = ToolError(
        "beton.damaged",
        f"{betons}: is damaged ({count}); build it again with imagenet-prep build",
    )
    value["error"] = {"code": error.code, "message": str(error)}
    print_result(as_json, value, results.verify_lines(value))
    say(f"{PROGRAM}: {error}")
    context.exit(error.status)


@click.command(short_help="Describe a file, a folder or this installation.")
@click.argument("files", metavar="[FILE...]", type=FOLDER, nargs=-1)
@option("--image", "PNG file for the first samples of a beton file.", FILE)
@json_option
def info(files: tuple[Path, ...], image: Path | None, as_json: bool) -> None:
    """Describe a beton file, a statistics file or a folder of crops; without FILE: this
    installation, its libraries and the image formats that it reads.

    FILE... may also be all shards of a set, or a pattern of them in quotes.

    \b
    Example: imagenet-prep info train.beton --image train.png
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
        value = describe.about_betons(find_betons(*files, part=True), image)
    if image is not None and value["what"] != "beton":
        raise UsageError("info.image", "--image: needs a beton file; name one")
    print_result(as_json, value, results.info_lines(value))
