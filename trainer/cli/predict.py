"""The doorway of predictions on raw pictures: ``trainer predict``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagenet_prep.core.console import Bar, say
from imagenet_prep.core.errors import ToolError
from trainer.cli.options import (
    AT_LEAST_ONE,
    FILE,
    PATH,
    checkpoint_option,
    config_options,
    json_option,
    print_json,
)

if TYPE_CHECKING:
    from trainer.inference.predict import Prediction

_MOST_DRAWN = 100


@click.command(short_help="The likeliest classes of pictures.")
@checkpoint_option
@click.option("--top", type=AT_LEAST_ONE, default=5, show_default=True, help="Classes to show.")
@click.option("--picture", type=FILE, help="Also draw the pictures with their classes (PNG).")
@click.argument("pictures", type=PATH, nargs=-1, required=True)
@config_options("device", "precision")
@json_option
def predict(
    checkpoint: Path,
    top: int,
    picture: Path | None,
    pictures: tuple[Path, ...],
    device: str,
    precision: str,
    as_json: bool,
) -> None:
    """The likeliest classes of PICTURES (files or folders; JPEG, PNG, WebP, AVIF, ...).

    Pictures in a folder that is called as their class count as right or wrong, and are marked
    so in --picture.

    \b
    Example: trainer predict --checkpoint runs/small/best.pt --picture grid.png cat.jpg holiday/
    """
    from trainer.inference.predict import list_pictures
    from trainer.inference.predict import predict as predictions

    bar = Bar()
    found: list[Prediction] = []
    drawn = 0
    paths = list_pictures(pictures)
    for one in predictions(
        checkpoint, paths, top=top, device=device, precision=precision, progress=bar
    ):
        bar.close()
        drawn += one.reason is None
        kept = picture is not None and drawn <= _MOST_DRAWN  # not the pixels of all of them
        found.append(one if kept else replace(one, pixels=None))
        if one.reason is not None:
            say(f"trainer: {one.path}: {one.reason}; left out")
        elif not as_json:
            _show_prediction(one)
    if picture is not None:
        _draw(found, picture)
    if as_json:
        print_json({"predictions": [_prediction_row(one) for one in found]})
    else:
        _show_share(found)
    if all(one.reason is not None for one in found):
        raise ToolError("none of the pictures could be read; the reasons are above")


def _prediction_row(one: Prediction) -> dict[str, Any]:
    if one.reason is not None:
        return {"path": str(one.path), "reason": one.reason}
    guesses = [
        {"class": g.name, "name": g.title, "probability": g.probability} for g in one.guesses
    ]
    value: dict[str, Any] = {"path": str(one.path), "classes": guesses}
    return value if one.truth is None else value | {"truth": one.truth, "right": one.right}


def _show_prediction(one: Prediction) -> None:
    click.echo(str(one.path))
    for guess in one.guesses:
        name = guess.title if guess.title == guess.name else f"{guess.title} ({guess.name})"
        click.echo(f"  {100 * guess.probability:6.2f} %  {name}")


def _show_share(found: list[Prediction]) -> None:
    """How many of the pictures whose class is known were recognised."""
    known = [one.right for one in found if one.right is not None]
    if known:
        share = sum(known) / len(known)
        click.echo(f"{sum(known)} of {len(known)} are as their folders say ({share:.1%})")


def _draw(found: list[Prediction], picture: Path) -> None:
    """The first pictures with their three likeliest classes, as a PNG at ``picture``."""
    from imagenet_prep.core.files import publish
    from trainer.report.gallery import Tile, grid_png

    tiles = []
    for one in found:
        if one.pixels is None:
            continue
        head = one.path.name
        if one.truth is not None:
            head = f"{'✓' if one.right else '✗'} {one.truth}: {head}"
        said = (f"{guess.probability:.0%} {guess.title}" for guess in one.guesses[:3])
        tiles.append(Tile(one.pixels, (head, *said), one.right))
    good = sum(one.reason is None for one in found)
    if good > len(tiles):
        say(f"trainer: {picture}: shows the first {len(tiles)} of {good} pictures")
    if tiles:
        with publish(picture) as temporary:
            temporary.write_bytes(grid_png(tiles))
