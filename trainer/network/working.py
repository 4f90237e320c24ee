"""The network that a step computes with: weights in half precision beside float32 masters."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def working_copy(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """``model`` with the weights of its convolutions and dense layers in ``dtype``.

    Everything else (normalisations, their statistics) is ``model``'s own. None: ``model``.
    """
    if dtype is None:
        return model
    memo: dict[int, object] = {id(buffer): buffer for buffer in model.buffers()}
    for module in model.modules():
        half = isinstance(module, nn.Conv2d | nn.Linear)
        for weight in module.parameters(recurse=False):
            mine = nn.Parameter(weight.detach().to(dtype), weight.requires_grad)
            memo[id(weight)] = mine if half else weight
    return copy.deepcopy(model, memo)


def pairs(model: nn.Module, working: nn.Module) -> dict[Tensor, Tensor]:
    """Master -> working weight, of every parameter."""
    found: dict[Tensor, Tensor] = {}
    found.update(zip(model.parameters(), working.parameters(), strict=True))
    return found
