"""A model and batches -> loss and errors over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.device import Precision


class BatchLike(Protocol):
    """What a loader yields: images (B, C, S, S), labels (B,) int64 and indices (B,) int64.

    For evaluation images may be (B, V, C, S, S): V views of each image.
    """

    @property
    def images(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def indices(self) -> Tensor: ...


@dataclass(frozen=True)
class Result:
    """Mean loss, top-1 and top-5 error in percent, over ``images`` images.

    ``step_losses`` are the losses of the batches, in order.
    """

    loss: float
    top1_error: float
    top5_error: float
    images: int
    step_losses: tuple[float, ...] = ()

    def row(self, name: str) -> dict[str, float]:
        """The figures on the set ``name`` as a row of metrics has them."""
        return {
            f"{name}_loss": self.loss,
            f"{name}_top1_error": self.top1_error,
            f"{name}_top5_error": self.top5_error,
        }


@dataclass(frozen=True)
class Judged:
    """The outputs of a network for N images, each (N,), on the CPU.

    ``indices`` are the places in the beton; ``confidence`` is the probability of the
    ``predicted`` class and ``truth`` that of the true one; ``losses`` are -ln of it;
    ``in_top5``: the true class is among the five likeliest.
    """

    indices: Tensor
    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    truth: Tensor
    losses: Tensor
    in_top5: Tensor


def log_probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """Images (B, C, S, S) or views of them (B, V, C, S, S) -> ln p (B, K) float32.

    Views are averaged after the softmax, as Krizhevsky et al. (2012) did.
    """
    views = images.shape[1] if images.ndim == 5 else 1
    flat = images.flatten(0, 1) if images.ndim == 5 else images
    found: Tensor = model(flat).float().log_softmax(dim=1)
    if views == 1:
        return found
    together: Tensor = found.unflatten(0, (-1, views))  # type: ignore[no-untyped-call]
    return together.logsumexp(dim=1) - math.log(views)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[BatchLike],
    precision: Precision,
    advance: Callable[[int], None],
) -> Judged:
    """The outputs of ``model`` for every image of ``batches``, in their order."""
    model.eval()
    columns: list[list[Tensor]] = [[] for _ in range(7)]
    for batch in batches:
        labels = batch.labels
        with precision.context():
            found = log_probabilities(model, batch.images)
        best = found.max(dim=1)
        losses = functional.nll_loss(found, labels, reduction="none")
        in_top5 = (found.topk(min(5, found.shape[1]), dim=1).indices == labels[:, None]).any(dim=1)
        values = (
            batch.indices.clone(),
            labels.clone(),
            best.indices,
            best.values.exp(),
            losses.neg().exp(),
            losses,
            in_top5,
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value)
        advance(labels.shape[0])
    return Judged(*(torch.cat(column).cpu() for column in columns))
