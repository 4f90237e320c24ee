"""``trainer eval``: loss and errors of a checkpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagenet_prep.core.console import Bar
from trainer import TRIVIAL_TOP5
from trainer.cli.options import (
    FILE,
    PATH,
    BetonCommand,
    checkpoint_option,
    config_options,
    json_option,
    print_json,
    table,
)

if TYPE_CHECKING:
    from imagenet_prep.dataset.classes import Classes
    from trainer.inference.evaluate import Evaluation

_LARGEST_MATRIX = 20


@click.command(
    "eval", cls=BetonCommand, short_help="Loss and errors of a checkpoint on a beton file."
)
@checkpoint_option
@click.option(
    "--beton",
    type=PATH,
    required=True,
    help="Set to evaluate: a beton file, or a quoted pattern of shards.",
)
@click.option(
    "--views",
    type=click.Choice(["1", "5", "10"]),
    default="1",
    show_default=True,
    help="Views of each image: centre; and corners; and their horizontal flips.",
)
@click.option(
    "--table", "as_table", is_flag=True, help="Table of errors by class and confusion matrix."
)
@click.option(
    "--image", "image_file", type=FILE, help="PNG file for a grid of images with their classes."
)
@config_options("batch_size", default=None, help="Views in a batch.")
@config_options("device", "precision", "jobs")
@json_option
def evaluate(
    checkpoint: Path,
    beton: Path,
    views: str,
    as_table: bool,
    image_file: Path | None,
    batch_size: int | None,
    device: str,
    precision: str,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Loss, top-1 and top-5 error (percent) of a checkpoint on a beton file.

    The probabilities of several views are averaged, as in the paper. --json always has the
    classes and the confusion matrix (rows: true classes). --image shows 24 images from all
    over the set, and the 12 worst mistakes.

    \b
    Example: trainer eval --checkpoint runs/small/best.pt --beton val.beton --views 10 --table
    """
    from trainer.inference.evaluate import evaluate_beton

    bar = Bar()
    started = time.perf_counter()
    try:
        found, classes = evaluate_beton(
            checkpoint, beton, device=device, batch_size=batch_size, precision=precision,
            jobs=jobs, progress=bar, views=int(views),
        )  # fmt: skip
    finally:
        bar.close()
    result = found.result
    if image_file is not None:
        _draw(beton, found, classes, image_file)
    if as_json:
        values = {
            "loss": result.loss,
            "top1_error": result.top1_error,
            "top5_error": result.top5_error,
            "images": result.images,
            "views": int(views),
            "seconds": time.perf_counter() - started,
            "classes": found.by_class(classes),
            "confusion": found.confusion.tolist(),
        }
        print_json(values)
        return
    text = (
        f"{result.images} images, {views} view{'s' if views != '1' else ''}: loss "
        f"{result.loss:.4f}, top-1 error {result.top1_error:.2f} %"
    )
    if len(classes) > TRIVIAL_TOP5:
        text += f", top-5 error {result.top5_error:.2f} %"
    click.echo(text)
    if as_table:
        click.echo("\n".join(["", *_class_lines(found, classes), "", *_matrix(found, classes)]))


def _draw(beton: Path, found: Evaluation, classes: Classes, image_file: Path) -> None:
    """Some of the images with their true and their likeliest class, as a PNG."""
    from imagenet_prep.core.files import publish
    from trainer.report.gallery import grid_png, spread_examples

    with publish(image_file) as temporary:
        temporary.write_bytes(grid_png(spread_examples(beton, found.judged, classes)))


def _class_lines(found: Evaluation, classes: Classes) -> list[str]:
    """The classes, the worst first, with what each is most often taken for."""

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f} %"

    def badness(row: dict[str, Any]) -> float:
        return -1.0 if row["top1_error"] is None else float(row["top1_error"])

    shown = 2 if len(classes) > TRIVIAL_TOP5 else 1
    rows = sorted(found.by_class(classes), key=badness, reverse=True)
    cells = []
    for row in rows:
        other = row["taken_for"]
        taken = "–"
        if other is not None:
            title = classes.title(classes.names.index(other))
            taken = f"{title} ({row['taken_for_images']})"
        errors = [percent(row[name]) for name in ("top1_error", "top5_error")[:shown]]
        cells.append([row["name"], str(row["images"]), *errors, taken])
    errors = ["top-1 error", "top-5 error"][:shown]
    return table(["class", "images", *errors, "most often taken for"], cells)


def _matrix(found: Evaluation, classes: Classes) -> list[str]:
    """The confusion matrix: true classes in rows, predicted ones in columns by number."""
    if len(classes) > _LARGEST_MATRIX:
        return [f"confusion of {len(classes)} classes: too wide for a terminal; see --json"]
    titles = [f"{label}: {classes.title(label)}" for label in range(len(classes))]
    rows = [
        [title, *map(str, counts)]
        for title, counts in zip(titles, found.confusion.tolist(), strict=True)
    ]
    return table(["true class \\ predicted", *map(str, range(len(classes)))], rows)
