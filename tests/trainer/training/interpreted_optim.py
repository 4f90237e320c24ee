"""The optimisers' CUDA kernel on a CPU beside the CPU's, in a process that interprets Triton.

Prints one JSON list: how far masters, moments, working weights and averages are apart.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import torch

from trainer.training import optim_cpu, optim_triton

N = 4099  # more than one block, and not whole


def tensors(half: bool, adam: bool) -> list[Any]:
    """Master, gradient, working weights, average, moment, square."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if half else torch.float32
    master, gradient, average, moment = (torch.randn(N, generator=generator) for _ in range(4))
    square = torch.rand(N, generator=generator) if adam else None
    work = master.to(dtype) if half else None
    return [master, gradient.to(dtype), work, average, moment, square]


def case(half: bool, kind: str) -> dict[str, Any]:
    """One step of each."""
    adam = kind != "sgd"
    numbers = [0.02, 0.5, 0.25, 0.3, 0.1, 0.0]
    settings = (2.0, 0.1, 0.9, 0.999 if adam else 0.0, 1e-8)
    cpu, cuda = tensors(half, adam), tensors(half, adam)
    movers: list[Any] = [optim_cpu.move, optim_triton.move]
    movers[0](*cpu, numbers, settings, decoupled=kind == "adamw")
    given = torch.tensor(numbers)
    movers[1](*cuda, given, settings, decoupled=kind == "adamw")
    pairs = [(a, b) for a, b in zip(cpu, cuda, strict=True) if a is not None]
    off = max(float((a - b).abs().max()) for a, b in pairs if a.dtype == torch.float32)
    # The interpreter cuts bfloat16 off where a GPU rounds.
    if half and float((cpu[2].float() - cuda[2].float()).abs().max()) > 2**-5:
        off = float("inf")
    return {"half": half, "kind": kind, "apart": off}


if __name__ == "__main__":
    found = [case(*each) for each in itertools.product((False, True), ("sgd", "adam", "adamw"))]
    print(json.dumps(found))  # noqa: T201
