"""Step -> learning-rate factor, epoch -> image side; pure functions, also of earlier errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from trainer.network.alexnet import NetworkError, NetworkSpec, feature_sides

SIDE_STEP = 16
"""Pixels between the sides of training images: conv1 and the two poolings after it have a stride of
16 together; the squares of space-to-depth need multiples of 4."""


def learning_rate_factor(
    schedule: str,
    step: int,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    epoch: int = 0,
    drop_epochs: int = 30,
    drops: Sequence[int] = (),
    plateau: int = 0,
) -> float:
    """What the base learning rate is multiplied with at ``step`` (counted from 0).

    ``linear`` falls to 0 over ``total_steps``, ``cosine`` along half a cosine, ``step``
    divides by ten after every ``drop_epochs`` epochs, ``drops`` at the epochs listed in
    ``drops`` (an epoch listed twice divides twice), ``plateau`` ``plateau`` times
    (see ``plateau_drops``), ``constant`` stays. The first ``warmup_steps`` steps rise
    linearly to that. ValueError for another name.
    """
    progress = min(step / max(total_steps, 1), 1.0)
    if schedule == "linear":
        factor = 1.0 - progress
    elif schedule == "cosine":
        factor = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif schedule == "step":
        factor = 0.1 ** (epoch // drop_epochs)
    elif schedule == "drops":
        factor = 0.1 ** sum(epoch >= drop for drop in drops)
    elif schedule == "plateau":
        factor = 0.1**plateau
    elif schedule == "constant":
        factor = 1.0
    else:
        raise ValueError(f"no schedule is called {schedule!r}")
    if step < warmup_steps:
        factor *= (step + 1) / warmup_steps
    return factor


def plateau_drops(errors: Sequence[float], *, patience: int, most: int = 3) -> int:
    """Errors (percent) of the epochs so far -> how often the learning rate was divided by ten.

    It is divided when the least error is ``patience`` epochs old, and then the wait begins
    anew; at most ``most`` times, as Krizhevsky et al. (2012) did by hand, three times.
    """
    drops, best, age = 0, math.inf, 0
    for error in errors:
        if error < best:
            best, age = error, 0
        else:
            age += 1
        if age >= patience and drops < most:
            drops, age = drops + 1, 0
    return drops


def epochs_without_gain(errors: Sequence[float]) -> int:
    """Errors of the epochs so far -> how many epochs ago the least of them was (0: the last)."""
    return len(errors) - 1 - errors.index(min(errors)) if errors else 0


def image_side(epoch: int, epochs: int, side: int, start: int) -> int:
    """Epoch (from 0) of ``epochs`` -> side of the training images in pixels.

    Progressive resizing: with n = (side - start) / SIDE_STEP smaller sides, and T the first two
    thirds of the epochs (rounded down), it is side - SIDE_STEP ceil(n (T - epoch) / T). All
    smaller sides last about equally long; the last third has ``side``. ``start`` 0: no growth.
    """
    growing = 2 * epochs // 3
    if start == 0 or epoch >= growing:
        return side
    smaller = (side - start) // SIDE_STEP
    return side - SIDE_STEP * math.ceil(smaller * (growing - epoch) / growing)


def training_sides(spec: NetworkSpec) -> list[int]:
    """``input_size`` and the smaller sides, in steps of SIDE_STEP px, that the layers fit."""
    sides: list[int] = []
    try:
        for side in range(spec.input_size, 0, -SIDE_STEP):
            feature_sides(replace(spec, input_size=side))
            sides.append(side)
    except NetworkError:
        pass
    return sides
