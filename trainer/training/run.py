"""A training run: beton file -> ``runs/<name>/`` with checkpoints, metrics and a report.

A run consists of epochs (``epoch``), an epoch of steps (``step``). Prints nothing: each epoch is
handed to ``report`` as a row, progress goes to the callback.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from imagenet_prep.core.errors import Progress, ToolError, UsageError
from imagenet_prep.core.files import write_json
from imagenet_prep.dataset.shards import Betons
from trainer.checkpoint import Checkpoint, load_checkpoint
from trainer.config import run_config as configs
from trainer.data import Data, find_data
from trainer.distributed.torchrun import launch
from trainer.distributed.world import World
from trainer.inference.evaluate import Evaluation, evaluation_batches, evaluation_of
from trainer.inference.judge import evaluate
from trainer.interrupt import Stop
from trainer.loader.loader import BetonLoader
from trainer.network.space_to_depth import depth_to_space
from trainer.report.charts import published_reference
from trainer.report.gallery import best_and_worst, examples
from trainer.report.html import REPORT_NAME, write_report
from trainer.report.image_grid import kernel_grid
from trainer.report.metrics import METRICS_NAME, RunRecorder, read_metrics
from trainer.training.epoch import EpochResult, EpochRun, Tools, best_so_far, training_batches
from trainer.training.schedule import epochs_without_gain
from trainer.training.state import Session
from trainer.training.trackers import IDS_NAME, Tracker, start_trackers
from trainer.training.weights import start_weights

STEPS_PER_RECORD = 10
EXAMPLES = 16
SAMPLE_IMAGES = 16
_SCHEDULING = ("schedule", "epochs", "lr ", "batch_size", "warmup", "drop", "plateau")


@dataclass(frozen=True)
class RunResult:
    """The end of a run: rows per epoch, the best of them, the folder and the number of classes."""

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
    overwrite: bool = False,
    validation: Sequence[str] = (),
    begin: Callable[[int], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
    stop: Stop | None = None,
    world: World | None = None,
) -> RunResult:
    """Trains with the settings ``config`` and fills ``folder``.

    ``begin`` gets the number of classes once the data are known to fit together, ``report``
    the row of every finished epoch, ``notice`` messages (where a run continues, a network that
    does not learn). ``resume`` continues from ``folder/last.pt``, with ``force`` under other
    settings too. ``overwrite`` replaces a run in ``folder``. ``validation``: see ``find_data``.
    When ``stop`` has a status the run writes a checkpoint after its step and raises
    StoppedError. Raises ToolError where data, statistics or checkpoint do not fit, when the run
    diverges, and when another process of ``world`` is lost.
    """
    started = time.perf_counter()
    world = world or World()
    with contextlib.ExitStack() as stack:
        stack.enter_context(world.answering())
        data = find_data(beton, validation)
        stored = world.from_main(_stored(folder) if world.main and resume else None)
        session = _session(config, data, world, notice, fresh=stored is None)
        _check_data(session)
        batches = stack.enter_context(training_batches(session, progress))
        begin(len(data.classes))
        if stored is not None:
            _restore(session, folder, stored, force=force, notice=notice)
        session.freeze()
        begun_with = session.epochs_done
        sets = [
            stack.enter_context(_batches_of(session, betons))
            for betons in ([data.validation] if data.validation else []) + [*data.others.values()]
        ]
        # Only now: a run whose settings do not fit its images leaves no folder behind.
        if world.main:
            _begin(session, folder, overwrite=overwrite)
        record = _Record(session, folder, stack, append=resume, notice=notice)
        record.sample(batches)
        main_set = sets.pop(0) if data.validation else None
        tools = Tools(batches, main_set, folder, progress, stop or Stop())
        found = _epochs(session, tools, sets, record, report)
    rows: list[dict[str, Any]] = []
    if world.main:
        rows = [row for row in read_metrics(folder) if row.get("kind") != "step"]
        if session.epochs_done > begun_with or not (folder / REPORT_NAME).exists():
            _write_report(session, folder, rows, found)
    seconds = time.perf_counter() - started
    return RunResult(folder, rows, session.best or {}, seconds, len(data.classes))


def _epochs(
    session: Session,
    tools: Tools,
    others: Sequence[BetonLoader],
    record: _Record,
    report: Callable[[dict[str, Any]], None],
) -> Evaluation | None:
    """Trains the epochs that are left, stores each -> the last evaluation."""
    folder, found = tools.folder, None
    while not _is_over(session):
        done = EpochRun(session, tools)()
        found = done.evaluation
        _evaluate_others(session, done, others)
        if best_so_far(session, done.row):
            session.best = done.row
            session.save(folder / "best.pt", whole=False)
        record(done)
        session.save(folder / "last.pt", whole=True)
        if session.world.main:
            _keep(session, folder)
            report(done.row)
    return found


def _stored(folder: Path) -> Checkpoint | None:
    """``folder/last.pt`` to continue from; None for a run that was ended before its first one.

    ToolError where it is missing and the run had come further: nothing is trained over.
    """
    last, best = folder / "last.pt", folder / "best.pt"
    if last.exists():
        return load_checkpoint(last)
    if best.exists() and int(load_checkpoint(best).progress["epochs_done"]) > 1:
        raise ToolError(
            "run.no_last",
            f"{last}: is missing, so the run cannot be continued; start again with --overwrite, "
            f"or train from its best weights in another folder with --weights {best}",
        )
    return None


def _session(
    config: configs.RunConfig,
    data: Data,
    world: World,
    notice: Callable[[str], None],
    *,
    fresh: bool,
) -> Session:
    """The state of a new run, with the weights of ``--weights`` if it is ``fresh``."""
    if not config.weights or not fresh:
        return Session(config, data, world)
    found: tuple[dict[str, torch.Tensor], list[str]] | None = None
    if world.main:  # the file may be on the machine of rank 0 alone
        model = Session.new_model(config, data)
        found = start_weights(config.weights, model.state_dict(), data.classes)
        if config.weights == "torchvision" and (config.mean, config.scaled) != ("imagenet", True):
            found[1].append("torchvision's weights were trained with --mean imagenet --scaled")
    weights, messages = world.from_main(found)
    for message in messages:
        notice(message)
    return Session(config, data, world, weights=weights)


def _restore(
    session: Session,
    folder: Path,
    stored: Checkpoint,
    *,
    force: bool,
    notice: Callable[[str], None],
) -> None:
    """Continues from ``stored``; notices of the position, the changes, or why nothing is left."""
    differ = session.restore(stored, force=force)
    if differ and not _is_over(session):
        text = f"{folder}: continues with other settings: {', '.join(differ)}"
        if any(words.startswith(_SCHEDULING) for words in differ):
            text += "; the learning-rate schedule changes with them"
        notice(text)
    done, config = session.epochs_done, session.config
    where = f"continues with epoch {done + 1} of {config.epochs}, after step {session.step}"
    if session.partial is not None:
        where = f"continues in epoch {done + 1} of {config.epochs}, after step {session.step}"
    elif done >= config.epochs:
        where = (
            f"all {config.epochs} epochs are done, nothing is trained; use a larger --epochs with "
            "--force"
        )
    elif _is_over(session):
        where = (
            f"nothing is trained: the validation error has not fallen for {config.patience} "
            "epochs (--patience)"
        )
    notice(f"{folder}: {where}")


def _begin(session: Session, folder: Path, *, overwrite: bool) -> None:
    """Makes the run's folder and describes the run in it."""
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        named = [folder / name for name in ("last.pt", "best.pt", METRICS_NAME, IDS_NAME)]
        found = [*folder.glob("epoch-*.pt"), *folder.rglob("events.out.tfevents.*")]
        for path in (*named, *found):
            path.unlink(missing_ok=True)
    if not _is_over(session) or not (folder / "config.json").exists():
        write_json(folder / "config.json", session.stored_config() | {"launch": launch()})
        write_json(folder / "environment.json", session.environment)


def _keep(session: Session, folder: Path) -> None:
    """Copies of last.pt by epoch, as ``--keep`` and ``--keep-every`` have it."""
    epoch, config = session.epochs_done, session.config
    every = config.keep_every

    def permanent(number: int) -> bool:
        return every > 0 and number % every == 0

    if config.keep or permanent(epoch):
        target = folder / f"epoch-{epoch:04d}.pt"
        target.unlink(missing_ok=True)
        os.link(folder / "last.pt", target)  # last.pt itself is replaced, never changed
    for path in sorted(folder.glob("epoch-*.pt")) if config.keep else []:
        number = int(path.stem.removeprefix("epoch-"))
        if number <= epoch - config.keep and not permanent(number):
            path.unlink()


def _check_data(session: Session) -> None:
    """UsageError for settings that need more images, or a validation set."""
    config, images = session.config, session.data.manifest.samples
    if session.spec.norm == "batch" and images < 2 * session.world.ranks:
        raise UsageError(
            "run.too_few_images",
            f"{session.data.train}: {images} image(s) for {session.world.ranks} process(es): batch "
            "normalisation needs two for each; use a --network without it, or more images",
        )
    if session.data.validation is not None:
        return
    for flag, used in (
        ("--schedule plateau", config.schedule == "plateau"),
        ("--patience", config.patience > 0),
    ):
        if used:
            raise UsageError(
                "run.no_validation",
                f"{session.data.train}: {flag} needs a validation set; build val.beton beside it, "
                "give --val, or use another setting",
            )


class _Record:
    """Writes what an epoch gives into the run's folder; notices a network that does not learn."""

    def __init__(
        self,
        session: Session,
        folder: Path,
        stack: contextlib.ExitStack,
        *,
        append: bool,
        notice: Callable[[str], None],
    ) -> None:
        self.session, self.notice = session, notice
        self.recorder: RunRecorder | None = None
        self.trackers: list[Tracker] = []
        if session.world.main:
            self.recorder = stack.enter_context(
                RunRecorder(folder, append=append, keep_until_epoch=session.epochs_done)
            )
            self.trackers = start_trackers(session.config.log, folder, session.stored_config())
            for tracker in self.trackers:
                stack.callback(tracker.close)

    def sample(self, batches: BetonLoader) -> None:
        """Records the network of a new run and its first images as the network sees them."""
        if self.recorder is None or self.session.step or self.session.partial is not None:
            return
        batches.set_epoch(0)
        images = next(iter(batches)).images[:SAMPLE_IMAGES]
        if images.shape[1] == 48:
            images = depth_to_space(images, batches.out_size)
        self.recorder.sample(images.float().cpu().numpy())
        self.recorder.graph(self.session.layers())
        batches.close()

    def __call__(self, done: EpochResult) -> None:
        """Writes the epoch's metrics, events and kernels."""
        if self.recorder is None:
            return
        epoch = self.session.epochs_done
        size = self.session.config.accumulate
        for index in range(0, len(done.losses), size):
            step, losses = done.first_step + index // size, done.losses[index : index + size]
            if step % STEPS_PER_RECORD == 0:
                self.recorder.step(epoch, step, {"train_loss": sum(losses) / len(losses)})
        self.recorder.epoch(done.row)
        for tracker in self.trackers:
            tracker.epoch(done.row)
        self.recorder.kernels(epoch, _kernels(self.session))
        message = self.session.learning(
            done.losses,
            self.session.step,
            None if done.evaluation is None else done.evaluation.confusion,
            ended=_is_over(self.session),
        )
        if message is not None:
            self.notice(message)


def _write_report(
    session: Session, folder: Path, rows: list[dict[str, Any]], found: Evaluation | None
) -> None:
    """report.html from the epochs' rows and the last evaluation."""
    classes, validation = session.data.classes, session.data.validation
    examples_of: list[Any] = [[], []]
    if found is not None and validation is not None:
        examples_of = [
            examples(validation, found.judged, rows_of, classes)
            for rows_of in best_and_worst(found.judged, EXAMPLES)
        ]
    write_report(
        folder,
        config=session.stored_config(),
        rows=rows,
        classes=[classes.title(label) for label in range(len(classes))],
        kernels=_kernels(session),
        environment=session.environment,
        confusion=None if found is None else found.confusion,
        best=examples_of[0],
        worst=examples_of[1],
        reference=published_reference() if len(classes) == 1000 else None,
    )


def _is_over(session: Session) -> bool:
    """Whether all epochs are done, or the validation error has not fallen for ``patience``."""
    if session.epochs_done >= session.config.epochs:
        return True
    patience = session.config.patience
    return patience > 0 and epochs_without_gain(session.errors) >= patience


def _batches_of(session: Session, betons: Betons) -> BetonLoader:
    """The images of a validation set, this rank's part of them."""
    world, config = session.world, session.config
    return evaluation_batches(
        betons, session.data.stats, session.spec,
        replace(config, jobs=world.jobs(config.jobs)), rank=world.rank, ranks=world.ranks,
    )  # fmt: skip


def _evaluate_others(session: Session, done: EpochResult, sets: Sequence[BetonLoader]) -> None:
    """Adds loss and errors on the further validation sets to the epoch's row."""
    for name, batches in zip(session.data.others, sets, strict=True):
        judged = evaluate(session.judging(), batches, session.precision, lambda _: None)
        result = evaluation_of(session.world.joined(judged), len(session.data.classes)).result
        done.row.update(result.row(name))


def _kernels(session: Session) -> NDArray[Any]:
    """The first layer's kernels as an image (H, W, 3) uint8."""
    first = next(m for m in session.evaluated.modules() if isinstance(m, torch.nn.Conv2d))
    weights = first.weight.detach().float().cpu().numpy()
    return kernel_grid(weights, columns=min(16, math.ceil(math.sqrt(weights.shape[0] * 1.5))))
