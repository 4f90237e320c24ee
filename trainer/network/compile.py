"""The network made of kernels for a GPU."""

from __future__ import annotations

import torch
from torch import nn

from trainer.network.blocks import builds_kernels

MODE = "max-autotune-no-cudagraphs"
"""How ``torch.compile`` chooses kernels: it tries them, for a minute or two at the start."""


def compiled(model: nn.Module, device: torch.device, choice: str) -> nn.Module:
    """What to train ``model`` through, with ``model``'s own weights: itself (``off``), or
    compiled (``on``). ``auto`` is on for CUDA where kernels can be built, off elsewhere."""
    if choice == "auto":
        choice = "on" if device.type == "cuda" and builds_kernels() else "off"
    if choice == "off":
        return model
    # A shape is compiled for itself: an epoch has two, with its smaller last batch.
    made = torch.compile(model, mode=MODE, dynamic=False)
    assert isinstance(made, nn.Module)
    return made
