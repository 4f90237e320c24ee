"""The `trainer` command: options in, tables and exit statuses out."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagenet_prep.artifacts import ToolError, UsageError
from imagenet_prep.terminal import INTERRUPTED, Bar, run_command
from trainer.interrupt import InterruptGuard

if TYPE_CHECKING:
    from trainer.config import RunConfig
    from trainer.predict import Prediction

AT_LEAST_ONE = click.IntRange(min=1)
PATH = click.Path(path_type=Path)
DEVICE = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto takes CUDA where there is a device.",
)
PRECISION = click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="auto takes half precision only where the hardware has it.",
)
JOBS = click.option(
    "--jobs",
    type=AT_LEAST_ONE,
    help="Decoding threads.  [default: the CPUs of this process]",
)
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")

FAREWELL = "interrupted; a run continues with --resume, other commands begin again"

_guard: InterruptGuard | None = None


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="imagenet-alexnet", prog_name="trainer")
def cli() -> None:
    """Trains AlexNet on a beton that imagenet-prep made, evaluates it and predicts with it.

    \b
    Example: trainer run --beton train.beton
    """


@cli.command()
@click.option("--beton", type=PATH, required=True, help="The training set, e.g. train.beton.")
@click.option("--preset", default="small", show_default=True, help="The recipe; see `presets`.")
@click.option("--network", help="Another network than the preset's; see `summary`.")
@click.option("--epochs", type=AT_LEAST_ONE, help="Passes over the training set.")
@click.option("--batch-size", type=AT_LEAST_ONE, help="Pictures in a step.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Peak learning rate.")
@click.option("--seed", type=click.IntRange(min=0, max=2**31 - 1), help="Of everything random.")
@click.option(
    "--out", type=PATH, help="The run's folder.  [default: runs/<preset>, numbered if taken]"
)
@click.option("--resume", is_flag=True, help="Continue the run in --out (or runs/<preset>).")
@click.option("--overwrite", is_flag=True, help="Begin again in --out although a run is there.")
@DEVICE
@PRECISION
@JOBS
@JSON
def run(
    beton: Path,
    preset: str,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Trains a network and writes checkpoints, metrics and a report.

    val.beton and train.stats.npz beside --beton are found by themselves.

    \b
    Example: trainer run --beton train.beton --preset small --epochs 12
    """
    from trainer import config as configs

    config = configs.with_options(configs.preset(preset), options)
    folder = _run_folder(config, out, resume=resume, overwrite=overwrite)
    _watch(folder)
    from trainer.run import train

    bar = Bar()
    lines = sys.stderr if as_json else sys.stdout

    def report(row: dict[str, Any]) -> None:
        bar.close()
        click.echo(_epoch_line(row, config.epochs), file=lines)

    click.echo(f"preset {preset}, network {config.network}, to {folder}", file=lines)
    try:
        result = train(config, beton, folder, resume=resume, report=report, progress=bar)
    finally:
        bar.close()
    if as_json:
        _print_json({"out": str(folder), "best": result.best, "seconds": result.seconds})
        return
    best = result.best
    if "val_top1_error" in best:
        click.echo(
            f"best: epoch {best['epoch']}, validation top-1 error {best['val_top1_error']:.2f} %, "
            f"top-5 {best['val_top5_error']:.2f} %; {result.seconds:.0f} s in all"
        )
    click.echo(f"look at {folder / 'report.html'}; predict with --checkpoint {folder / 'best.pt'}")


@cli.command("eval")
@click.option("--checkpoint", type=PATH, required=True, help="best.pt or last.pt of a run.")
@click.option("--beton", type=PATH, required=True, help="The set to evaluate, e.g. val.beton.")
@click.option("--batch-size", type=AT_LEAST_ONE, help="Pictures at once.")
@DEVICE
@PRECISION
@JOBS
@JSON
def evaluate(
    checkpoint: Path,
    beton: Path,
    batch_size: int | None,
    device: str,
    precision: str,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Loss, top-1 and top-5 error (percent) of a checkpoint on a beton's centre crops.

    \b
    Example: trainer eval --checkpoint runs/small/best.pt --beton val.beton
    """
    from trainer.evaluation import evaluate_beton

    bar = Bar()
    started = time.perf_counter()
    result = evaluate_beton(
        checkpoint,
        beton,
        device=device,
        batch_size=batch_size,
        precision=precision,
        jobs=jobs,
        progress=bar,
    )
    bar.close()
    if as_json:
        values = {
            "loss": result.loss,
            "top1_error": result.top1_error,
            "top5_error": result.top5_error,
            "images": result.images,
            "seconds": time.perf_counter() - started,
        }
        _print_json(values)
        return
    click.echo(
        f"{result.images} images: loss {result.loss:.4f}, top-1 error {result.top1_error:.2f} %, "
        f"top-5 error {result.top5_error:.2f} %"
    )


@cli.command()
@click.option("--checkpoint", type=PATH, required=True, help="best.pt or last.pt of a run.")
@click.option("--top", type=AT_LEAST_ONE, default=5, show_default=True, help="Classes to show.")
@click.argument("pictures", type=PATH, nargs=-1, required=True)
@DEVICE
@PRECISION
@JSON
def predict(
    checkpoint: Path,
    top: int,
    pictures: tuple[Path, ...],
    device: str,
    precision: str,
    as_json: bool,
) -> None:
    """The likeliest classes of PICTURES (files or folders; JPEG, PNG, WebP, AVIF, ...).

    \b
    Example: trainer predict --checkpoint runs/small/best.pt cat.jpg holiday/
    """
    from trainer.predict import list_pictures
    from trainer.predict import predict as predictions

    bar = Bar()
    found: list[Prediction] = []
    paths = list_pictures(pictures)
    for one in predictions(
        checkpoint, paths, top=top, device=device, precision=precision, progress=bar
    ):
        bar.close()
        found.append(one)
        if one.reason is not None:
            click.echo(f"trainer: {one.path}: {one.reason}; left out", err=True)
        elif not as_json:
            _show_prediction(one)
    if as_json:
        _print_json({"predictions": [_prediction_row(one) for one in found]})
    if all(one.reason is not None for one in found):
        raise ToolError("none of the pictures could be read; the reasons are above")


@cli.command()
@click.option("--network", default="paper", show_default=True, help="A member of the family.")
@click.option("--classes", type=AT_LEAST_ONE, default=1000, show_default=True)
@click.option("--channels", type=AT_LEAST_ONE, default=3, show_default=True)
@click.option("--batch-size", type=AT_LEAST_ONE, default=128, show_default=True)
@JSON
def summary(network: str, classes: int, channels: int, batch_size: int, as_json: bool) -> None:
    """The layer table of a network: output shape, parameters, multiply-adds; memory.

    \b
    Example: trainer summary --network paper --classes 1000
    """
    from dataclasses import asdict

    from trainer.model import NETWORKS, network_spec, summarise

    spec = network_spec(network, classes=classes, channels=channels)
    table = summarise(spec)
    memory = table.training_bytes(batch_size)
    if as_json:
        values = {
            "network": network,
            "parameters": table.parameters,
            "multiply_adds": table.multiply_adds,
            "training_bytes": memory,
            "batch_size": batch_size,
            "layers": [asdict(row) for row in table.rows],
        }
        _print_json(values)
        return
    click.echo(f"{network} ({', '.join(NETWORKS)}), input {spec.channels}×{spec.input_size}²")
    click.echo(f"{'layer':<16}{'kind':<20}{'output':<16}{'parameters':>12}{'multiply-adds':>16}")
    for row in table.rows:
        shape = "×".join(str(n) for n in row.output)
        click.echo(
            f"{row.layer:<16}{row.kind:<20}{shape:<16}{row.parameters:>12,}{row.multiply_adds:>16,}"
        )
    click.echo(f"{'total':<52}{table.parameters:>12,}{table.multiply_adds:>16,}")
    click.echo(
        f"memory: weights {table.weight_bytes / 1e6:.0f} MB; training at batch {batch_size} in "
        f"float32 about {memory / 1e9:.1f} GB (two optimiser buffers)"
    )


@cli.command()
@JSON
def presets(as_json: bool) -> None:
    """The recipes that `run --preset` knows.

    \b
    Example: trainer presets
    """
    from trainer.config import PRESET_NOTES, PRESETS, as_dict

    if as_json:
        _print_json({name: as_dict(config) for name, config in PRESETS.items()})
        return
    for name, note in PRESET_NOTES.items():
        config = PRESETS[name]
        click.echo(f"{name:<10}{note}")
        click.echo(
            f"{'':<10}network {config.network}, {config.epochs} epochs, batch "
            f"{config.batch_size}, {config.optimizer} {config.lr:g}, {config.schedule}"
        )


def _run_folder(config: RunConfig, out: Path | None, *, resume: bool, overwrite: bool) -> Path:
    """Where the run goes; a sentence where that is taken or not there."""
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other; give one of them")
    base = Path("runs") / config.preset
    if resume:
        folder = out or base
        if not (folder / "last.pt").exists():
            raise UsageError(f"{folder}: no last.pt to resume from; name the run's folder in --out")
        return folder
    if out is None:
        folder, number = base, 1
        while folder.exists() and not overwrite:
            number += 1
            folder = base.with_name(f"{base.name}-{number}")
        return folder
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file, not a folder; give another --out")
    if (out / "last.pt").exists() and not overwrite:
        raise UsageError(
            f"{out}: already holds a run; continue it with --resume, replace it with "
            "--overwrite, or give another --out"
        )
    return out


def _epoch_line(row: dict[str, Any], epochs: int) -> str:
    text = (
        f"epoch {row['epoch']:>3}/{epochs}  train: loss {row['train_loss']:.3f}, "
        f"top-1 error {row['train_top1_error']:5.2f} %, top-5 {row['train_top5_error']:5.2f} %"
    )
    if "val_loss" in row:
        text += (
            f"  val: loss {row['val_loss']:.3f}, top-1 error {row['val_top1_error']:5.2f} %, "
            f"top-5 {row['val_top5_error']:5.2f} %"
        )
    speed = f"{row['images_per_second']:.0f} images/s"
    return f"{text}  {speed}, {100 * row['wait_share']:.1f} % waiting for data"


def _prediction_row(one: Prediction) -> dict[str, Any]:
    if one.reason is not None:
        return {"path": str(one.path), "reason": one.reason}
    guesses = [
        {"class": g.name, "name": g.title, "probability": g.probability} for g in one.guesses
    ]
    return {"path": str(one.path), "classes": guesses}


def _show_prediction(one: Prediction) -> None:
    click.echo(str(one.path))
    for guess in one.guesses:
        name = guess.title if guess.title == guess.name else f"{guess.title} ({guess.name})"
        click.echo(f"  {100 * guess.probability:6.2f} %  {name}")


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value))


def _watch(folder: Path) -> None:
    if _guard is not None:
        _guard.folders.append(folder)


def _farewell() -> None:
    sys.stderr.write(f"\ntrainer: {FAREWELL}\n")
    sys.stderr.flush()


def run_trainer(arguments: Sequence[str] | None = None) -> int:
    """Command line arguments (default: the process's) -> exit status; says what went wrong."""
    return run_command(cli, "trainer", arguments, FAREWELL)


def main() -> None:
    """The console script ``trainer``: as :func:`run_trainer`, with a prompt Ctrl-C."""
    global _guard
    _guard = InterruptGuard(_farewell).start()
    status = run_trainer()
    if status == INTERRUPTED:
        # Not through the interpreter's own end, which waits for threads in long calls.
        _guard.sweep()
        sys.stdout.flush()
        os._exit(status)
    _guard.stop()
    sys.exit(status)


if __name__ == "__main__":
    main()
