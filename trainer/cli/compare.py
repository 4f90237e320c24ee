"""``trainer compare``: settings that differ, best figures and curves of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trainer.cli.options import FILE, PATH, json_option, print_json, setting_text, table

_FIGURES = {
    "val_top1_error": "val top-1 error (%)",
    "val_top5_error": "val top-5 error (%)",
    "val_loss": "val loss",
    "train_top1_error": "train top-1 error (%)",
    "train_loss": "train loss",
}


@click.command(short_help="Settings, best figures and curves of several runs.")
@click.argument("runs", type=PATH, nargs=-1, required=True)
@click.option("--image", "image_file", type=FILE, help="PNG file for the curves.")
@json_option
def compare(runs: tuple[Path, ...], image_file: Path | None, as_json: bool) -> None:
    """The settings in which RUNS (folders) differ, and their best figures side by side.

    The best epoch is that of the lowest validation error, without a validation set the last.

    \b
    Example: trainer compare runs/small runs/small-2 --image curves.png
    """
    from trainer.report.compare import chart_png
    from trainer.report.compare import compare as compared

    found = compared(runs)
    if image_file is not None:
        from imagenet_prep.core.files import publish

        with publish(image_file) as temporary:
            temporary.write_bytes(chart_png(found["runs"]))
    if as_json:
        print_json(found)
        return
    click.echo("\n".join(table(["", *(run["folder"] for run in found["runs"])], _rows(found))))


def _rows(found: dict[str, Any]) -> list[list[str]]:
    """The lines of the table: settings, then figures, one column per run."""
    runs = found["runs"]
    rows = [[name, *map(setting_text, values)] for name, values in found["settings"].items()]
    rows.append(["epochs trained", *(str(run["epochs"]) for run in runs)])
    rows.append(["best epoch", *(str(run["best"]["epoch"]) for run in runs)])
    for name, title in _FIGURES.items():
        values = [run["best"].get(name) for run in runs]
        if any(value is not None for value in values):
            rows.append([title, *("–" if value is None else f"{value:.4g}" for value in values)])
    rows.append(["seconds", *(f"{run['seconds']:.0f}" for run in runs)])
    return rows
