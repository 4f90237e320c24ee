"""``trainer doctor``: what limits a run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagenet_prep.core.console import Bar
from trainer.cli.options import (
    PATH,
    BetonCommand,
    config_options,
    json_option,
    print_json,
    table,
)

if TYPE_CHECKING:
    from trainer.doctor import Diagnosis

_BAR = 32
_FAR = 10


@click.command(
    cls=BetonCommand, short_help="The limit of a run: disk, decoding, step or evaluation; remedies."
)
@click.option(
    "--beton",
    type=PATH,
    required=True,
    help="Training set: a beton file, or a quoted pattern of shards.",
)
@click.option(
    "--preset", default="small", show_default=True, help="Preset; `trainer presets` lists them."
)
@config_options("network", "batch_size", "crop_size", default=None)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds for each stage.",
)
@config_options("device", "precision", "jobs")
@json_option
def doctor(beton: Path, preset: str, seconds: float, as_json: bool, **options: Any) -> None:
    """Measures what limits a run: disk, decoding, copy to the device, step and evaluation alone,
    and loader and step together.

    \b
    Example: trainer doctor --beton train.beton --preset small
    """
    from trainer.config import presets
    from trainer.config.run_config import with_options
    from trainer.doctor import examine

    config = with_options(presets.preset(preset), options)
    bar = Bar()
    try:
        found = examine(config, beton, seconds=seconds, progress=bar)
    finally:
        bar.close()
    if as_json:
        print_json(asdict(found) | {"preset": preset})
        return
    click.echo("\n".join(_lines(found)))


def _lines(found: Diagnosis) -> list[str]:
    """A bar of milliseconds an image for each stage (the longest one limits), and the verdict."""
    times = [1000 / max(stage.images_per_second, 1e-9) for stage in found.stages]
    rows = []
    for stage, ms in zip(found.stages, times, strict=True):
        bar = "█" * max(1, round(_BAR * ms / max(times)))
        rows.append([stage.name, f"{ms:.2f}", f"{stage.images_per_second:,.0f}", bar.ljust(_BAR)])
    lines = table(["stage", "ms/image", "images/s", "longer is slower".ljust(_BAR)], rows)
    lines = [
        f"{line.ljust(max(map(len, lines)))}  {note}".rstrip()
        for line, note in zip(lines, ["", *(stage.note for stage in found.stages)], strict=True)
    ]
    if found.tried:
        lines += ["", "also tried, the step alone:"]
        lines += [
            f"  {stage.name:<24}{stage.images_per_second:>10,.0f} images/s  {stage.note}".rstrip()
            for stage in found.tried
        ]
    if found.gain > _FAR:
        by = f"without it the run would be more than {_FAR} times as fast"
    elif found.gain > 1.005:
        by = f"the run would be at most {found.gain:.1f} times as fast without it"
    else:
        by = "nothing else costs time"
    lines += ["", f"The {found.limit} limits this run: {by}. What helps:"]
    return lines + [f"  - {advice}" for advice in found.advice]
