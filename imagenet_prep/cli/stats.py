"""The doorway of the statistics: ``imagenet-prep stats``, ``stats merge`` and ``stats show``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from imagenet_prep.cli import results as outcome
from imagenet_prep.cli.options import (
    FILE,
    FOLDER,
    Where,
    json_option,
    part_of,
    print_result,
    where_options,
)
from imagenet_prep.core.console import Bar
from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.dataset.names import SPLITS, STATS_NAME, stats_beside

if TYPE_CHECKING:
    from imagenet_prep.dataset.statistics import Stats
    from imagenet_prep.workers.processes import Jobs


class _StatsGroup(click.Group):
    """Without a command of its own it computes; another word is told what it could have been."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands:
            raise UsageError(
                f"stats: {args[0]} is neither merge nor show; pictures are named with --src"
            )
        return super().resolve_command(ctx, args)


@click.group(
    cls=_StatsGroup, invoke_without_command=True, short_help="Computes the exact statistics."
)
@click.option(
    "--src",
    type=FOLDER,
    default=Path("cropped"),
    show_default=True,
    help="Folder of crops, or a .beton.",
)
@click.option(
    "--split", type=click.Choice(SPLITS), help="Which crops.  [default: train; a beton's own]"
)
@click.option(
    "--part", metavar="K/N", callback=part_of, help="Only the K-th of N parts, to be merged."
)
@click.option("--out", type=FILE, help=f"The statistics file.  [default: {STATS_NAME} in --src]")
@click.option("--picture", type=FILE, help="Also draw them into this PNG.")
@where_options
@json_option
@click.pass_context
def stats(
    context: click.Context,
    src: Path,
    split: str | None,
    part: tuple[int, int] | None,
    out: Path | None,
    picture: Path | None,
    where: Where,
    as_json: bool,
) -> None:
    """Computes the mean picture and the colour statistics of the training crops, exactly.

    \b
    Example: imagenet-prep stats --src cropped --picture stats.png
    \b
    In two halves, on two machines perhaps:
      imagenet-prep stats --part 1/2 --out a.npz
      imagenet-prep stats --part 2/2 --out b.npz
      imagenet-prep stats merge a.npz b.npz --out stats.npz
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    target = _default_out(src, split, part) if out is None else out
    with where.workers(reads=[src]) as jobs:
        value, result = make_stats(where.path(src), target, jobs, split=split, part=part)
    if picture is not None:
        _draw(result, _preview_beside(target, src), picture)
    print_result(as_json, value, outcome.stats_lines(value))


def _refuse_options(context: click.Context) -> None:
    """Options between ``stats`` and its command would be forgotten in silence."""
    given = [
        option.opts[0]
        for option in context.command.params
        if option.name and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError(
            f"stats: {given[0]} stands before {context.invoked_subcommand}, which has options of "
            "its own; put it behind, or leave it out"
        )


def _default_out(src: Path, split: str | None, part: tuple[int, int] | None) -> Path:
    """``stats.npz`` in the folder, with the split and the part in its name where they matter."""
    words = [split] if split not in (None, "train") else []
    words += [f"{part[0]}-of-{part[1]}"] if part else []
    name = ".".join(["stats", *map(str, words), "npz"])
    return (src.parent if src.suffix == ".beton" else src) / name


def make_stats(
    src: Path,
    out: Path,
    jobs: Jobs,
    *,
    split: str | None = None,
    part: tuple[int, int] | None = None,
) -> tuple[dict[str, Any], Stats]:
    from imagenet_prep.stats.run import run_stats

    bar = Bar()
    start = time.perf_counter()
    try:
        result = run_stats(src, out, split=split, part=part, jobs=jobs, progress=bar)
    finally:
        bar.close()
    seconds = time.perf_counter() - start
    speed = {"seconds": round(seconds, 3), "images_per_second": outcome.rate(result.count, seconds)}
    return {**outcome.stats_value(result), **speed, "out": str(out)}, result


@stats.command()
@click.argument("files", type=FOLDER, nargs=-1, required=True, metavar="FILE...")
@click.option("--out", type=FILE, required=True, help="The statistics of all of them.")
@json_option
def merge(files: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Adds up statistics of different pictures.

    What comes out is what one run over all of them would have made. Pictures that two files have
    are noticed, but not of a file that is the sum of several whole sets.

    \b
    Example: imagenet-prep stats merge a.npz b.npz --out stats.npz
    """
    from imagenet_prep.stats.coverage import lacking
    from imagenet_prep.stats.run import merge_files

    result = merge_files(files, out)
    value = {
        **outcome.stats_value(result),
        "files": len(files),
        "lacking": lacking(result.coverage),
        "out": str(out),
    }
    print_result(as_json, value, outcome.merge_lines(value))


@stats.command()
@click.argument("file", type=FOLDER, required=False)
@click.option("--picture", type=FILE, help="The PNG.  [default: beside FILE, with its name]")
@click.option(
    "--preview", type=FILE, help="Picture to show the lighting on.  [default: a crop beside FILE]"
)
@click.option("--compare", type=FILE, help="Other statistics: ours, or published ones.")
@json_option
def show(
    file: Path | None,
    picture: Path | None,
    preview: Path | None,
    compare: Path | None,
    as_json: bool,
) -> None:
    """Draws statistics and prints their figures.

    They go into a PNG; with --compare, what differs from other statistics is printed. FILE
    is a statistics file, or a beton that has one; without it stats.npz, here or in cropped.
    Published figures may be .npz, .npy, .pt, .json, .txt or .csv.

    \b
    Example: imagenet-prep stats show stats.npz --compare published.npz
    """
    from imagenet_prep.dataset.statistics import load_stats
    from imagenet_prep.stats.compare import compare as differences
    from imagenet_prep.stats.published import read_references

    path = _shown_file(file)
    result = load_stats(path)
    target = path.with_suffix(".png") if picture is None else picture
    try:
        value = {"path": str(path), **outcome.stats_figures(result), "picture": str(target)}
    except ValueError as error:
        raise ToolError(f"{path}: {error}; make it again with imagenet-prep stats") from None
    if compare is not None:
        references = read_references(compare)
        value["compared"] = [differences(result, reference) for reference in references]
        value["compared_with"] = str(compare)
    _draw(result, _preview_beside(path, path.parent) if preview is None else preview, target)
    print_result(as_json, value, outcome.show_lines(value))


def _shown_file(file: Path | None) -> Path:
    if file is not None:
        return stats_beside(file) if file.suffix == ".beton" else file
    places = (Path(STATS_NAME), Path("cropped") / STATS_NAME)
    return next((place for place in places if place.exists()), places[0])


def _preview_beside(file: Path, folder: Path) -> Path | None:
    """A crop to preview the lighting of a statistics file on, or the beton it lies beside."""
    from imagenet_prep.dataset.journal_file import opened
    from imagenet_prep.dataset.names import JOURNAL_NAME

    if folder.suffix == ".beton":
        return folder
    if (folder / JOURNAL_NAME).is_file():
        with opened(folder / JOURNAL_NAME) as journal:
            rows = journal.execute("SELECT crop FROM source WHERE status = 'ok' ORDER BY key")
            return next((folder / crop for (crop,) in rows if (folder / crop).is_file()), None)
    beton = file.with_name(file.name.removesuffix(".stats.npz") + ".beton")
    return beton if beton.is_file() else None


def _draw(result: Stats, preview: Path | None, picture: Path) -> None:
    """The picture of statistics, the lighting on a picture, a beton's first, or their mean."""
    import numpy as np

    from imagenet_prep.core.files import publish
    from imagenet_prep.stats.plot import stats_picture

    if preview is None:
        example = np.rint(result.mean).astype(np.uint8)
    elif preview.suffix == ".beton":
        from imagenet_prep.stats.run import first_picture

        example = first_picture(preview)
    else:
        example = _cropped(preview, result.size_px)
    with publish(picture) as temporary:
        temporary.write_bytes(stats_picture(result, example))


def _cropped(preview: Path, size_px: int) -> Any:
    from imagenet_prep.crop.decode import ImageError
    from imagenet_prep.crop.image import crop_pixels
    from imagenet_prep.dataset.crop_settings import CropSettings

    try:
        return crop_pixels(preview.read_bytes(), CropSettings(size_px))
    except ImageError as error:
        raise UsageError(f"{preview}: {error}; choose another picture for --preview") from None
