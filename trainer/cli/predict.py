"""``trainer predict``: the likeliest classes of raw images."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from imagenet_prep.core.console import Bar, say
from imagenet_prep.core.errors import ToolError, UsageError
from trainer.cli.options import (
    AT_LEAST_ONE,
    FILE,
    checkpoint_option,
    config_options,
    json_option,
    print_json,
)

if TYPE_CHECKING:
    from trainer.inference.predict import Prediction

_MOST_DRAWN = 100


@click.command(short_help="The likeliest classes of images.")
@checkpoint_option
@click.option(
    "--top", type=AT_LEAST_ONE, default=5, show_default=True, help="Number of classes an image."
)
@click.option(
    "--image", "image_file", type=FILE, help="PNG file for a grid of the images with their classes."
)
@click.option("--csv", "as_csv", is_flag=True, help="Result as CSV on stdout.")
@click.argument("images", nargs=-1, required=True)
@config_options("device", "precision")
@json_option
def predict(
    checkpoint: Path,
    top: int,
    image_file: Path | None,
    as_csv: bool,
    images: tuple[str, ...],
    device: str,
    precision: str,
    as_json: bool,
) -> None:
    """The likeliest classes of IMAGES (JPEG, PNG, WebP, AVIF, ...).

    IMAGES are files, folders, archives (zip, tar), URLs, or - for one image on stdin. If a
    folder is named after a class, its images count as right or wrong.

    \b
    Example: trainer predict --checkpoint runs/small/best.pt --image grid.png cat.jpg holiday/
    """
    from trainer.inference.predict import list_inputs
    from trainer.inference.predict import predict as predictions

    if as_csv and as_json:
        raise UsageError("predict.csv_and_json", "--csv and --json exclude each other")
    table = csv.writer(sys.stdout, lineterminator="\n") if as_csv else None
    if table is not None:
        table.writerow(("image", "rank", "class", "name", "probability", "error"))
    bar = Bar()
    found: list[Prediction] = []
    drawn = 0
    for one in predictions(
        checkpoint, list_inputs(images), top=top, device=device, precision=precision, progress=bar
    ):
        bar.close()
        drawn += one.reason is None
        kept = image_file is not None and drawn <= _MOST_DRAWN  # not the pixels of all of them
        found.append(one if kept else replace(one, pixels=None))
        if one.reason is not None:
            say(f"trainer: {one.name}: {one.reason}; skipped")
        if table is not None:
            table.writerows(_csv_rows(one))
        elif not as_json and one.reason is None:
            _show_prediction(one)
    if image_file is not None:
        _draw(found, image_file)
    if as_json:
        print_json({"predictions": [_json_row(one) for one in found]})
    elif table is None:
        _show_share(found)
    if all(one.reason is not None for one in found):
        raise ToolError("predict.nothing_read", "none of the images could be read; see above")


def _json_row(one: Prediction) -> dict[str, Any]:
    if one.reason is not None:
        return {"path": one.name, "reason": one.reason}
    guesses = [
        {"class": g.name, "name": g.title, "probability": g.probability} for g in one.guesses
    ]
    value: dict[str, Any] = {"path": one.name, "classes": guesses}
    return value if one.truth is None else value | {"truth": one.truth, "right": one.right}


def _csv_rows(one: Prediction) -> list[tuple[object, ...]]:
    if one.reason is not None:
        return [(one.name, "", "", "", "", one.reason)]
    return [
        (one.name, rank, guess.name, guess.title, f"{guess.probability:.6f}", "")
        for rank, guess in enumerate(one.guesses, 1)
    ]


def _show_prediction(one: Prediction) -> None:
    click.echo(one.name)
    for guess in one.guesses:
        name = guess.title if guess.title == guess.name else f"{guess.title} ({guess.name})"
        click.echo(f"  {100 * guess.probability:6.2f} %  {name}")


def _show_share(found: list[Prediction]) -> None:
    """The accuracy over the images whose class is known."""
    known = [one.right for one in found if one.right is not None]
    if known:
        click.echo(f"{sum(known)} of {len(known)} correct ({sum(known) / len(known):.1%})")


def _draw(found: list[Prediction], image_file: Path) -> None:
    """The first images with their three likeliest classes, as a PNG at ``image_file``."""
    from imagenet_prep.core.files import publish
    from trainer.report.gallery import Tile, grid_png

    tiles = []
    for one in found:
        if one.pixels is None:
            continue
        head = PurePosixPath(one.name).name
        if one.truth is not None:
            head = f"{'✓' if one.right else '✗'} {one.truth}: {head}"
        lines = (f"{guess.probability:.0%} {guess.title}" for guess in one.guesses[:3])
        tiles.append(Tile(one.pixels, (head, *lines), one.right))
    good = sum(one.reason is None for one in found)
    if good > len(tiles):
        say(f"trainer: {image_file}: shows the first {len(tiles)} of {good} images")
    if tiles:
        with publish(image_file) as temporary:
            temporary.write_bytes(grid_png(tiles))
