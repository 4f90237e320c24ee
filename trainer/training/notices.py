"""What a run says of itself while it runs: a loss that is no number, a network that is stuck.

Pure but for ``LossWatch``, which looks at the device's sums without waiting for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagenet_prep.dataset.classes import Classes

LOOK_EVERY_STEPS = 50
STUCK_AFTER_STEPS = 200
# A run that ends sooner is judged too, and one of few steps an epoch when it has named one class
# for so many epochs, unless it was too short to learn anything.
_FEWEST_STEPS = 20
_ONE_CLASS_EPOCHS = 3
_BEGUN_EPOCHS = 2
_RECENT_LOSSES = 100
_NEAR_CHANCE = 0.99


class LossWatch:
    """Sees a sum of losses that stopped being a number, at most two looks later.

    On a CUDA device the sum is copied into pinned memory and looked at when the copy has
    arrived: a step never waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._copy = torch.zeros(1, dtype=torch.float64, pin_memory=self._cuda)
        self._event: torch.cuda.Event | None = None
        self._steps = 0

    def broken(self, total: Tensor) -> bool:
        """Whether ``total`` (0-dim, on the device) was seen not to be a number; each step."""
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


def loss_sentence(losses: Sequence[float], epoch: int, lr: float, precision: str) -> str | None:
    """Losses of an epoch's batches -> where and why they stopped being numbers; None if not.

    ``epoch`` counts from 0.
    """
    bad = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if bad is None:
        return None
    where = f"the loss stopped being a number in epoch {epoch + 1}, step {bad + 1}"
    before = losses[max(0, bad - 10) : bad]
    if epoch == 0 and bad == 0:
        cause = (
            "before any weight had moved, so the pictures or the first weights are too large "
            "for the network: check --mean and --scaled, or use --network small"
        )
    elif precision == "float16" and before and max(before) < 2 * losses[0]:
        cause = "float16 overflows above 65504: use --precision bfloat16 or float32"
    else:
        rose = before and max(before) > 1.5 * min(losses[:bad])
        found = "the loss had been rising" if rose else "one step was too long"
        cause = f"{found}: use a smaller --lr (it was {lr:g}), a --warmup-epochs or --clip-norm 1"
    return f"{where}; {cause}"


@dataclass(frozen=True)
class Stuck:
    """Why a network is thought not to have begun to learn, and what to try."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


def begun(confusion: NDArray[np.int64]) -> bool:
    """Whether a network has begun to learn: more pictures are right than by naming the commonest
    class always, beyond what chance explains (three standard deviations)."""
    total = int(confusion.sum())
    share = float(confusion.sum(axis=1).max()) / max(total, 1)
    return float(np.trace(confusion)) > share * total + 3 * math.sqrt(share * (1 - share) * total)


def only_class(confusion: NDArray[np.int64]) -> int | None:
    """The one class that is predicted for pictures of several; None if there is no such."""
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
) -> Stuck | None:
    """The last batches' losses and the last confusion -> a finding, or None.

    ``steps`` have been made; before STUCK_AFTER_STEPS nothing is said, unless the run has
    ``ended`` or has named one class in its last ``one_class_epochs``, three or more, with
    _FEWEST_STEPS at least. ``confusion`` counts true × predicted classes, which the finding
    calls by their names for people. ``norm`` is the network's normalisation.
    """
    count = len(classes)
    early = steps < STUCK_AFTER_STEPS
    settled = ended or one_class_epochs >= _ONE_CLASS_EPOCHS
    if count < 2 or not losses or steps < (_FEWEST_STEPS if settled else STUCK_AFTER_STEPS):
        return None
    if confusion is not None and begun(confusion):
        return None
    chance = math.log(count)
    # Of a short run its second half: first steps that were too long say nothing of the last.
    recent = losses[len(losses) // 2 :] if early else losses[-_RECENT_LOSSES:]
    mean = sum(recent) / len(recent)
    what = None
    if confusion is not None and (only := only_class(confusion)) is not None:
        what = f"after {steps} steps the network predicts class {classes.title(only)!r}"
        what += f" for everything{_for_epochs(one_class_epochs)}"
    if what is None and mean >= _NEAR_CHANCE * chance:
        what = (
            f"after {steps} steps the loss is {mean:.3f} and guessing among {count} classes "
            f"gives ln({count}) = {chance:.3f}"
        )
    if what is None:
        return None
    tries = ["more steps (--epochs), since these are few"] if early else []
    tries += [
        f"another learning rate (--lr {lr / 10:g} or {lr * 3:g}; it is {lr:g})",
        "the input scale (pictures are levels of 0-255 minus the mean; recipes for pictures of "
        "unit variance need --scaled)",
    ]
    if norm != "batch":
        tries.append(
            "other first weights: batch normalisation starts by itself (--network small), the "
            "paper's weights of 0.01 need many thousand steps"
        )
    return Stuck(f"{what}: it has not begun to learn", f"try {'; '.join(tries)}")


def _for_epochs(count: int) -> str:
    return f", and one class only for {count} epochs" if count > 1 else ""


class LearningWatch:
    """Follows a run epoch by epoch: says once that its network has not begun to learn, and
    then, once, that it has, which two epochs in a row have to show: near chance one may rise
    above it and the next fall back."""

    def __init__(self, classes: Classes, lr: float, norm: str) -> None:
        self._classes, self._lr, self._norm = classes, lr, norm
        self._losses: list[float] = []
        self._one_class_epochs = 0
        self._begun_epochs = 0
        self._said = 0

    def __call__(
        self,
        losses: Sequence[float],
        steps: int,
        confusion: NDArray[np.int64] | None,
        *,
        ended: bool,
    ) -> str | None:
        """An epoch's losses by batch, the steps since the run began, the confusion (true ×
        predicted) where there is a validation set, whether it was the last epoch -> a sentence."""
        self._losses = [*self._losses, *losses][-STUCK_AFTER_STEPS:]
        one_class = confusion is not None and only_class(confusion) is not None
        self._one_class_epochs = self._one_class_epochs + 1 if one_class else 0
        has_begun = confusion is not None and begun(confusion)
        self._begun_epochs = self._begun_epochs + 1 if has_begun else 0
        sentence = None
        if self._said == 0:
            finding = stuck(
                self._losses, steps, confusion, classes=self._classes, lr=self._lr,
                norm=self._norm, ended=ended, one_class_epochs=self._one_class_epochs,
            )  # fmt: skip
            sentence = None if finding is None else str(finding)
        elif self._said == 1 and self._begun_epochs == _BEGUN_EPOCHS:
            sentence = f"after {steps} steps the network has begun to learn"
        if sentence is not None:
            self._said += 1
        return sentence

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know."""
        return {
            "losses": self._losses,
            "one_class_epochs": self._one_class_epochs,
            "begun_epochs": self._begun_epochs,
            "said": self._said,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another one stood. KeyError, TypeError or ValueError where it is none."""
        self._losses = [float(loss) for loss in state["losses"]]
        self._one_class_epochs = int(state["one_class_epochs"])
        self._begun_epochs = int(state["begun_epochs"])
        self._said = int(state["said"])
