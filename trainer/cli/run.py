"""The doorway of training: ``trainer run``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagenet_prep.core.console import Bar, say
from imagenet_prep.core.errors import UsageError
from trainer import TRIVIAL_TOP5
from trainer.cli.options import (
    AT_LEAST_ONE,
    CHANNELS,
    PATH,
    GroupedCommand,
    Option,
    device_option,
    doorkeeper,
    jobs_option,
    json_option,
    precision_option,
    print_json,
)
from trainer.config.run_config import (
    COMPILES,
    GRADIENTS,
    LIGHTING_MODES,
    MEANS,
    OPTIMIZERS,
    ORDERS,
    SCHEDULES,
)
from trainer.distributed import torchrun as launch
from trainer.interrupt import Stop
from trainer.training.schedule import peak_rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainer.config.run_config import RunConfig
    from trainer.training.run import RunResult

COUNT = click.IntRange(min=0)
AT_LEAST_ZERO = click.FloatRange(min=0)
ABOVE_ZERO = click.FloatRange(min=0, min_open=True)
SHARE = click.FloatRange(min=0, max=1, max_open=True)
_SHARES = {
    "wait_share": "waiting for data",
    "communication_share": "in communication",
    "step_share": "in steps",
}


def epochs(value: str) -> tuple[int, ...]:
    """``25,51,79`` -> (25, 51, 79); a usage error for anything else."""
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of epochs such as 25,51,79") from None


def _choice(*names: str) -> click.Choice[str]:
    return click.Choice(names)


# (heading, option, type, help): settings of RunConfig; what is not given is the preset's.
_SETTINGS: tuple[tuple[str, str, Any, str], ...] = (
    ("The recipe", "--network", str, "Another network than the preset's; see `summary`."),
    ("The recipe", "--channels", CHANNELS, "3, or 1 for a network that sees grey."),
    ("The recipe", "--epochs", AT_LEAST_ONE, "Passes over the training set."),
    ("The recipe", "--batch-size", AT_LEAST_ONE, "Pictures at once."),
    ("The recipe", "--accumulate", AT_LEAST_ONE, "Batches that make one step."),
    ("The recipe", "--seed", click.IntRange(0, 2**31 - 1), "Of everything random."),
    ("Learning", "--optimizer", _choice(*OPTIMIZERS), "lars is for batches of thousands."),
    ("Learning", "--lr", ABOVE_ZERO, "Peak learning rate, for levels of 0-255."),
    ("Learning", "--lr-per", COUNT, "Pictures of a step that --lr is for: it scales with those of "
     "all processes; 0: it does not."),
    ("Learning", "--momentum", SHARE, "Of sgd and lars."),
    ("Learning", "--trust", ABOVE_ZERO, "Of lars: the length of a step in lengths of the weights."),
    ("Learning", "--weight-decay", AT_LEAST_ZERO, "Of weights."),
    ("Learning", "--bias-rate", ABOVE_ZERO, "How many times as fast biases learn (2012: 2)."),
    ("Learning", "--decay-biases/--no-decay-biases", bool, "Whether biases decay too."),
    ("Learning", "--label-smoothing", SHARE, "Share of the target for the other classes."),
    ("Learning", "--clip-norm", AT_LEAST_ZERO, "Longest gradient; 0: not clipped."),
    ("Learning", "--average", SHARE, "Decay of the weights' running average; 0: none."),
    ("Schedule", "--schedule", _choice(*SCHEDULES), "How the learning rate falls."),
    ("Schedule", "--warmup-epochs", AT_LEAST_ZERO, "Epochs of linear rise."),
    ("Schedule", "--drop-epochs", AT_LEAST_ONE, "With step: epochs between divisions by ten."),
    ("Schedule", "--drops", epochs, "With drops: the epochs, e.g. 25,51,79."),
    ("Schedule", "--plateau-patience", AT_LEAST_ONE, "With plateau: epochs without gain."),
    ("Schedule", "--freeze-epoch", COUNT, "Epoch from which --freeze holds."),
    ("Schedule", "--patience", COUNT, "Ends after that many epochs without gain; 0: never."),
    ("Pictures", "--crop-size", AT_LEAST_ONE, "Side of the crops in pixels."),
    ("Pictures", "--scale-min", click.FloatRange(0, 1, min_open=True), "Least share of a "
     "picture's area in a crop; 1: crops of --crop-size anywhere."),
    ("Pictures", "--mirror/--no-mirror", bool, "Turns every other picture from left to right."),
    ("Pictures", "--lighting", AT_LEAST_ZERO, "Colour noise, in units of the set's own."),
    ("Pictures", "--lighting-mode", _choice(*LIGHTING_MODES), "What the noise is a multiple of."),
    ("Pictures", "--lighting-epochs", COUNT, "Epoch from which it is off; 0: never."),
    ("Pictures", "--mean", _choice(*MEANS), "What is subtracted: the mean image, or less of it."),
    ("Pictures", "--scaled/--not-scaled", bool, "Divides by the channels' standard deviations."),
    ("Pictures", "--order", _choice(*ORDERS), "pages: for betons beyond memory."),
    ("Several processes", "--gradients", _choice(*GRADIENTS), "As what they are exchanged."),
    ("The machine", "--compile", _choice(*COMPILES), "Trains compiled code; auto: on CUDA."),
)  # fmt: skip


def _settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds an option for each setting, in order."""
    freeze = click.option(
        "--freeze", cls=Option, heading="Schedule", multiple=True, metavar="LAYER",
        help="A layer that stops learning, e.g. features.0; may be repeated.",
    )  # fmt: skip
    options = [
        click.option(name, cls=Option, heading=heading, type=kind, default=None, help=text)
        for heading, name, kind, text in _SETTINGS
    ]
    for option in reversed([*options, freeze]):
        command = option(command)
    return command


@click.command(cls=GroupedCommand)
@click.option(
    "--beton", cls=Option, heading="What and where", type=PATH, required=True,
    help="The training set, e.g. train.beton, or shards in quotes: 'train-*.beton'.",
)  # fmt: skip
@click.option(
    "--preset", cls=Option, heading="What and where", default="small", show_default=True,
    help="The recipe; see `presets`.",
)  # fmt: skip
@click.option(
    "--out", cls=Option, heading="What and where", type=PATH,
    help="The run's folder.  [default: runs/<preset>, numbered if taken]",
)  # fmt: skip
@click.option(
    "--overwrite", cls=Option, heading="What and where", is_flag=True,
    help="Begin again in --out although a run is there.",
)  # fmt: skip
@click.option(
    "--checkpoint-every", cls=Option, heading="Interruptions", type=COUNT, metavar="STEPS",
    help="Also write last.pt inside an epoch, after every so many steps.",
)  # fmt: skip
@click.option(
    "--resume", cls=Option, heading="Interruptions", is_flag=True,
    help="Continue the run in --out (or runs/<preset>), inside an epoch too.",
)  # fmt: skip
@click.option(
    "--force", cls=Option, heading="Interruptions", is_flag=True,
    help="Resume although settings or pictures differ.",
)  # fmt: skip
@_settings
@click.option(
    "--timeout", cls=Option, heading="Several processes", type=ABOVE_ZERO, metavar="SECONDS",
    help="How long one waits for another before the run ends.  [default: 300]",
)  # fmt: skip
@device_option("The machine")
@precision_option("The machine")
@jobs_option("The machine")
@json_option
def run(
    beton: Path,
    preset: str,
    out: Path | None,
    resume: bool,
    force: bool,
    overwrite: bool,
    as_json: bool,
    freeze: tuple[str, ...],
    timeout: float | None,
    **options: Any,
) -> None:
    """Trains a network and writes checkpoints, metrics and a report.

    val.beton or its shards, and train.stats.npz, beside --beton are found by themselves. What
    is not given is as the preset has it. Ctrl-C and SIGTERM end after the step, with a
    checkpoint; a second one ends at once.

    \b
    On several GPUs, with --batch-size for each of them:
      torchrun --nproc-per-node 4 -m trainer run --beton train.beton --out runs/one

    With --max-restarts 3 before -m, a run that has lost a process goes on from last.pt.

    \b
    Example: trainer run --beton train.beton --preset small --epochs 12
    """
    from trainer.config import presets
    from trainer.config.run_config import with_options

    config = with_options(presets.preset(preset), options | {"freeze": freeze or None})
    _check_launch(options["gradients"], timeout, out)
    if force and not resume:
        raise UsageError("--force is for --resume; add that, or leave it out")
    if launch.speaks():
        again = out is not None and launch.continues(out)
        resume, overwrite = resume or again, overwrite and not again
        folder = _run_folder(config, out, resume=resume, overwrite=overwrite)
    else:  # who neither writes nor reads there
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
    doorkeeper.watch(folder if launch.speaks() else None, stop)
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
