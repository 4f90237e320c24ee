"""A training run from a beton to ``runs/<name>/``: loaders, epochs, checkpoints, records.

Ties the engine (loop, loader) to the dock (checkpoint, record, report). Prints nothing:
each epoch is handed to ``report`` as a row, progress goes to the callback.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from imagenet_prep.artifacts import Progress, ToolError, write_json
from trainer import config as configs
from trainer import loop
from trainer.checkpoint import load_checkpoint
from trainer.evaluation import counter, evaluation_batches
from trainer.loader import BetonLoader, train_loader
from trainer.record import RunRecorder, kernel_grid, read_metrics
from trainer.report import write_report
from trainer.schedule import epochs_without_gain, learning_rate_factor, plateau_drops
from trainer.session import Session, find_data

STEPS_PER_RECORD = 10


@dataclass(frozen=True)
class RunResult:
    """How a run ended: rows per epoch, the best of them, and the folder."""

    folder: Path
    rows: list[dict[str, Any]]
    best: dict[str, Any]
    seconds: float


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
            while session.epochs_done < config.epochs and not _is_over(session):
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


def _is_over(session: Session) -> bool:
    """Whether the validation error has not fallen for ``patience`` epochs."""
    patience = session.config.patience
    return patience > 0 and epochs_without_gain(session.errors) >= patience


def _training_batches(session: Session) -> BetonLoader:
    config = session.config
    return train_loader(
        session.data.train,
        session.data.stats,
        batch_size=config.batch_size,
        crop_size=config.crop_size,
        out_size=session.spec.input_size,
        view="resized" if config.scale_min < 1 else "random",
        scale=(config.scale_min, 1.0),
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
    batches.lighting = 0.0 if 0 < config.lighting_epochs <= epoch else config.lighting
    session.freeze()
    steps = math.ceil(len(batches) / config.accumulate)
    drops = plateau_drops(session.errors, patience=config.plateau_patience)

    def rate(step: int) -> float:
        return config.lr * _factor(config, step, steps, drops)

    started = time.perf_counter()
    result = loop.train_epoch(
        session.model,
        batches,
        loop.Stepper(
            session.model,
            session.optimizer,
            session.average,
            session.precision,
            config.clip_norm,
            rate,
            session.step,
        ),
        session.precision,
        loop.StepSettings(
            classes=len(session.data.classes),
            label_smoothing=config.label_smoothing,
            least_batch=2 if session.spec.norm == "batch" else 1,
            accumulate=config.accumulate,
        ),
        session.device,
        counter(progress, f"epoch {epoch + 1}/{config.epochs}", batches.samples),
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
        "lr": rate(session.step - 1),
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
            counter(progress, "validation", validation.samples),
        )
        confusion = matrix.numpy()
        row |= {
            "val_loss": found.loss,
            "val_top1_error": found.top1_error,
            "val_top5_error": found.top5_error,
        }
        session.errors.append(found.top1_error)
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


def _factor(config: configs.RunConfig, step: int, steps_per_epoch: int, drops: int) -> float:
    return learning_rate_factor(
        config.schedule,
        step,
        config.epochs * steps_per_epoch,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        epoch=step // steps_per_epoch,
        drop_epochs=config.drop_epochs,
        drops=config.drops,
        plateau=drops,
    )


def _kernels(session: Session) -> NDArray[Any]:
    """The first layer's kernels as a picture (H, W, 3) uint8."""
    first = next(m for m in session.evaluated.modules() if isinstance(m, torch.nn.Conv2d))
    weights = first.weight.detach().float().cpu().numpy()
    return kernel_grid(weights, columns=min(16, math.ceil(math.sqrt(weights.shape[0] * 1.5))))
