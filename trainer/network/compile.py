"""Whether this machine can make kernels for a GPU, and the network made of them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch
from torch import nn

MODE = "max-autotune-no-cudagraphs"
"""How ``torch.compile`` chooses kernels: it tries them, for a minute or two at the start."""


def builds_kernels() -> bool:
    """Whether Triton can run here: it is installed, and there are a C compiler and Python's
    headers, with which it builds what launches its kernels."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return bool(importlib.util.find_spec("triton") and compiler and header.exists())


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
