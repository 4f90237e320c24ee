"""One training step, and an epoch of steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.device import Precision
from trainer.inference.judge import BatchLike, Result


class Average:
    """A running average of a model's weights and of its batch-norm statistics.

    The statistics are averaged too: those of the last few small batches alone are so noisy
    that they cost the average some of its gain.
    """

    def __init__(self, model: nn.Module, average: nn.Module, decay: float) -> None:
        self.average = average.eval()
        self.decay = decay
        ours = [*average.parameters(), *average.buffers()]
        theirs = [*model.parameters(), *model.buffers()]
        pairs = list(zip(ours, theirs, strict=True))
        self._ours = [mine for mine, _ in pairs if mine.is_floating_point()]
        self._theirs = [other for _, other in pairs if other.is_floating_point()]
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves towards the model; faster in the first steps, when it is far behind."""
        decay = min(self.decay, (step + 1) / (step + 11))
        torch._foreach_lerp_(self._ours, self._theirs, 1.0 - decay)
        for ours, theirs in self._counters:
            ours.copy_(theirs)


class Sums:
    """Loss and hits of an epoch, kept on the device; may be stored and taken up again."""

    def __init__(self, device: torch.device, classes: int) -> None:
        self.values = torch.zeros(3, dtype=torch.float64, device=device)
        self.k = min(5, classes)
        self.losses: list[Tensor] = []
        self.images = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch with its mean loss."""
        loss = loss.detach()
        hits = logits.detach().topk(self.k, dim=1).indices == labels[:, None]
        count = labels.shape[0]
        self.values += torch.stack((loss.double() * count, hits[:, 0].sum(), hits.sum()))
        self.losses.append(loss)
        self.images += count

    def result(self) -> Result:
        """The figures of what was counted; waits for the device."""
        steps = torch.stack(self.losses).tolist() if self.losses else []
        return self.of(self.counts(), tuple(steps))

    def counts(self) -> Tensor:
        """Summed losses, hits, hits among five and pictures, (4,) float64 on the CPU; such
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
        self.losses = list(state["losses"].to(device).unbind())
        self.images = sum(int(counted["images"]) for counted in (state, *others))


@dataclass(frozen=True)
class StepSettings:
    """What a step needs of the configuration. ``accumulate`` batches make one step."""

    classes: int
    label_smoothing: float
    least_batch: int
    accumulate: int = 1


class Stepper:
    """The optimiser's half of a step: learning rate, unscaling, clipping, averaging."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        precision: Precision,
        clip_norm: float,
        rate: Callable[[int], float],
        first_step: int,
    ) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer, self.average, self.scaler = optimizer, average, precision.scaler
        self.rate, self.step = rate, first_step
        self.clip = clip_norm if clip_norm > 0 else None

    def __call__(self) -> None:
        """Moves the weights along the gradients that have been collected, and clears them."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step) * group["lr_factor"]
        self.scaler.unscale_(self.optimizer)
        if self.clip is not None:  # the norm reads every gradient once more
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.step)
        self.step += 1


def train_epoch(
    model: nn.Module,
    batches: Iterable[BatchLike],
    stepper: Stepper,
    precision: Precision,
    settings: StepSettings,
    device: torch.device,
    advance: Callable[[int], None],
    *,
    sums: Sums | None = None,
    weights: Iterable[float] = itertools.repeat(1.0),
    after_step: Callable[[], None] = lambda: None,
) -> Result:
    """Trains once over ``batches``; ``stepper`` moves the weights.

    ``advance(n)`` is called after each batch with its pictures, when the weights have moved,
    and ``after_step()`` after each step, when the batch that ended it is in ``sums`` (of an
    epoch that was begun before; None: a new one). ``weights`` multiply the batches' losses,
    where several processes share one step unevenly; a batch of weight 0 is left out, and so
    is a last batch below ``least_batch`` (batch normalisation cannot train on one picture).
    A last group of fewer than ``accumulate`` batches makes a smaller step.
    """
    model.train()
    sums = Sums(device, settings.classes) if sums is None else sums
    share, collected = 1.0 / settings.accumulate, 0
    for batch, weight in zip(batches, weights, strict=False):
        images, labels = batch.images, batch.labels
        if labels.shape[0] < settings.least_batch or not weight:
            continue
        with precision.context():
            logits = model(images)
        logits = logits.float()
        loss = functional.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        torch.autograd.backward(precision.scaler.scale(loss * (share * weight)))
        collected += 1
        ended = collected == settings.accumulate
        if ended:
            stepper()
            collected = 0
        sums.add(loss, logits, labels)
        advance(labels.shape[0])
        if ended:
            after_step()
    if collected:
        stepper()
        after_step()
    return sums.result()
