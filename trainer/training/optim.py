"""Optimisers: a model and a recipe -> parameter groups -> torch's, or LARS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imagenet_prep.core.errors import UsageError


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose steps are scaled by layer (You, Gitman, Ginsburg 2017).

    For a weight w with gradient g: v <- μ v + lr · η ‖w‖ / (‖g‖ + λ ‖w‖) · (g + λ w),
    w <- w - v, with trust coefficient η and weight decay λ. Groups with ``adapt`` false
    (biases, normalisation) take plain SGD steps. Nothing waits for the device.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], *, lr: float, momentum: float, trust: float = 1e-3
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0}
        super().__init__(list(groups), defaults | {"adapt": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; ``closure`` is called first where there is one."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, group)
        return loss

    def _move(self, weight: Tensor, group: dict[str, Any]) -> None:
        decay = group["weight_decay"]
        update = weight.grad.add(weight, alpha=decay) if decay else weight.grad.clone()  # type: ignore[union-attr]
        if group["adapt"]:
            length, slope = weight.norm(), weight.grad.norm()  # type: ignore[union-attr]
            rate = group["trust"] * length / (slope + decay * length)
            # A weight or a gradient of zeros has no direction to scale: a plain step.
            rate = torch.where((length > 0) & (slope > 0), rate, torch.ones_like(rate))
            update.mul_(rate)
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        velocity = state["velocity"].mul_(group["momentum"]).add_(update, alpha=group["lr"])
        weight.sub_(velocity)


def make_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    bias_rate: float = 1.0,
    decay_biases: bool = False,
    trust: float = 1e-3,
    backbone_rate: float = 1.0,
) -> torch.optim.Optimizer:
    """SGD with momentum, Adam, AdamW or LARS over a model's trainable parameters.

    Biases and normalisation (one dimension) learn ``bias_rate`` times as fast and decay only
    with ``decay_biases``; the 2012 code has 2 and False, plain PyTorch scripts 1 and True. All
    layers but the last learn ``backbone_rate`` times as fast. ``trust`` is LARS's coefficient.
    UsageError for another name.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    last = {id(p) for p in list(model.modules())[-1].parameters()}
    parts = [(trained, 1.0)]
    if backbone_rate != 1.0:
        parts = [
            ([p for p in trained if id(p) not in last], backbone_rate),
            ([p for p in trained if id(p) in last], 1.0),
        ]
    groups = [
        {
            "params": [p for p in some if (p.ndim > 1) == weights],
            "weight_decay": weight_decay if weights or decay_biases else 0.0,
            "lr_factor": rate * (1.0 if weights else bias_rate),
        }
        for some, rate in parts
        for weights in (True, False)
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    if name == "adam":
        return torch.optim.Adam(groups, lr=lr, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=True)
    if name == "lars":
        for group in groups[1::2]:
            group["adapt"] = False
        return LARS(groups, lr=lr, momentum=momentum, trust=trust)
    raise UsageError(f"no optimizer is called {name!r}; there are adam, adamw, lars and sgd")
