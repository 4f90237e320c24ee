"""Training health checks: a loss that is not finite, a network that does not learn.

Pure but for ``LossWatch``, which looks at the device's sums without waiting for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagenet_prep.dataset.classes import Classes

LOOK_EVERY_STEPS = 50
STUCK_AFTER_STEPS = 200
# A run that ends sooner is checked too, and one with few steps an epoch after so many epochs of one
# predicted class, unless it was too short to learn anything.
_FEWEST_STEPS = 20
_ONE_CLASS_EPOCHS = 3
_BEGUN_EPOCHS = 2
_RECENT_LOSSES = 100
_NEAR_CHANCE = 0.99


class LossWatch:
    """Detects a sum of losses that is not finite, within 2 × LOOK_EVERY_STEPS steps.

    On a CUDA device the sum is copied into pinned memory and checked when the copy has
    arrived: a step never waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._copy = torch.zeros(1, dtype=torch.float64, pin_memory=self._cuda)
        self._event: torch.cuda.Event | None = None
        self._steps = 0

    def broken(self, total: Tensor) -> bool:
        """Call after each step: whether ``total`` (0-dim, on the device) is not finite."""
        self._steps += 1
        if self._steps % LOOK_EVERY_STEPS:
            return False
        if not self._cuda:
            return not math.isfinite(float(total))
        seen = False
        if self._event is not None:
            if not self._event.query():  # type: ignore[no-untyped-call]
                return False
            seen = not math.isfinite(float(self._copy))
        self._copy.copy_(total.reshape(1), non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()
        return seen


def loss_message(losses: Sequence[float], epoch: int, lr: float, precision: str) -> str | None:
    """Losses of an epoch's batches -> where and why they are not finite; None if they are.

    ``epoch`` counts from 0.
    """
    bad = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if bad is None:
        return None
    where = f"the loss is not finite in epoch {epoch + 1}, step {bad + 1}"
    before = losses[max(0, bad - 10) : bad]
    if epoch == 0 and bad == 0:
        cause = (
            "before any weight changed, so the images or the first weights are too large for "
            "the network: check --mean and --scaled, or use --network small"
        )
    elif precision == "float16" and before and max(before) < 2 * losses[0]:
        cause = "float16 overflows above 65504; use --precision bfloat16 or float32"
    else:
        rose = before and max(before) > 1.5 * min(losses[:bad])
        found = "the loss was rising" if rose else "one step was too large"
        cause = f"{found}: use a smaller --lr (it was {lr:g}), a --warmup-epochs or --clip-norm 1"
    return f"{where}; {cause}"


def begun(confusion: NDArray[np.int64]) -> bool:
    """Whether a network learns: more images are right than with the most frequent class for
    all, by more than three standard deviations of chance."""
    total = int(confusion.sum())
    share = float(confusion.sum(axis=1).max()) / max(total, 1)
    return float(np.trace(confusion)) > share * total + 3 * math.sqrt(share * (1 - share) * total)


def only_class(confusion: NDArray[np.int64]) -> int | None:
    """The class that is predicted for all images of several classes; None if there is none."""
    predicted = np.flatnonzero(confusion.sum(axis=0))
    several = (confusion.sum(axis=1) > 0).sum() > 1
    return int(predicted[0]) if several and len(predicted) == 1 else None


def stuck(
    losses: Sequence[float],
    steps: int,
    confusion: NDArray[np.int64] | None,
    *,
    classes: Classes,
    lr: float,
    norm: str,
    ended: bool = False,
    one_class_epochs: int = 0,
) -> str | None:
    """The last batches' losses and the last confusion -> why the network seems not to
    learn, and what to try; or None.

    Before ``steps`` reaches STUCK_AFTER_STEPS there is no finding, unless the run has ``ended``
    or has predicted one class in its last ``one_class_epochs`` (three or more), after at least
    _FEWEST_STEPS. ``confusion`` counts true × predicted classes. ``norm`` is the network's
    normalisation.
    """
    count = len(classes)
    early = steps < STUCK_AFTER_STEPS
    settled = ended or one_class_epochs >= _ONE_CLASS_EPOCHS
    if count < 2 or not losses or steps < (_FEWEST_STEPS if settled else STUCK_AFTER_STEPS):
        return None
    if confusion is not None and begun(confusion):
        return None
    chance = math.log(count)
    # Of a short run its second half: the first steps may have been too large.
    recent = losses[len(losses) // 2 :] if early else losses[-_RECENT_LOSSES:]
    mean = sum(recent) / len(recent)
    what = None
    if confusion is not None and (only := only_class(confusion)) is not None:
        what = f"after {steps} steps the network predicts class {classes.title(only)!r} for all "
        what += "images" + (f", for {one_class_epochs} epochs" if one_class_epochs > 1 else "")
    if what is None and mean >= _NEAR_CHANCE * chance:
        what = (
            f"after {steps} steps the loss is {mean:.3f}; chance among {count} classes is "
            f"ln({count}) = {chance:.3f}"
        )
    if what is None:
        return None
    tries = ["more steps (--epochs)"] if early else []
    tries += [
        f"another learning rate (--lr {lr / 10:g} or {lr * 3:g}; it is {lr:g})",
        "another input scale (pixels are 0-255 minus the mean; recipes for unit variance need "
        "--scaled)",
    ]
    if norm != "batch":
        tries.append(
            "batch normalisation (--network small); with the paper's first weights of 0.01 "
            "learning begins after many thousand steps"
        )
    return f"{what}: it does not learn yet; try {'; '.join(tries)}"


class LearningWatch:
    """Follows a run epoch by epoch: reports once that its network does not learn, and then,
    once, that it does. Two epochs in a row have to show that: one alone may be chance."""

    def __init__(self, classes: Classes, lr: float, norm: str) -> None:
        self._classes, self._lr, self._norm = classes, lr, norm
        self._losses: list[float] = []
        self._one_class_epochs = 0
        self._begun_epochs = 0
        self._reports = 0

    def __call__(
        self,
        losses: Sequence[float],
        steps: int,
        confusion: NDArray[np.int64] | None,
        *,
        ended: bool,
    ) -> str | None:
        """An epoch's losses by batch, the steps since the run began, the confusion (true ×
        predicted) where there is a validation set, whether it was the last epoch -> a message."""
        self._losses = [*self._losses, *losses][-STUCK_AFTER_STEPS:]
        one_class = confusion is not None and only_class(confusion) is not None
        self._one_class_epochs = self._one_class_epochs + 1 if one_class else 0
        has_begun = confusion is not None and begun(confusion)
        self._begun_epochs = self._begun_epochs + 1 if has_begun else 0
        message = None
        if self._reports == 0:
            message = stuck(
                self._losses, steps, confusion, classes=self._classes, lr=self._lr,
                norm=self._norm, ended=ended, one_class_epochs=self._one_class_epochs,
            )  # fmt: skip
        elif self._reports == 1 and self._begun_epochs == _BEGUN_EPOCHS:
            message = f"after {steps} steps the network learns"
        if message is not None:
            self._reports += 1
        return message

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "losses": self._losses,
            "one_class_epochs": self._one_class_epochs,
            "begun_epochs": self._begun_epochs,
            "said": self._reports,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state_dict``. KeyError, TypeError or ValueError for other values."""
        self._losses = [float(loss) for loss in state["losses"]]
        self._one_class_epochs = int(state["one_class_epochs"])
        self._begun_epochs = int(state["begun_epochs"])
        self._reports = int(state["said"])
