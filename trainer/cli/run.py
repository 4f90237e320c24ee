"""``trainer run``: options in, training, lines and JSON out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagenet_prep.core.console import one_line
from imagenet_prep.core.errors import UsageError
from trainer import TRIVIAL_TOP5
from trainer.cli.options import (
    PATH,
    Duration,
    GroupedCommand,
    Option,
    SafeBar,
    echo,
    json_option,
    print_json,
    run_options,
)
from trainer.distributed import torchrun as launch
from trainer.interrupt import Stop, guard
from trainer.training.folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainer.config.run_config import RunConfig
    from trainer.training.run import RunResult

_SHARES = {
    "wait_share": "waiting for data",
    "communication_share": "in communication",
    "step_share": "in steps",
}


def _option(name: str, heading: str, text: str, **details: Any) -> Callable[[Any], Any]:
    return click.option(name, cls=Option, heading=heading, help=text, **details)


@click.command(cls=GroupedCommand)
@_option(
    "--beton", "Input and output", "Training set: a beton file, or a quoted pattern of shards.",
    type=PATH, required=True,
)  # fmt: skip
@_option(
    "--preset", "Input and output", "Preset; `trainer presets` lists them.",
    default="small", show_default=True,
)  # fmt: skip
@_option(
    "--val", "Input and output", "Validation set instead of val.beton beside --beton; further sets "
    "as NAME=FILE.  Repeatable.", multiple=True, metavar="[NAME=]FILE",
)  # fmt: skip
@_option(
    "--out", "Input and output", "Folder of the run.  [default: runs/<preset>, or a free "
    "runs/<preset>-N]", type=PATH,
)  # fmt: skip
@_option("--overwrite", "Input and output", "Replacement of the run in --out.", is_flag=True)
@_option(
    "--resume", "Interruptions", "Continuation of the run in --out (default: runs/<preset>).",
    is_flag=True,
)  # fmt: skip
@_option(
    "--force", "Interruptions", "With --resume: other settings or images allowed.", is_flag=True,
)  # fmt: skip
@_option(
    "--time-limit", "Interruptions", "Time until the run ends with a checkpoint, e.g. 11h30m.",
    type=Duration(), metavar="DURATION",
)  # fmt: skip
@run_options
@_option(
    "--timeout", "Several processes", "Longest wait for another process.  [default: 300]",
    type=click.FloatRange(0, min_open=True), metavar="SECONDS",
)  # fmt: skip
@json_option
def run(beton: Path, preset: str, **options: Any) -> None:
    """Trains a network; writes checkpoints, metrics and a report.

    val.beton (or its shards) and the statistics beside --beton are used. Options that are not
    given take the preset's value. Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 end the run after
    its step, with a checkpoint; the same signal again ends it at once.

    \b
    Several GPUs (--batch-size is per GPU):
      torchrun --nproc-per-node 4 -m trainer run --beton train.beton --out runs/one

    With torchrun --max-restarts 3, a run that lost a process continues from last.pt.

    \b
    Example: trainer run --beton train.beton --preset small --epochs 12
    """
    from trainer.config import presets
    from trainer.config.run_config import SETTINGS, with_options

    settings = {name: options.pop(name) for name in SETTINGS if name in options}
    config = with_options(presets.preset(preset), settings)
    given = _Given(**options)
    _check_launch(given)
    if given.force and not given.resume:
        raise UsageError("run.force_without_resume", "--force needs --resume; add it")
    base = Path("runs") / config.preset
    if not launch.is_main():  # other ranks neither read nor write there
        _train(config, beton, given.out or base, given)
        return
    again = given.out is not None and launch.continues(given.out)
    given = replace(given, resume=given.resume or again, overwrite=given.overwrite and not again)
    with RunFolder.choose(
        base, given.out, resume=given.resume, overwrite=given.overwrite
    ) as folder:
        _train(config, beton, folder.path, given)


@dataclass(frozen=True)
class _Given:
    """The options of ``run`` that are no settings of the recipe."""

    out: Path | None
    val: tuple[str, ...]
    resume: bool
    force: bool
    overwrite: bool
    time_limit: float | None
    timeout: float | None
    as_json: bool


def _check_launch(given: _Given) -> None:
    """UsageError for --timeout with one process, and for restarts without --out."""
    launch.check()
    if given.timeout is not None and not launch.several():
        raise UsageError(
            "run.one_process",
            "--timeout has no effect with one process; start several with torchrun, or remove it",
        )
    if launch.restarts() and given.out is None:
        raise UsageError(
            "run.restarts_without_out", "torchrun --max-restarts needs --out, to find the run again"
        )


def _train(config: RunConfig, beton: Path, folder: Path, given: _Given) -> None:
    """Trains with a progress bar, a line per epoch and signals; prints the result."""
    stop = Stop(given.time_limit)
    guard.folders += [folder] if launch.is_main() else []
    guard.stop_request = stop
    with stop.listening():
        from imagenet_prep.core.errors import quiet
        from trainer.distributed.world import TIMEOUT_S, World
        from trainer.training.run import train

        bar, world = SafeBar(), World.join(given.timeout or TIMEOUT_S)
        top5 = True

        def begin(classes: int) -> None:
            nonlocal top5
            top5 = classes > TRIVIAL_TOP5
            if world.main:
                echo(_first_line(config, folder, world.ranks), err=given.as_json)

        def report(row: dict[str, Any]) -> None:
            bar.close()
            echo(_epoch_line(row, config.epochs, top5=top5), err=given.as_json)

        def notice(message: str) -> None:
            bar.close()
            if world.main:
                echo(one_line(f"trainer: {message}"), err=True)

        try:
            result = train(
                config, beton, folder, resume=given.resume, force=given.force,
                overwrite=given.overwrite, validation=given.val, begin=begin, report=report,
                notice=notice, progress=bar if world.main else quiet, stop=stop, world=world,
            )  # fmt: skip
        finally:
            bar.close()
            world.leave()
    if world.main:
        _show(result, given.as_json)


def _first_line(config: RunConfig, folder: Path, ranks: int) -> str:
    """Preset, network and folder; the processes, if several."""
    text = f"preset {config.preset}, network {config.network}, to {folder}"
    total = config.batch_size * config.accumulate * ranks
    if ranks > 1:
        text += f"; {ranks} processes, {total} images in a step"
    return text


def _show(result: RunResult, as_json: bool) -> None:
    """Prints the result of a run."""
    folder = result.folder
    if as_json:
        print_json({"out": str(folder), "best": result.best, "seconds": result.seconds})
        return
    best = result.best
    if "val_top1_error" in best:
        errors = _errors(best, "val", top5=result.classes > TRIVIAL_TOP5)
        echo(f"best: epoch {best['epoch']}, validation {errors}; {result.seconds:.0f} s")
    echo(f"report: {folder / 'report.html'}; checkpoint to predict with: {folder / 'best.pt'}")


def _epoch_line(row: dict[str, Any], epochs: int, *, top5: bool) -> str:
    text = f"epoch {row['epoch']:>3}/{epochs}"
    for part in ("train", "val"):
        if f"{part}_loss" in row:
            loss, errors = row[f"{part}_loss"], _errors(row, part, top5=top5, width=5)
            text += f"  {part}: loss {loss:.3f}, {errors}"
    text += f"  {row['images_per_second']:.0f} images/s"
    text += f" of {row['image_px']} px" if "image_px" in row else ""
    rest = 1.0
    for name, words in _SHARES.items():
        if name in row:
            rest -= row[name]
            text += f", {100 * row[name]:.1f} % {words}{_by_rank(row, name)}"
    return text if rest < 0.0005 else f"{text}, {100 * rest:.1f} % writing checkpoints"


def _errors(row: dict[str, Any], part: str, *, top5: bool, width: int = 0) -> str:
    """Top-1 and, with enough classes, top-5 error of a row's ``part``, in percent."""
    text = f"top-1 error {row[f'{part}_top1_error']:{width}.2f} %"
    return f"{text}, top-5 {row[f'{part}_top5_error']:{width}.2f} %" if top5 else text


def _by_rank(row: dict[str, Any], name: str) -> str:
    """The share of each rank in percent, in brackets; nothing for one process."""
    shares = row.get("by_rank", {}).get(name, [])
    return f" ({' '.join(f'{100 * share:.1f}' for share in shares)})" if shares else ""
