"""``imagenet-prep stats`` and ``stats show``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from imagenet_prep.cli import results
from imagenet_prep.cli.options import (
    FILE,
    FOLDER,
    Where,
    json_option,
    option,
    print_result,
    where_options,
)
from imagenet_prep.core.console import Bar
from imagenet_prep.core.errors import UsageError
from imagenet_prep.dataset.names import SPLITS, STATS_NAME, stats_beside

if TYPE_CHECKING:
    from imagenet_prep.dataset.statistics import Stats
    from imagenet_prep.workers.processes import Jobs


class _StatsGroup(click.Group):
    """Computes without a subcommand; an unknown word is an error that names --src."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands:
            message = f"stats: {args[0]} is not a subcommand (show); name the crops with --src"
            raise UsageError("stats.subcommand", message)
        return super().resolve_command(ctx, args)


@click.group(
    cls=_StatsGroup, invoke_without_command=True, short_help="Compute exact statistics of crops."
)
@option("--src", "Folder of crops, or a .beton file.", FOLDER, Path("cropped"))
@option("--split", "Split.  [default: train; that of a .beton file]", click.Choice(SPLITS))
@option("--out", f"Statistics file.  [default: {STATS_NAME} in --src]", FILE)
@option("--image", "PNG file for a plot of the statistics.", FILE)
@where_options
@json_option
@click.pass_context
def stats(
    context: click.Context,
    src: Path,
    split: str | None,
    out: Path | None,
    image: Path | None,
    where: Where,
    as_json: bool,
) -> None:
    """Compute the mean image and the colour statistics of the training crops, exactly.

    \b
    Example: imagenet-prep stats --src cropped --image stats.png
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    name = f"stats.{split}.npz" if split not in (None, "train") else STATS_NAME
    target = (src.parent if src.suffix == ".beton" else src) / name if out is None else out
    with where.workers(reads=[src]) as jobs:
        value, result = make_stats(where.path(src), target, jobs, split=split)
    if image is not None:
        _draw(result, _preview_beside(target, src), image)
    print_result(as_json, value, results.stats_lines(value))


def _refuse_options(context: click.Context) -> None:
    """UsageError for options between ``stats`` and its subcommand, which would be ignored."""
    for given in context.command.params:
        source = context.get_parameter_source(given.name or "")
        if source is ParameterSource.COMMANDLINE:
            command = context.invoked_subcommand
            message = f"stats: {given.opts[0]} stands before {command}; put it after, or omit it"
            raise UsageError("stats.option_order", message)


def make_stats(
    src: Path, out: Path, jobs: Jobs, *, split: str | None = None
) -> tuple[dict[str, Any], Stats]:
    """Runs ``run_stats`` with a progress bar -> the JSON value of ``stats``, and the result."""
    from imagenet_prep.stats.run import run_stats

    start = time.perf_counter()
    with Bar() as bar:
        result = run_stats(src, out, split=split, jobs=jobs, progress=bar)
    seconds = time.perf_counter() - start
    speed = {"seconds": round(seconds, 3), "images_per_second": results.rate(result.count, seconds)}
    return {**results.stats_value(result), **speed, "out": str(out)}, result


@stats.command(short_help="Plot and print a statistics file.")
@click.argument("file", type=FOLDER, required=False)
@option("--image", "PNG file.  [default: beside FILE, with its name]", FILE)
@option("--preview", "Image for the lighting preview.  [default: a crop beside FILE]", FILE)
@option("--compare", "Statistics file to compare with: ours, or a published .npz file.", FILE)
@json_option
def show(
    file: Path | None,
    image: Path | None,
    preview: Path | None,
    compare: Path | None,
    as_json: bool,
) -> None:
    """Plot a statistics file as PNG and print its figures.

    FILE is a statistics file, or a .beton file that has one beside it.  [default: stats.npz,
    here or in cropped]

    \b
    Example: imagenet-prep stats show stats.npz --compare published.npz
    """
    from imagenet_prep.dataset.statistics import load_stats
    from imagenet_prep.stats import compare as comparing

    path = _shown_file(file)
    result = load_stats(path)
    target = path.with_suffix(".png") if image is None else image
    value = {"path": str(path), **results.stats_figures(result), "image": str(target)}
    if compare is not None:
        references = comparing.read_references(compare)
        value["compared"] = [comparing.compare(result, reference) for reference in references]
        value["compared_with"] = str(compare)
    _draw(result, _preview_beside(path, path.parent) if preview is None else preview, target)
    print_result(as_json, value, results.show_lines(value))


def _shown_file(file: Path | None) -> Path:
    if file is not None:
        return stats_beside(file) if file.suffix == ".beton" else file
    places = (Path(STATS_NAME), Path("cropped") / STATS_NAME)
    return next((place for place in places if place.exists()), places[0])


def _preview_beside(file: Path, folder: Path) -> Path | None:
    """An image for the lighting preview: a crop in ``folder``, or the beton beside ``file``."""
    from imagenet_prep.dataset.journal import opened
    from imagenet_prep.dataset.names import JOURNAL_NAME

    if folder.suffix == ".beton":
        return folder
    if (folder / JOURNAL_NAME).is_file():
        with opened(folder / JOURNAL_NAME) as journal:
            rows = journal.execute("SELECT crop FROM source WHERE status = 'ok' ORDER BY key")
            return next((folder / crop for (crop,) in rows if (folder / crop).is_file()), None)
    beton = file.with_name(file.name.removesuffix(".stats.npz") + ".beton")
    return beton if beton.is_file() else None


def _draw(result: Stats, preview: Path | None, target: Path) -> None:
    """Plots statistics; without a preview image the lighting is shown on the mean image."""
    import numpy as np

    from imagenet_prep.core.files import publish
    from imagenet_prep.stats.plot import stats_image

    if preview is None:
        example = np.rint(result.mean).astype(np.uint8)
    elif preview.suffix == ".beton":
        from imagenet_prep.beton.build import read_samples

        ((example, _),) = read_samples(preview, 1)
    else:
        example = _cropped(preview, result.size_px)
    with publish(target) as temporary:
        temporary.write_bytes(stats_image(result, example))


def _cropped(preview: Path, size_px: int) -> Any:
    from imagenet_prep.crop.decode import ImageError
    from imagenet_prep.crop.image import crop_pixels
    from imagenet_prep.dataset.crop_settings import CropSettings

    try:
        if not preview.is_file():
            raise ImageError("preview", "it is not a file")
        return crop_pixels(preview.read_bytes(), CropSettings(size_px))
    except ImageError as error:
        message = f"--preview: {preview} does not decode ({error}); choose another image"
        raise UsageError("stats.preview", message) from None
