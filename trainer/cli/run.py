"""``trainer run``: options in, training, lines and JSON out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagenet_prep.core.console import Bar, say
from imagenet_prep.core.errors import UsageError
from trainer import TRIVIAL_TOP5
from trainer.cli.options import (
    PATH,
    GroupedCommand,
    Option,
    doorkeeper,
    json_option,
    print_json,
    run_options,
)
from trainer.distributed import torchrun as launch
from trainer.interrupt import Stop
from trainer.training.schedule import peak_rate

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
    "--out", "Input and output", "Folder of the run.  [default: a free name runs/<preset>-N]",
    type=PATH,
)  # fmt: skip
@_option("--overwrite", "Input and output", "Replacement of the run in --out.", is_flag=True)
@_option(
    "--resume", "Interruptions", "Continuation of the run in --out (default: runs/<preset>).",
    is_flag=True,
)  # fmt: skip
@_option(
    "--force", "Interruptions", "With --resume: other settings or images.", is_flag=True,
)  # fmt: skip
@run_options
@_option(
    "--timeout", "Several processes", "Longest wait for another process.  [default: 300]",
    type=click.FloatRange(0, min_open=True), metavar="SECONDS",
)  # fmt: skip
@json_option
def run(
    beton: Path,
    preset: str,
    out: Path | None,
    resume: bool,
    force: bool,
    overwrite: bool,
    as_json: bool,
    timeout: float | None,
    **options: Any,
) -> None:
    """Trains a network; writes checkpoints, metrics and a report.

    val.beton (or its shards) and the statistics beside --beton are used. Options that are not
    given take the preset's value. Ctrl-C and SIGTERM end the run after its step, with a
    checkpoint; a second signal ends it at once.

    \b
    Several GPUs (--batch-size is per GPU):
      torchrun --nproc-per-node 4 -m trainer run --beton train.beton --out runs/one

    With torchrun --max-restarts 3, a run that lost a process continues from last.pt.

    \b
    Example: trainer run --beton train.beton --preset small --epochs 12
    """
    from trainer.config import presets
    from trainer.config.run_config import with_options

    config = with_options(presets.preset(preset), options)
    _check_launch(options["gradients"], timeout, out)
    if force and not resume:
        raise UsageError("run.force_without_resume", "--force needs --resume; add it")
    if launch.is_main():
        again = out is not None and launch.continues(out)
        resume, overwrite = resume or again, overwrite and not again
        folder = _run_folder(config, out, resume=resume, overwrite=overwrite)
    else:  # other ranks neither read nor write there
        folder = out or Path("runs") / config.preset
    _train(config, beton, folder, resume=resume, force=force, as_json=as_json, timeout=timeout)


def _check_launch(gradients: str | None, timeout: float | None, out: Path | None) -> None:
    """UsageError for what does nothing with one process, or cannot be with restarts."""
    if not launch.several():
        for option, given in (("--gradients", gradients), ("--timeout", timeout)):
            if given is not None:
                raise UsageError(
                    f"{option} does nothing with one process; start several with torchrun, or "
                    "leave it out"
                )
    if launch.restarts() and out is None:
        raise UsageError("torchrun --max-restarts: a restart could not find the run; add --out")


def _train(
    config: RunConfig,
    beton: Path,
    folder: Path,
    *,
    resume: bool,
    force: bool,
    as_json: bool,
    timeout: float | None,
) -> None:
    """Trains with a bar, a line per epoch and an ear for signals; prints what came of it."""
    stop = Stop()
    doorkeeper.watch(folder if launch.is_main() else None, stop)
    with stop.listening():
        from imagenet_prep.core.errors import quiet
        from trainer.distributed.world import TIMEOUT_S, World
        from trainer.training.run import train

        bar, world = Bar(), World.join(timeout or TIMEOUT_S)
        lines, several = sys.stderr if as_json else sys.stdout, True

        def begin(classes: int) -> None:
            nonlocal several
            several = classes > TRIVIAL_TOP5
            if world.main:
                click.echo(_first_line(config, folder, world.ranks), file=lines)

        def report(row: dict[str, Any]) -> None:
            bar.close()
            click.echo(_epoch_line(row, config.epochs, top5=several), file=lines)

        def notice(sentence: str) -> None:
            bar.close()
            if world.main:
                say(f"trainer: {sentence}")

        try:
            result = train(
                config, beton, folder, resume=resume, force=force, begin=begin, report=report,
                notice=notice, progress=bar if world.main else quiet, stop=stop, world=world,
            )  # fmt: skip
        finally:
            bar.close()
            world.leave()
    if world.main:
        _show(result, as_json)


def _first_line(config: RunConfig, folder: Path, ranks: int) -> str:
    """What is trained where; with several processes or a scaled learning rate, that too."""
    text = f"preset {config.preset}, network {config.network}, to {folder}"
    total = config.batch_size * config.accumulate * ranks
    if ranks > 1:
        text += f"; {ranks} processes, {total} pictures in a step"
    if config.lr_per:
        rate = peak_rate(config.lr, config.lr_per, total)
        text += f"; learning rate {config.lr:g} per {config.lr_per} pictures: {rate:g} for {total}"
    return text


def _show(result: RunResult, as_json: bool) -> None:
    """What came of a run."""
    folder = result.folder
    if as_json:
        print_json({"out": str(folder), "best": result.best, "seconds": result.seconds})
        return
    best = result.best
    if "val_top1_error" in best:
        errors = _errors(best, "val", top5=result.classes > TRIVIAL_TOP5)
        click.echo(
            f"best: epoch {best['epoch']}, validation {errors}; {result.seconds:.0f} s in all"
        )
    click.echo(f"look at {folder / 'report.html'}; predict with --checkpoint {folder / 'best.pt'}")


def _run_folder(config: RunConfig, out: Path | None, *, resume: bool, overwrite: bool) -> Path:
    """Where the run goes; a sentence where that is taken or not there."""
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other; give one of them")
    base = Path("runs") / config.preset
    if resume:
        folder = out or base
        if not (folder / "config.json").exists():
            raise UsageError(f"{folder}: no run to resume; name the run's folder in --out")
        return folder
    if out is None:
        folder, number = base, 1
        while folder.exists() and not overwrite:
            number += 1
            folder = base.with_name(f"{base.name}-{number}")
        return folder
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file, not a folder; give another --out")
    if overwrite:
        return out
    if (out / "last.pt").exists():
        raise UsageError(
            f"{out}: already holds a run; continue it with --resume, replace it with "
            "--overwrite, or give another --out"
        )
    if (out / "best.pt").exists():
        raise UsageError(
            f"{out}: holds the best.pt of a run; replace it with --overwrite, or give another --out"
        )
    return out


def _epoch_line(row: dict[str, Any], epochs: int, *, top5: bool) -> str:
    text = f"epoch {row['epoch']:>3}/{epochs}"
    for part in ("train", "val"):
        if f"{part}_loss" in row:
            loss, errors = row[f"{part}_loss"], _errors(row, part, top5=top5, width=5)
            text += f"  {part}: loss {loss:.3f}, {errors}"
    text += f"  {row['images_per_second']:.0f} images/s"
    rest = 1.0
    for name, words in _SHARES.items():
        if name in row:
            rest -= row[name]
            text += f", {100 * row[name]:.1f} % {words}{_by_rank(row, name)}"
    return text if rest < 0.0005 else f"{text}, {100 * rest:.1f} % writing checkpoints"


def _errors(row: dict[str, Any], part: str, *, top5: bool, width: int = 0) -> str:
    """Top-1 and, where it says anything, top-5 error of a row's ``part``, in percent."""
    text = f"top-1 error {row[f'{part}_top1_error']:{width}.2f} %"
    return f"{text}, top-5 {row[f'{part}_top5_error']:{width}.2f} %" if top5 else text


def _by_rank(row: dict[str, Any], name: str) -> str:
    """The share of each rank in percent, in brackets; nothing for one process."""
    shares = row.get("by_rank", {}).get(name, [])
    return f" ({' '.join(f'{100 * share:.1f}' for share in shares)})" if shares else ""
