"""A training run from a beton to ``runs/<name>/``: loaders, epochs, checkpoints, records.

Ties the engine (loop, loader) to the dock (checkpoint, record, report). Prints nothing:
each epoch is handed to ``report`` as a row, progress goes to the callback.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from imagenet_prep.core.errors import Progress, UsageError
from imagenet_prep.core.files import write_json
from trainer.checkpoint import load_checkpoint
from trainer.config import run_config as configs
from trainer.data import find_data
from trainer.distributed.torchrun import launch
from trainer.distributed.world import World
from trainer.inference.evaluate import Evaluation, evaluation_batches
from trainer.interrupt import Stop
from trainer.loader.loader import BetonLoader
from trainer.report.charts import published_reference
from trainer.report.gallery import Tile, best_and_worst, examples
from trainer.report.html import REPORT_NAME, write_report
from trainer.report.image_grid import kernel_grid
from trainer.report.metrics import RunRecorder, read_metrics
from trainer.training.epoch import EpochResult, EpochRun, Tools, best_so_far, training_batches
from trainer.training.schedule import epochs_without_gain
from trainer.training.state import Session

STEPS_PER_RECORD = 10
EXAMPLES = 16
SAMPLE_PICTURES = 16


@dataclass(frozen=True)
class RunResult:
    """How a run ended: rows per epoch, the best of them, the folder and the number of classes."""

    folder: Path
    rows: list[dict[str, Any]]
    best: dict[str, Any]
    seconds: float
    classes: int


def train(
    config: configs.RunConfig,
    beton: Path,
    folder: Path,
    *,
    resume: bool,
    report: Callable[[dict[str, Any]], None],
    progress: Progress,
    force: bool = False,
    begin: Callable[[int], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
    stop: Stop | None = None,
    world: World | None = None,
) -> RunResult:
    """Trains as ``config`` says and fills ``folder``; see design section 3.

    ``begin`` gets the number of classes once the betons are found to fit together,
    ``report(row)`` every finished epoch, ``notice`` a sentence where a run goes on from, and
    where the network does not learn. ``resume`` continues from ``folder/last.pt`` (from the
    beginning where there is none yet), with ``force`` under other settings too. When ``stop``
    has a status the run writes a checkpoint after its step and raises StoppedError.
    Raises ToolError where data, statistics or checkpoint do not fit, when the loss stops being
    a number, and when another process of ``world`` has gone.
    """
    started = time.perf_counter()
    world = world or World()
    with contextlib.ExitStack() as open_things:
        open_things.enter_context(world.answering())
        session = Session(config, find_data(beton), world)
        _check_validation(session)
        classes = len(session.data.classes)
        begin(classes)
        resume = _restore(session, folder, resume=resume, force=force, notice=notice)
        session.freeze()
        found: Evaluation | None = None
        begun_with = session.epochs_done
        batches = open_things.enter_context(training_batches(session))
        validation = _validation_batches(session)
        if validation is not None:
            open_things.enter_context(validation)
        # Only now: a run whose settings do not fit its pictures leaves no folder behind.
        if world.main:
            _begin(session, folder, resume=resume)
        record = _Record(session, folder, open_things, resume=resume, notice=notice)
        record.sample(batches)
        tools = Tools(batches, validation, folder, progress, stop or Stop())
        while not _is_over(session):
            done = EpochRun(session, tools)()
            found = done.evaluation
            if best_so_far(session, done.row):
                session.best = done.row
                session.save(folder / "best.pt", whole=False)
            record(done)
            session.save(folder / "last.pt", whole=True)
            if world.main:
                report(done.row)
    rows: list[dict[str, Any]] = []
    if world.main:
        rows = [row for row in read_metrics(folder) if row.get("kind") != "step"]
        if session.epochs_done > begun_with or not (folder / REPORT_NAME).exists():
            _write_report(session, folder, rows, found)
    return RunResult(folder, rows, session.best or {}, time.perf_counter() - started, classes)


def _restore(
    session: Session, folder: Path, *, resume: bool, force: bool, notice: Callable[[str], None]
) -> bool:
    """Continues from ``folder/last.pt`` if that is wanted and there is one; whether it did.

    What rank 0 reads is everybody's: the folder may be on its machine alone.
    """
    last, world = folder / "last.pt", session.world
    there = world.main and resume and last.exists()
    stored = world.from_main(load_checkpoint(last) if there else None)
    if stored is None:
        return False
    session.restore(stored, force=force)
    notice(f"{folder}: continues {_place(session)}")
    return True


def _begin(session: Session, folder: Path, *, resume: bool) -> None:
    """Makes the run's folder and says in it what the run is."""
    folder.mkdir(parents=True, exist_ok=True)
    if not _is_over(session):  # what it says is not of all that will have been trained
        (folder / REPORT_NAME).unlink(missing_ok=True)
    if not resume:  # of an earlier run: from here on last.pt is of this one
        for name in ("last.pt", "best.pt"):
            (folder / name).unlink(missing_ok=True)
    write_json(folder / "config.json", session.stored_config() | {"launch": launch()})
    write_json(folder / "environment.json", session.environment)


def _place(session: Session) -> str:
    """Where a restored run stands, in words."""
    done, epochs = session.epochs_done, session.config.epochs
    if session.partial is not None:
        return f"in epoch {done + 1} of {epochs}, after step {session.step} of the run"
    if done >= epochs:
        return f"after its last epoch of {epochs}: there is nothing left to train"
    return f"with epoch {done + 1} of {epochs}, after step {session.step} of the run"


def _check_validation(session: Session) -> None:
    """UsageError for settings that need a validation set where there is none."""
    config = session.config
    if session.data.validation is not None:
        return
    for setting, used in (
        ("--schedule plateau", config.schedule == "plateau"),
        ("--patience", config.patience > 0),
    ):
        if used:
            raise UsageError(
                f"{session.data.train}: there is no val.beton beside it, whose errors "
                f"{setting} goes by; build one, or use another setting"
            )


class _Record:
    """What an epoch leaves in the run's folder, and the notice that nothing is learned."""

    def __init__(
        self,
        session: Session,
        folder: Path,
        open_things: contextlib.ExitStack,
        *,
        resume: bool,
        notice: Callable[[str], None],
    ) -> None:
        self.session, self.notice = session, notice
        self.recorder: RunRecorder | None = None
        if session.world.main:
            self.recorder = open_things.enter_context(
                RunRecorder(folder, append=resume, keep_until_epoch=session.epochs_done)
            )

    def sample(self, batches: BetonLoader) -> None:
        """Shows the network of a new run, and its first pictures as the network will see them."""
        if self.recorder is None or self.session.step or self.session.partial is not None:
            return
        batches.set_epoch(0)
        first = next(iter(batches))
        self.recorder.sample(first.images[:SAMPLE_PICTURES].float().cpu().numpy())
        self.recorder.graph(self.session.layers())
        batches.close()

    def __call__(self, done: EpochResult) -> None:
        """Writes the epoch's lines, events and kernels; says whether the network learns."""
        if self.recorder is None:
            return
        epoch = self.session.epochs_done
        size = self.session.config.accumulate
        for index in range(0, len(done.losses), size):
            step, losses = done.first_step + index // size, done.losses[index : index + size]
            if step % STEPS_PER_RECORD == 0:
                self.recorder.step(epoch, step, {"train_loss": sum(losses) / len(losses)})
        self.recorder.epoch(done.row)
        self.recorder.kernels(epoch, _kernels(self.session))
        sentence = self.session.learning(
            done.losses,
            self.session.step,
            None if done.evaluation is None else done.evaluation.confusion,
            ended=_is_over(self.session),
        )
        if sentence is not None:
            self.notice(sentence)


def _write_report(
    session: Session, folder: Path, rows: list[dict[str, Any]], found: Evaluation | None
) -> None:
    """report.html from the epochs' rows and the last evaluation."""
    classes, validation = session.data.classes, session.data.validation
    best: list[Tile] = []
    worst: list[Tile] = []
    if found is not None and validation is not None:
        best, worst = (
            examples(validation, found.judged, rows_of, classes)
            for rows_of in best_and_worst(found.judged, EXAMPLES)
        )
    write_report(
        folder,
        config=session.stored_config(),
        rows=rows,
        classes=[classes.title(label) for label in range(len(classes))],
        kernels=_kernels(session),
        environment=session.environment,
        confusion=None if found is None else found.confusion,
        best=best,
        worst=worst,
        reference=published_reference() if len(classes) == 1000 else None,
    )


def _is_over(session: Session) -> bool:
    """Whether all epochs are done, or the validation error has not fallen for ``patience``."""
    if session.epochs_done >= session.config.epochs:
        return True
    patience = session.config.patience
    return patience > 0 and epochs_without_gain(session.errors) >= patience


def _validation_batches(session: Session) -> BetonLoader | None:
    if session.data.validation is None:
        return None
    world, config = session.world, session.config
    return evaluation_batches(
        session.data.validation, session.data.stats, session.spec,
        replace(config, jobs=world.jobs(config.jobs)), rank=world.rank, ranks=world.ranks,
    )  # fmt: skip


def _kernels(session: Session) -> NDArray[Any]:
    """The first layer's kernels as a picture (H, W, 3) uint8."""
    first = next(m for m in session.evaluated.modules() if isinstance(m, torch.nn.Conv2d))
    weights = first.weight.detach().float().cpu().numpy()
    return kernel_grid(weights, columns=min(16, math.ceil(math.sqrt(weights.shape[0] * 1.5))))
