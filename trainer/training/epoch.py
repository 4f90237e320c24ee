"""One epoch of a run: steps, checkpoints inside it, stop requests, evaluation, its row."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imagenet_prep.core.errors import Progress, ToolError, quiet
from trainer.hashing import words
from trainer.inference.evaluate import Evaluation, batch_form, counter, evaluation_of
from trainer.inference.judge import BatchLike, evaluate
from trainer.interrupt import TIME_LIMIT, Stop, StoppedError
from trainer.loader.loader import BetonLoader, train_loader
from trainer.loader.order import step_ends
from trainer.training.notices import LossWatch, loss_message
from trainer.training.schedule import learning_rate_factor, plateau_drops
from trainer.training.state import Session
from trainer.training.step import Sums, train_epoch

# The number of the draws of dropout; those of samples and pages are in draws and order.
_DROPOUT = 11
_CHECKPOINT_DUE = 1  # below every exit status


@dataclass(frozen=True)
class Tools:
    """What an epoch uses besides the session: loaders, folder, progress, stop requests."""

    batches: BetonLoader
    validation: BetonLoader | None
    folder: Path
    progress: Progress
    stop: Stop


@dataclass(frozen=True)
class EpochResult:
    """An epoch's row for the record, its training losses and its evaluation."""

    row: dict[str, Any]
    losses: tuple[float, ...]
    first_step: int
    evaluation: Evaluation | None


class EpochRun:
    """One epoch; made at its beginning, or where a checkpoint inside it was taken."""

    def __init__(self, session: Session, tools: Tools) -> None:
        self.session, self.tools = session, tools
        config, batches = session.config, tools.batches
        self.epoch = session.epochs_done
        self.steps = math.ceil(len(batches) / config.accumulate)
        self.sums = Sums(session.device)
        self.saving_s = 0.0
        batches.out_size = session.image_side
        batches.set_epoch(self.epoch)
        self.rest: Iterable[BatchLike] = batches
        self.left = batches.samples
        left = self._take_up()
        batches.lighting = 0.0 if 0 < config.lighting_epochs <= self.epoch else config.lighting
        session.freeze()
        self.drops = plateau_drops(session.errors, patience=config.plateau_patience)
        # Counted from the epoch's end: a forced change of the batch size moves its beginning.
        steps_left = math.ceil(left / config.accumulate)
        session.step = (self.epoch + 1) * self.steps - steps_left
        self.begun_at, self.images_before = session.step, self.sums.images
        self.watch = LossWatch(session.device)

    def _take_up(self) -> int:
        """Goes to where the stored epoch stands -> the batches that are left of it."""
        batches, partial = self.tools.batches, self.session.partial
        self.session.partial = None
        if partial is None or not _same_order(partial["loader"], batches):
            return len(batches)
        stored, world = partial["sums"], self.session.world
        if len(stored) == world.ranks:
            self.sums.load_state_dict(stored[world.rank])
        elif world.main:  # forced to go on with another number of processes
            self.sums.load_state_dict(*stored)
        left = batches.samples - int(partial["loader"]["position"])
        self.left = left
        if left == 0:  # stopped before the evaluation
            self.rest = []
            return 0
        batches.load_state_dict(partial["loader"])
        reading = batches.reading
        return len(step_ends(left, reading.batch_size, reading.ranks))

    def rate(self, step: int) -> float:
        """The learning rate at ``step`` of the run, biases apart."""
        config = self.session.config
        return config.lr * learning_rate_factor(
            config.schedule,
            step,
            config.epochs * self.steps,
            warmup_steps=round(config.warmup_epochs * self.steps),
            epoch=step // self.steps,
            drop_epochs=config.drop_epochs,
            drops=config.drops,
            plateau=self.drops,
        )

    def __call__(self) -> EpochResult:
        """Trains and evaluates; StoppedError when asked to, ToolError for a loss that is none."""
        session, batches = self.session, self.tools.batches
        config = session.config
        name = f"epoch {self.epoch + 1}/{config.epochs}"
        self._seed()
        step = session.stepping
        step.learner = session.world.learner(step.network, session.device)
        started, talked_s = time.perf_counter(), session.world.communication_s()
        result = train_epoch(
            step,
            self._until_changed(),
            self.rate,
            session.step,
            self.sums,
            self._counter(name, batches.samples, self.sums.images),
            weights=session.world.weights(self.left, config.batch_size, step.settings.least_batch),
            after_step=self._after_step,
        )
        talked_s = session.world.communication_s() - talked_s
        seconds = time.perf_counter() - started
        self._check(result.step_losses)
        shares = self._shares(seconds, talked_s)
        found = self._evaluate()
        session.step = (self.epoch + 1) * self.steps
        session.epochs_done += 1
        row = self._row(seconds, shares, found)
        per_batch = self.epoch * self.steps
        return EpochResult(row, result.step_losses, per_batch, found)

    def _until_changed(self) -> Iterator[BatchLike]:
        """The batches that are left; a beton file that changes ends them with a checkpoint."""
        try:
            yield from self.rest
        except ToolError as error:
            whole_steps = self.session.config.accumulate == self.session.world.ranks == 1
            if error.code != "beton.changed" or not whole_steps:
                raise
            self._save()
            raise ToolError(
                error.code,
                f"{error.message}; a checkpoint is written: continue with --resume --out "
                f"{self.tools.folder}",
            ) from error

    def _seed(self) -> None:
        """Dropout of a step is a function of seed, step and rank: no state to store."""
        session = self.session
        rank = np.array([session.world.rank])
        torch.manual_seed(int(words(session.config.seed, session.step, rank, _DROPOUT)[0] >> 1))

    def _after_step(self) -> None:
        session = self.session
        session.step += 1
        if self.watch.broken(self.sums.values[0]):
            self._check(self.sums.result().step_losses)
        asked = session.world.largest(self.tools.stop.status or self._checkpoint_due())
        if asked:
            self._save()
        if asked > _CHECKPOINT_DUE:
            self._stop(asked)
        self._seed()

    def _checkpoint_due(self) -> int:
        """_CHECKPOINT_DUE after enough steps, or enough minutes without a checkpoint; else 0."""
        config = self.session.config
        done, every = self.session.step - self.epoch * self.steps, config.checkpoint_every
        seconds = 60 * config.checkpoint_minutes
        late = seconds > 0 and time.monotonic() - self.session.saved_at >= seconds
        return _CHECKPOINT_DUE if late or (every and done % every == 0) else 0

    def _save(self) -> None:
        """last.pt of this moment, unless the weights are no numbers any more."""
        world = self.session.world
        started, talked_s = time.perf_counter(), world.communication_s()
        self._check(self.sums.result().step_losses)
        partial = {
            "step": self.session.step,
            "loader": self.tools.batches.state_dict() | self._where(),
            "sums": world.gathered(self.sums.state_dict()),
        }
        self.session.save(self.tools.folder / "last.pt", whole=True, partial=partial)
        talked_s = world.communication_s() - talked_s
        seconds = time.perf_counter() - started - talked_s
        self.saving_s += seconds
        self.tools.stop.reserve_s = max(self.tools.stop.reserve_s, 2 * seconds)

    def _where(self) -> dict[str, int]:
        """The epoch, and its end as the position where all of it was trained on before."""
        end = {} if self.rest else {"position": self.tools.batches.samples}
        return {"epoch": self.epoch, **end}

    def _stop(self, status: int) -> None:
        cause = "the time limit" if status == TIME_LIMIT else "a signal"
        raise StoppedError(
            f"{self.tools.folder}: stopped by {cause} after step {self.session.step}, in epoch "
            f"{self.epoch + 1}; continue with --resume --out {self.tools.folder}",
            status,
        )

    def _check(self, losses: tuple[float, ...]) -> None:
        session = self.session
        message = loss_message(losses, self.epoch, session.config.lr, session.precision.name)
        if message is not None:
            raise ToolError("run.diverged", f"{self.tools.folder}: {message}")

    def _evaluate(self) -> Evaluation | None:
        session, validation = self.session, self.tools.validation
        if validation is None:
            return None
        shown = self._counter("validation", validation.samples)
        # Each rank has running statistics of its own images since the last step.
        session.world.agree(session.evaluated)

        def advance(count: int) -> None:
            shown(count)
            # A rank that stopped alone would leave the others waiting.
            if session.world.ranks == 1 and self.tools.stop.status:
                self._save()
                self._stop(self.tools.stop.status)

        judged = evaluate(session.judging(), validation, session.precision, advance)
        found = evaluation_of(session.world.joined(judged), len(session.data.classes))
        session.errors.append(found.result.top1_error)
        return found

    def _counter(self, what: str, total: int, done: int = 0) -> Callable[[int], None]:
        """A count of this rank's images -> progress in those of all ranks."""
        ranks = self.session.world.ranks
        shown = counter(self.tools.progress, what, total, min(total, ranks * done))
        return lambda count: shown(ranks * count)

    def _shares(self, seconds: float, talked_s: float) -> dict[str, list[float]]:
        """The time of this process since it began the epoch, by rank, in shares: waiting, exposed
        communication (see ``exchange``), steps; what is left was writing checkpoints."""
        waited_s = self.tools.batches.wait_s if self.rest else 0.0
        in_steps_s = seconds - waited_s - talked_s - self.saving_s
        parts = {"wait_share": waited_s, "communication_share": talked_s, "step_share": in_steps_s}
        mine = {name: min(1.0, max(0.0, part / seconds)) for name, part in parts.items()}
        every = self.session.world.gathered(mine)
        return {name: [of_rank[name] for of_rank in every] for name in mine}

    def _row(
        self, seconds: float, shares: dict[str, list[float]], found: Evaluation | None
    ) -> dict[str, Any]:
        """The epoch's figures of all ranks; shares and speed are those since the last start."""
        session = self.session
        here = torch.tensor([self.sums.images - self.images_before])
        *counts, trained = session.world.summed(torch.cat((self.sums.counts(), here))).unbind()
        row: dict[str, Any] = {
            "epoch": session.epochs_done,
            **Sums.of(torch.stack(counts)).row("train"),
            "lr": self.rate(session.step - 1),
            "seconds": seconds,
            "images_per_second": float(trained) / seconds,
        }
        if session.config.start_size:
            row["image_px"] = self.tools.batches.out_size
        ranks = session.world.ranks
        row |= {
            name: sum(every) / ranks
            for name, every in shares.items()
            if ranks > 1 or name != "communication_share"
        }
        if ranks > 1:
            row["by_rank"] = shares
        if found is not None:
            row |= found.result.row("val")
        return row


def _same_order(state: dict[str, Any], batches: BetonLoader) -> bool:
    """Whether a stored position is one in this loader's epoch."""
    ours = batches.state_dict()
    return all(state[name] == ours[name] for name in ours if name not in ("epoch", "position"))


def best_so_far(session: Session, row: dict[str, Any]) -> bool:
    """Whether ``row`` has the least validation error yet (without a set: always)."""
    key = "val_top1_error"
    best = session.best
    return key not in row or best is None or key not in best or row[key] <= best[key]


def training_batches(session: Session, progress: Progress = quiet) -> BetonLoader:
    """The training images of a run, with its settings, for the epoch that is next."""
    config = session.config
    return train_loader(
        session.data.train,
        session.data.stats,
        batch_size=config.batch_size,
        crop_size=config.crop_size,
        out_size=session.image_side,
        view="resized" if config.scale_min < 1 else "random",
        scale=(config.scale_min, 1.0),
        seed=config.seed,
        lighting=config.lighting,
        lighting_mode=config.lighting_mode,
        mirror=config.mirror,
        alternate=config.alternate,
        mean=config.pixel_mean,
        std=config.pixel_std,
        scaled=config.scaled,
        order=config.order,
        rank=session.world.rank,
        ranks=session.world.ranks,
        jobs=session.world.jobs(config.jobs),
        device=session.device.type,
        decode=config.decode,
        resident=config.resident,
        progress=progress,
        **batch_form(session.spec, session.precision),
    )
