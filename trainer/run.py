"""A training run from a beton to ``runs/<name>/``: loaders, epochs, checkpoints, records.

Ties the engine (loop, loader) to the dock (checkpoint, record, report). Prints nothing:
each epoch is handed to ``report`` as a row, progress goes to the callback.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from imagenet_prep.artifacts import (
    Classes,
    Manifest,
    Progress,
    Stats,
    ToolError,
    UsageError,
    load_manifest,
    load_stats,
    stats_beside,
    validation_beside,
    write_json,
)
from trainer import config as configs
from trainer import loop
from trainer.checkpoint import Checkpoint, check_classes, load_checkpoint, save_checkpoint
from trainer.loader import BetonLoader, eval_loader, train_loader
from trainer.model import AlexNet, NetworkSpec, build, network_spec
from trainer.record import RunRecorder, environment_stamp, kernel_grid, read_metrics
from trainer.report import write_report
from trainer.schedule import learning_rate_factor

# Settings that may differ between a run and its continuation: they change no result.
STEPS_PER_RECORD = 10
FREE_ON_RESUME = {"jobs", "device", "precision", "preset"}


@dataclass(frozen=True)
class Data:
    """What a run reads: betons that belong together, their statistics and classes."""

    train: Path
    validation: Path | None
    stats: Stats
    classes: Classes
    manifest: Manifest


@dataclass(frozen=True)
class RunResult:
    """How a run ended: rows per epoch, the best of them, and the folder."""

    folder: Path
    rows: list[dict[str, Any]]
    best: dict[str, Any]
    seconds: float


def find_data(beton: Path) -> Data:
    """The betons and statistics that belong to ``beton``; ToolError where they do not fit."""
    manifest = load_manifest(beton)
    stats = load_stats(stats_beside(beton))
    if stats.size_px != manifest.size_px:
        raise ToolError(
            f"{stats_beside(beton)}: statistics of {stats.size_px} px pictures beside a beton "
            f"of {manifest.size_px} px; make both again with imagenet-prep stats and build"
        )
    classes = Classes(manifest.classes, manifest.readable)
    validation: Path | None = validation_beside(beton)
    if validation == beton or not validation_beside(beton).exists():
        validation = None
    if validation is not None and load_manifest(validation).classes != manifest.classes:
        raise ToolError(
            f"{validation}: has other classes than {beton}; build both from one source, or "
            "move one of them elsewhere"
        )
    return Data(beton, validation, stats, classes, manifest)


def choose_device(name: str) -> torch.device:
    """``auto`` -> CUDA where there is a device; UsageError for CUDA without one."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device cuda: this machine has no usable CUDA device; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


class Session:
    """The state of a run between epochs: model, average, optimiser, place in the schedule."""

    def __init__(self, config: configs.RunConfig, data: Data) -> None:
        self.config, self.data = config, data
        self.device = choose_device(config.device)
        self.precision = loop.Precision(
            self.device, loop.choose_precision(config.precision, self.device)
        )
        self.spec = network_spec(config.network, classes=len(data.classes))
        self.model = build(self.spec, config.seed)
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average: loop.Average | None = None
        if config.average > 0:
            copy = build(self.spec, config.seed)
            copy.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.average = loop.Average(self.model, copy, config.average)
        self.optimizer = loop.make_optimizer(
            self.model,
            config.optimizer,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.epochs_done = 0
        self.step = 0
        self.best: dict[str, Any] | None = None
        self.environment = environment_stamp() | {"precision": self.precision.name}

    @property
    def evaluated(self) -> torch.nn.Module:
        """The weights that count: the running average where there is one."""
        return self.model if self.average is None else self.average.average

    def stored_config(self) -> dict[str, Any]:
        """What ``config.json`` and checkpoints hold: the recipe and the network."""
        return {"run": configs.as_dict(self.config), "network": asdict(self.spec)}

    def save(self, path: Path, *, whole: bool) -> None:
        """A checkpoint: everything to continue (``whole``), or the evaluated weights."""
        average = self.average.average.state_dict() if self.average and whole else None
        save_checkpoint(
            path,
            model=(self.model if whole else self.evaluated).state_dict(),
            optimizer=self.optimizer.state_dict() if whole else None,
            average=average,
            progress={"epochs_done": self.epochs_done, "step": self.step, "best": self.best},
            config=self.stored_config(),
            classes=self.data.classes,
            stats=self.data.stats,
            environment=self.environment,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continues from ``checkpoint``; ToolError if it belongs to another run."""
        check_classes(checkpoint, self.data.classes)
        stored = configs.from_dict(checkpoint.config["run"])
        ours, theirs = configs.as_dict(self.config), configs.as_dict(stored)
        differ = [k for k in ours if ours[k] != theirs[k] and k not in FREE_ON_RESUME]
        if differ:
            what = ", ".join(f"{k} {theirs[k]} there and {ours[k]} here" for k in differ)
            raise ToolError(
                f"{checkpoint.path}: was trained with other settings ({what}); repeat the "
                "run's own options, or start a new run with another --out"
            )
        if checkpoint.stats_source != self.data.stats.source:
            raise ToolError(
                f"{checkpoint.path}: was trained on other pictures than {self.data.train}; name "
                "the run's own beton, or start a new run with another --out"
            )
        if checkpoint.optimizer is None:
            raise ToolError(f"{checkpoint.path}: holds no optimiser state; resume from a last.pt")
        self.model.load_state_dict(checkpoint.model)
        if self.average is not None and checkpoint.average is not None:
            self.average.average.load_state_dict(checkpoint.average)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.epochs_done = int(checkpoint.progress["epochs_done"])
        self.step = int(checkpoint.progress["step"])
        self.best = checkpoint.progress["best"]


def train(
    config: configs.RunConfig,
    beton: Path,
    folder: Path,
    *,
    resume: bool,
    report: Callable[[dict[str, Any]], None],
    progress: Progress,
) -> RunResult:
    """Trains as ``config`` says and fills ``folder``; see design section 3.

    ``report(row)`` gets every finished epoch. Raises ToolError where data, statistics
    or checkpoint do not fit, and when the loss stops being a number.
    """
    started = time.perf_counter()
    data = find_data(beton)
    session = Session(config, data)
    if resume:
        session.restore(load_checkpoint(folder / "last.pt"))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", session.stored_config())
    write_json(folder / "environment.json", session.environment)
    confusion: NDArray[Any] | None = None
    with (
        RunRecorder(folder, append=resume, keep_until_epoch=session.epochs_done) as recorder,
        _training_batches(session) as batches,
    ):
        validation = _validation_batches(session)
        try:
            while session.epochs_done < config.epochs:
                row, confusion = _epoch(session, batches, validation, recorder, progress, folder)
                recorder.epoch(row)
                recorder.kernels(session.epochs_done, _kernels(session))
                session.save(folder / "last.pt", whole=True)
                report(row)
        finally:
            if validation is not None:
                validation.close()
    rows = [row for row in read_metrics(folder) if row.get("kind") != "step"]
    write_report(
        folder,
        config=session.stored_config(),
        rows=rows,
        classes=[data.classes.title(label) for label in range(len(data.classes))],
        kernels=_kernels(session),
        environment=session.environment,
        confusion=confusion,
    )
    best = session.best or {}
    return RunResult(folder, rows, best, time.perf_counter() - started)


def _training_batches(session: Session) -> BetonLoader:
    config = session.config
    return train_loader(
        session.data.train,
        session.data.stats,
        batch_size=config.batch_size,
        crop_size=config.crop_size,
        out_size=session.spec.input_size,
        scale_min=config.scale_min,
        seed=config.seed,
        lighting=config.lighting,
        mirror=config.mirror,
        jobs=config.jobs,
        device=session.device.type,
    )


def _validation_batches(session: Session) -> BetonLoader | None:
    if session.data.validation is None:
        return None
    config = session.config
    return evaluation_batches(session.data.validation, session.data.stats, session.spec, config)


def evaluation_batches(
    beton: Path, stats: Stats, spec: NetworkSpec, config: configs.RunConfig
) -> BetonLoader:
    """The centre crops of ``beton`` as the network sees them."""
    return eval_loader(
        beton,
        stats,
        batch_size=config.batch_size,
        crop_size=config.crop_size,
        out_size=spec.input_size,
        jobs=config.jobs,
        device=choose_device(config.device).type,
    )


def _epoch(
    session: Session,
    batches: BetonLoader,
    validation: BetonLoader | None,
    recorder: RunRecorder,
    progress: Progress,
    folder: Path,
) -> tuple[dict[str, Any], NDArray[Any] | None]:
    """Trains one epoch, evaluates it, keeps the best; (its row, the confusion matrix)."""
    config, epoch = session.config, session.epochs_done
    # Dropout of an epoch is a function of seed and epoch, so that resuming repeats it.
    torch.manual_seed((config.seed << 32) + epoch)
    batches.set_epoch(epoch)
    steps = len(batches)
    started = time.perf_counter()
    result = loop.train_epoch(
        session.model,
        batches,
        session.optimizer,
        session.average,
        session.precision,
        loop.StepSettings(
            classes=len(session.data.classes),
            label_smoothing=config.label_smoothing,
            clip_norm=config.clip_norm,
            least_batch=2 if session.spec.norm == "batch" else 1,
        ),
        lambda step: config.lr * _factor(config, step, steps),
        session.step,
        session.device,
        _counter(progress, f"epoch {epoch + 1}/{config.epochs}", batches.samples),
    )
    seconds = time.perf_counter() - started
    _check_finite(result, epoch, config, folder)
    _record_steps(recorder, result, epoch, session.step)
    session.step += steps
    session.epochs_done += 1
    row: dict[str, Any] = {
        "epoch": session.epochs_done,
        "train_loss": result.loss,
        "train_top1_error": result.top1_error,
        "train_top5_error": result.top5_error,
        "lr": config.lr * _factor(config, session.step - 1, steps),
        "seconds": seconds,
        "images_per_second": result.images / seconds,
        "wait_share": batches.wait_s / seconds,
    }
    confusion = None
    if validation is not None:
        found, matrix = loop.evaluate(
            session.evaluated,
            validation,
            session.precision,
            len(session.data.classes),
            session.device,
            _counter(progress, "validation", validation.samples),
        )
        confusion = matrix.numpy()
        row |= {
            "val_loss": found.loss,
            "val_top1_error": found.top1_error,
            "val_top5_error": found.top5_error,
        }
    _keep_best(session, row, folder)
    return row, confusion


def _check_finite(result: loop.Result, epoch: int, config: configs.RunConfig, folder: Path) -> None:
    for index, loss in enumerate(result.step_losses):
        if not math.isfinite(loss):
            raise ToolError(
                f"{folder}: the loss stopped being a number in epoch {epoch + 1}, step "
                f"{index + 1}; use a smaller --lr (it was {config.lr:g}) or --precision float32"
            )


def _record_steps(recorder: RunRecorder, result: loop.Result, epoch: int, first_step: int) -> None:
    """Every tenth step's loss; they arrive together, because a step never waits for one."""
    for index, loss in enumerate(result.step_losses):
        step = first_step + index
        if step % STEPS_PER_RECORD == 0:
            recorder.step(epoch + 1, step, {"train_loss": loss})


def _keep_best(session: Session, row: dict[str, Any], folder: Path) -> None:
    """``best.pt`` is the epoch of the least validation error (the last one without a set)."""
    key = "val_top1_error"
    if key not in row or session.best is None or row[key] <= session.best[key]:
        session.best = row
        session.save(folder / "best.pt", whole=False)


def _factor(config: configs.RunConfig, step: int, steps_per_epoch: int) -> float:
    return learning_rate_factor(
        config.schedule,
        step,
        config.epochs * steps_per_epoch,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        epoch=step // steps_per_epoch,
        drop_epochs=config.drop_epochs,
    )


def _counter(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(what, done, total)

    return advance


def _kernels(session: Session) -> NDArray[Any]:
    """The first layer's kernels as a picture (H, W, 3) uint8."""
    first = next(m for m in session.evaluated.modules() if isinstance(m, torch.nn.Conv2d))
    weights = first.weight.detach().float().cpu().numpy()
    return kernel_grid(weights, columns=min(16, math.ceil(math.sqrt(weights.shape[0] * 1.5))))


def model_of(checkpoint: Checkpoint, device: torch.device) -> tuple[AlexNet, configs.RunConfig]:
    """The network that ``checkpoint`` was evaluated with, in evaluation mode."""
    try:
        values = dict(checkpoint.config["network"])
        for name in ("widths", "groups", "hidden", "orders", "weight_std", "biases"):
            values[name] = tuple(values[name])
        spec = NetworkSpec(**values)
        config = configs.from_dict(checkpoint.config["run"])
        model = AlexNet(spec)
        model.load_state_dict(checkpoint.average or checkpoint.model)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ToolError(
            f"{checkpoint.path}: its weights and its description do not belong together "
            f"({reason}); train again or use the version that wrote it"
        ) from error
    model.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, config


def evaluate_beton(
    checkpoint_path: Path,
    beton: Path,
    *,
    device: str,
    batch_size: int | None,
    precision: str,
    jobs: int | None,
    progress: Progress,
) -> loop.Result:
    """Loss and errors of a checkpoint over a beton, with the checkpoint's own mean image."""
    checkpoint = load_checkpoint(checkpoint_path)
    manifest = load_manifest(beton)
    check_classes(checkpoint, Classes(manifest.classes, manifest.readable))
    place = choose_device(device)
    model, config = model_of(checkpoint, place)
    config = replace(
        config, device=place.type, jobs=jobs, batch_size=batch_size or config.batch_size
    )
    chosen = loop.Precision(place, loop.choose_precision(precision, place))
    with evaluation_batches(beton, checkpoint.stats, model.spec, config) as batches:
        count = _counter(progress, "evaluate", batches.samples)
        result, _ = loop.evaluate(model, batches, chosen, len(checkpoint.classes), place, count)
    return result
