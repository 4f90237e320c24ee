"""Step -> learning-rate factor; pure functions of the step."""

from __future__ import annotations

import math


def learning_rate_factor(
    schedule: str,
    step: int,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    epoch: int = 0,
    drop_epochs: int = 30,
) -> float:
    """What the base learning rate is multiplied with at ``step`` (counted from 0).

    ``linear`` falls to 0 over ``total_steps``, ``cosine`` along half a cosine,
    ``step`` divides by ten after every ``drop_epochs`` epochs, ``constant`` stays.
    The first ``warmup_steps`` steps rise linearly to that. ValueError for another name.
    """
    progress = min(step / max(total_steps, 1), 1.0)
    if schedule == "linear":
        factor = 1.0 - progress
    elif schedule == "cosine":
        factor = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif schedule == "step":
        factor = 0.1 ** (epoch // drop_epochs)
    elif schedule == "constant":
        factor = 1.0
    else:
        raise ValueError(f"no schedule is called {schedule!r}")
    if step < warmup_steps:
        factor *= (step + 1) / warmup_steps
    return factor
