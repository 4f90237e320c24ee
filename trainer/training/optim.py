"""SGD, Adam and AdamW over float32 masters, with working weights that follow in the same pass."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from imagenet_prep.core.errors import UsageError

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


class Optimizer(torch.optim.Optimizer):
    """Moves float32 parameters, and what follows them, by one kernel for each.

    ``works`` are the weights that the step computes with, by their master, and have the
    gradients; ``averages`` follow the masters. The state has the names of torch's optimisers.
    A step is ``prepare`` on the host, then ``move``, which a CUDA graph may hold.
    """

    # Without torch's wrapper, which keeps these from a compiler that is not used here: it would
    # import that, which takes a second and a half before the first step.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    # GradScaler then hands over whether gradients overflowed, and does not wait for it.
    _step_supports_amp_scaling = True

    def __init__(self, groups: Iterable[dict[str, Any]], kind: str, momentum: float) -> None:
        super().__init__(list(groups), {"lr": 0.0, "weight_decay": 0.0, "lr_factor": 1.0})
        self.kind, self.momentum = kind, momentum
        self.works: Mapping[Tensor, Tensor] = {}
        self.averages: Mapping[Tensor, Tensor] = {}
        device = next(p for group in self.param_groups for p in group["params"]).device
        # Rate, coefficient of the gradients, the average's share, Adam's two corrections, skip.
        self.numbers = torch.zeros(6, device=device)
        self._known = [math.nan] * 6

    def follow(self, works: Mapping[Tensor, Tensor], averages: Mapping[Tensor, Tensor]) -> None:
        """Has working weights (of which a master may be its own) and averages follow."""
        self.works = {master: work for master, work in works.items() if work is not master}
        self.averages = averages

    @torch.no_grad()
    def refresh(self) -> None:
        """Working weights <- masters, where those were written by others."""
        for master, work in self.works.items():
            work.copy_(master)

    def prepare(self, rate: float, share: float = 0.0) -> None:
        """The step's numbers: the learning rate, and the part of the way that averages go."""
        numbers = [rate, 1.0, share, 1.0, 1.0, 0.0]
        if self.kind != "sgd":
            steps = 0.0
            for state in self._states():
                state["step"] += 1.0
                steps = max(steps, float(state["step"]))
            beta1, beta2 = _BETAS
            numbers[3:5] = 1 - beta1**steps, math.sqrt(1 - beta2**steps)
        for index, value in enumerate(numbers):
            if value != self._known[index]:  # in a launch, not as a copy that waits
                self.numbers[index].fill_(value)
        self._known = numbers

    @torch.no_grad()
    def clip(self, norm: float) -> None:
        """Shortens the gradients of this step to that norm, all together, if they are longer."""
        gradients = [gradient for _, _, gradient in self._moving()]
        norms = torch._foreach_norm(gradients, 2, torch.float32)
        total = torch.linalg.vector_norm(torch.stack(norms))
        self.numbers[1].copy_((norm / (total + 1e-6)).clamp(max=1.0))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Moves along the gradients; GradScaler calls this."""
        del closure
        found_inf = getattr(self, "found_inf", None)  # GradScaler's, for the time of this call
        if found_inf is not None:
            self.numbers[5].copy_(found_inf.squeeze())
        self.move()

    @torch.no_grad()
    def move(self) -> None:
        """Masters, moments, working weights and averages, in one pass each."""
        from trainer.training import optim_cpu

        cuda = self.numbers.is_cuda
        mover: Any = optim_cpu
        numbers: Any = self.numbers if cuda else self.numbers.tolist()
        if cuda:
            from trainer.training import optim_triton as mover
        elif numbers[5]:
            return
        sgd = self.kind == "sgd"
        betas = (self.momentum, 0.0) if sgd else _BETAS
        for group, master, gradient in self._moving():
            state = self._state_of(master)
            moment = state["momentum_buffer"] if sgd else state["exp_avg"]
            settings = (group["lr_factor"], group["weight_decay"], *betas, _EPSILON)
            mover.move(
                master, _alike(gradient, master), self.works.get(master),
                self.averages.get(master), moment, None if sgd else state["exp_avg_sq"], numbers,
                settings, decoupled=self.kind == "adamw",
            )  # fmt: skip

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, those of the working weights too."""
        inspect.unwrap(torch.optim.Optimizer.zero_grad)(self, set_to_none)
        for work in self.works.values():
            work.grad = None

    def _moving(self) -> Iterable[tuple[dict[str, Any], Tensor, Tensor]]:
        """(group, master, gradient) of what has one."""
        for group in self.param_groups:
            for master in group["params"]:
                gradient = self.works.get(master, master).grad
                if gradient is not None:
                    yield group, master, gradient

    def _states(self) -> Iterable[dict[str, Any]]:
        for group in self.param_groups:
            yield from (self._state_of(master) for master in group["params"])

    def _state_of(self, master: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[master]
        names = ["momentum_buffer"] if self.kind == "sgd" else ["exp_avg", "exp_avg_sq"]
        for name in names:
            if state.get(name) is None:
                state[name] = torch.zeros_like(master)
            state[name] = _alike(state[name], master)
        if self.kind != "sgd":
            state["step"] = torch.as_tensor(state.get("step", 0.0)).float().cpu()
        return state


def _alike(tensor: Tensor, master: Tensor) -> Tensor:
    """``tensor``, lying in memory as ``master`` does."""
    if tensor.stride() == master.stride():
        return tensor
    return torch.empty_like(master, dtype=tensor.dtype).copy_(tensor)


def make_optimizer(
    model: nn.Module,
    name: str,
    *,
    momentum: float,
    weight_decay: float,
    bias_rate: float = 1.0,
    decay_biases: bool = False,
    backbone_rate: float = 1.0,
) -> Optimizer:
    """SGD with momentum, Adam or AdamW over a model's trainable parameters.

    Biases and normalisation (one dimension) learn ``bias_rate`` times as fast and decay only
    with ``decay_biases``; the 2012 code has 2 and False, plain PyTorch scripts 1 and True. All
    layers but the last learn ``backbone_rate`` times as fast. UsageError for another name.
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
    if name not in ("sgd", "adam", "adamw"):
        raise UsageError("config.no_optimizer", f"optimizer {name!r}: expected adam, adamw or sgd")
    return Optimizer(groups, name, momentum)
