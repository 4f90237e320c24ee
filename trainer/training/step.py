"""One training step, and an epoch of steps."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.device import Precision
from trainer.inference.judge import BatchLike, Result
from trainer.network.working import pairs, working_copy
from trainer.training.graph import Graph
from trainer.training.optim import Optimizer


class Average:
    """A running average of a model's weights and of its batch-norm statistics.

    The statistics are averaged too: those of the last few small batches alone are so noisy
    that they cost the average some of its gain.
    """

    def __init__(self, model: nn.Module, average: nn.Module, decay: float) -> None:
        self.average = average.eval()
        self.decay = decay
        self.weights = pairs(model, average)
        self._buffers = list(zip(average.buffers(), model.buffers(), strict=True))

    def share(self, step: int) -> float:
        """The part of the way to the model that a step goes; more in the first steps, when the
        average is far behind."""
        return 1.0 - min(self.decay, (step + 1) / (step + 11))

    @torch.no_grad()
    def follow(self, share: Tensor) -> None:
        """Moves what no optimiser moves: statistics, and weights that do not learn."""
        frozen = [pair[::-1] for pair in self.weights.items() if not pair[0].requires_grad]
        for ours, theirs in [*frozen, *self._buffers]:
            if ours.is_floating_point():
                ours.lerp_(theirs, share)
            else:
                ours.copy_(theirs)


class Sums:
    """Loss and hits of an epoch, kept on the device; may be stored and taken up again."""

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(3, dtype=torch.float64, device=device)
        self.losses: list[Tensor] = []
        self.images = 0

    def add(self, counted: Tensor, images: int) -> None:
        """Adds what ``count`` found in a batch."""
        self.values += counted
        self.losses.append(counted[0] / images)
        self.images += images

    def result(self) -> Result:
        """The figures of what was counted; waits for the device."""
        steps = torch.stack(self.losses).tolist() if self.losses else []
        return self.of(self.counts(), tuple(steps))

    def counts(self) -> Tensor:
        """Summed losses, hits, hits among five and images, (4,) float64 on the CPU; such
        counts of several processes may be added."""
        return torch.cat((self.values.cpu(), torch.tensor([float(self.images)]).double()))

    @staticmethod
    def of(counts: Tensor, step_losses: tuple[float, ...] = ()) -> Result:
        """The figures of ``counts``."""
        loss, top1, top5, images = counts.tolist()
        n = max(images, 1.0)
        return Result(
            loss / n, 100 * (1 - top1 / n), 100 * (1 - top5 / n), int(images), step_losses
        )

    def state_dict(self) -> dict[str, Any]:
        """The sums as tensors and numbers; on the CPU, since ranks tell them one another."""
        losses = torch.stack(self.losses) if self.losses else torch.empty(0)
        return {"values": self.values.cpu(), "losses": losses.cpu(), "images": self.images}

    def load_state_dict(self, state: dict[str, Any], *others: dict[str, Any]) -> None:
        """Goes on from ``state_dict``; the counts of ``others`` are added."""
        device = self.values.device
        self.values = sum((other["values"] for other in others), state["values"]).to(device)
        self.losses = list(state["losses"].double().to(device).unbind())
        self.images = sum(int(counted["images"]) for counted in (state, *others))


def count(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """A batch's loss, hits and hits among five, (3,) float64, the loss times its images.

    A class is ahead of the true one when its logit is larger, or equal and it comes first:
    equal logits are no hits by themselves. Nothing is ahead of a number, NaN of everything.
    """
    own = logits.gather(1, labels[:, None])
    first = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    ahead = torch.where(logits == own, first, ~(logits < own)).sum(1)
    hits = torch.stack(((ahead < 1).sum(), (ahead < 5).sum()))
    return torch.cat(((loss.double() * len(labels))[None], hits.double()))


@dataclass(frozen=True)
class StepSettings:
    """What a step needs of the configuration. ``accumulate`` batches make one step; gradients
    are cut to ``clip_norm`` (0: they are not); batches below ``least_batch`` are left out."""

    label_smoothing: float = 0.0
    least_batch: int = 1
    accumulate: int = 1
    clip_norm: float = 0.0


class Step:
    """Batches -> moved weights of ``model``; on CUDA full batches run as one graph.

    The step computes with ``network``, which has bfloat16 weights beside the model's float32
    masters where that is the precision, and is ``model`` itself otherwise.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        precision: Precision,
        settings: StepSettings,
        average: Average | None = None,
        *,
        graph: bool = True,
    ) -> None:
        half = precision.dtype if precision.name == "bfloat16" else None
        self.model, self.network = model, working_copy(model, half)
        self.learner = self.network  # or what averages its gradients over processes
        self.optimizer, self.precision, self.settings = optimizer, precision, settings
        self.average = average
        optimizer.follow(pairs(model, self.network), {} if average is None else average.weights)
        self.context = precision.context if half is None else contextlib.nullcontext
        whole = graph and precision.device.type == "cuda" and precision.name != "float16"
        self.graph = Graph(self._whole) if whole and settings.accumulate == 1 else None
        self.collected = 0

    def __call__(self, images: Tensor, labels: Tensor, weight: float = 1.0) -> Tensor:
        """Adds a batch's gradients and moves when there are ``accumulate`` of them -> ``count``.

        ``prepare`` has been called for this step.
        """
        if self.graph is not None and weight == 1.0:
            return self.graph(images, labels)
        found = self._gradients(images, labels, weight / self.settings.accumulate)
        self.collected += 1
        if self.collected == self.settings.accumulate:
            self.move()
        return found

    def prepare(self, rate: float, step: int) -> None:
        """What the next step needs to know: its learning rate and its number."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]
        self.optimizer.prepare(rate, 0.0 if self.average is None else self.average.share(step))

    def freeze(self, name: str, frozen: bool) -> None:
        """Stops the layer ``name`` from learning, or lets it learn."""
        for network in (self.model, self.network):
            for weight in network.get_submodule(name).parameters():
                if weight.requires_grad == frozen:
                    weight.requires_grad_(not frozen)
                    if self.graph is not None:
                        self.graph.forget()

    def move(self) -> None:
        """Moves the weights along the gradients that have been collected, and clears them."""
        scaler, optimizer = self.precision.scaler, self.optimizer
        scaler.unscale_(optimizer)
        if self.settings.clip_norm > 0:
            optimizer.clip(self.settings.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if self.average is not None:
            self.average.follow(optimizer.numbers[2])
        self.collected = 0

    def _whole(self, images: Tensor, labels: Tensor) -> Tensor:
        found = self._gradients(images, labels, 1.0)
        self.move()
        return found

    def _gradients(self, images: Tensor, labels: Tensor, weight: float) -> Tensor:
        with self.context():
            logits = self.learner(images)
        logits = logits.float()
        loss = functional.cross_entropy(
            logits, labels, label_smoothing=self.settings.label_smoothing
        )
        torch.autograd.backward(self.precision.scaler.scale(loss if weight == 1 else loss * weight))
        return count(loss.detach(), logits.detach(), labels)


def train_epoch(
    step: Step,
    batches: Iterable[BatchLike],
    rate: Callable[[int], float],
    number: int,
    sums: Sums,
    advance: Callable[[int], None],
    *,
    weights: Iterable[float] = itertools.repeat(1.0),
    after_step: Callable[[], None] = lambda: None,
) -> Result:
    """Trains once over ``batches``, from step ``number`` of the run on, at ``rate(number)``.

    ``advance(n)`` is called after each batch with its images, when the weights have moved, and
    ``after_step()`` after each step, when the batch that ended it is in ``sums``. ``weights``
    multiply the batches' losses, where several processes share one step unevenly; a batch of
    weight 0 is left out, and so is one below the least. A last group of fewer than
    ``accumulate`` batches makes a smaller step.
    """
    step.learner.train()
    for batch, weight in zip(batches, weights, strict=False):
        images, labels = batch.images, batch.labels
        if labels.shape[0] < step.settings.least_batch or not weight:
            continue
        if step.collected == 0:
            step.prepare(rate(number), number)
        sums.add(step(images, labels, weight), labels.shape[0])
        advance(labels.shape[0])
        if step.collected == 0:
            number += 1
            after_step()
    if step.collected:
        step.move()
        after_step()
    return sums.result()
