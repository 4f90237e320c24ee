"""The hot page: one epoch of training, one evaluation. Batches in, error rates out.

Nothing in a step prints, calls ``.item()`` or asks the configuration: sums stay on the
device until the epoch ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class BatchLike(Protocol):
    """What a loader yields: images (B, C, S, S) float32 and labels (B,) int64."""

    @property
    def images(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...


@dataclass(frozen=True)
class Result:
    """Mean loss, top-1 and top-5 error in percent, over ``images`` pictures.

    ``step_losses`` are the losses of the batches, in order.
    """

    loss: float
    top1_error: float
    top5_error: float
    images: int
    step_losses: tuple[float, ...] = ()


class Precision:
    """How the forward pass computes: float32, bfloat16 or float16 under autocast."""

    def __init__(self, device: torch.device, name: str) -> None:
        self.device = device
        self.name = name
        self.dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name)
        # Only float16 gradients need scaling: their exponents underflow.
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """The autocast context of a forward pass; does nothing for float32."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def choose_precision(name: str, device: torch.device) -> str:
    """``auto`` -> the fastest that the device has in hardware; other names stay.

    bfloat16 on CUDA from compute capability 8 and on CPUs with AMX or AVX512-BF16,
    float16 on older CUDA devices, float32 elsewhere.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float16"
    capability = torch.cpu.get_capabilities()
    has_bfloat16 = any(capability.get(flag) for flag in ("amx_bf16", "avx512_bf16", "bf16"))
    return "bfloat16" if has_bfloat16 else "float32"


class Average:
    """A running average of a model's weights; batch-norm statistics are copied."""

    def __init__(self, model: nn.Module, average: nn.Module, decay: float) -> None:
        self.average = average.eval()
        self.decay = decay
        self._ours: list[Tensor] = list(average.parameters())
        self._theirs: list[Tensor] = list(model.parameters())
        self._our_buffers = list(average.buffers())
        self._their_buffers = list(model.buffers())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves towards the model; faster in the first steps, when it is far behind."""
        decay = min(self.decay, (step + 1) / (step + 11))
        torch._foreach_lerp_(self._ours, self._theirs, 1.0 - decay)
        for ours, theirs in zip(self._our_buffers, self._their_buffers, strict=True):
            ours.copy_(theirs)


class _Sums:
    """Loss and hits of an epoch, kept on the device."""

    def __init__(self, device: torch.device, classes: int) -> None:
        self.values = torch.zeros(3, dtype=torch.float64, device=device)
        self.k = min(5, classes)
        self.losses: list[Tensor] = []
        self.images = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        loss = loss.detach()
        hits = logits.detach().topk(self.k, dim=1).indices == labels[:, None]
        count = labels.shape[0]
        self.values += torch.stack((loss.double() * count, hits[:, 0].sum(), hits.sum()))
        self.losses.append(loss)
        self.images += count

    def result(self) -> Result:
        loss, top1, top5 = (self.values / max(self.images, 1)).tolist()
        steps = torch.stack(self.losses).tolist() if self.losses else []
        return Result(loss, 100 * (1 - top1), 100 * (1 - top5), self.images, tuple(steps))


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
) -> Result:
    """Trains once over ``batches``; ``stepper`` moves the weights.

    ``advance(n)`` is called after each batch with its pictures, when the weights have moved.
    A last batch below ``least_batch`` is left out (batch normalisation cannot train on one
    picture); a last group of fewer than ``accumulate`` batches makes a smaller step.
    """
    model.train()
    sums = _Sums(device, settings.classes)
    share, collected = 1.0 / settings.accumulate, 0
    for batch in batches:
        images, labels = batch.images, batch.labels
        if labels.shape[0] < settings.least_batch:
            continue
        with precision.context():
            logits = model(images)
        logits = logits.float()
        loss = functional.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        torch.autograd.backward(precision.scaler.scale(loss * share))
        collected += 1
        if collected == settings.accumulate:
            stepper()
            collected = 0
        sums.add(loss, logits, labels)
        advance(labels.shape[0])
    if collected:
        stepper()
    return sums.result()


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[BatchLike],
    precision: Precision,
    classes: int,
    device: torch.device,
    advance: Callable[[int], None],
) -> tuple[Result, Tensor]:
    """(mean loss and errors over ``batches``, confusion (K, K) int64: true × predicted)."""
    model.eval()
    sums = _Sums(device, classes)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    one = torch.ones((), dtype=torch.int64, device=device)
    for batch in batches:
        labels = batch.labels
        with precision.context():
            logits = model(batch.images)
        logits = logits.float()
        sums.add(functional.cross_entropy(logits, labels), logits, labels)
        cells = labels * classes + logits.argmax(dim=1)
        confusion.scatter_add_(0, cells, one.expand_as(cells))
        advance(labels.shape[0])
    return sums.result(), confusion.reshape(classes, classes).cpu()
