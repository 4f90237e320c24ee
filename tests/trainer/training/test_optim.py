"""Optimisers beside torch's, on a CPU and through Triton's interpreter; their state."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from imagenet_prep.core.errors import UsageError
from tests.kit.command import python
from trainer.device import choose_precision
from trainer.training.optim import Optimizer, make_optimizer

LR, DECAY = 0.02, 0.1


def library(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    """What torch has under that name, one group for all."""
    kinds: dict[str, Any] = {
        "sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW
    }  # fmt: skip
    more = {"momentum": 0.9} if kind == "sgd" else {}
    made: torch.optim.Optimizer = kinds[kind](model.parameters(), lr=LR, weight_decay=DECAY, **more)
    return made


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(7, 3))
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def ours(kind: str, model: nn.Module) -> Optimizer:
    return make_optimizer(model, kind, momentum=0.9, weight_decay=DECAY, decay_biases=True)


def steps(model: nn.Module, step: Any, count: int = 4, first: int = 0) -> None:
    """Steps along gradients that are functions of their number."""
    for number in range(first, first + count):
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            # As autograd may hand them over: channels first.
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        step()


def mover(optimizer: Optimizer) -> Any:
    def step() -> None:
        optimizer.prepare(LR)
        optimizer.step()

    return step


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_steps_are_those_of_torch(kind: str) -> None:
    mine, theirs = network(), network()
    steps(mine, mover(ours(kind, mine)))
    steps(theirs, library(kind, theirs).step)
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_a_state_of_torch_s_optimiser_goes_on_here_and_back(kind: str) -> None:
    mine, theirs = network(), network()
    before = library(kind, theirs)
    steps(theirs, before.step)
    mine.load_state_dict(theirs.state_dict())
    optimizer = make_optimizer(mine, kind, momentum=0.9, weight_decay=DECAY, decay_biases=True)
    groups = [dict(group) for group in optimizer.param_groups]
    # One group there, two here, in another order.
    order = [p for group in groups for p in group["params"]]
    places = {id(p): i for i, p in enumerate(mine.parameters())}
    state = copy.deepcopy(before.state_dict()["state"])  # as from a file
    stored = optimizer.state_dict()
    stored["state"] = {i: state[places[id(p)]] for i, p in enumerate(order)}
    optimizer.load_state_dict(stored)
    steps(mine, mover(optimizer), first=4)
    steps(theirs, before.step, first=4)
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    names = {name for one in optimizer.state_dict()["state"].values() for name in one}
    assert names == {name for one in state.values() for name in one}


def test_working_weights_and_averages_follow_in_the_same_step() -> None:
    model = network()
    optimizer = ours("adamw", model)
    works: dict[Any, Any] = {
        p: nn.Parameter(p.detach().bfloat16()) if p.ndim > 1 else p for p in model.parameters()
    }
    averages: dict[Any, Any] = {p: p.detach().clone() for p in model.parameters()}
    optimizer.follow(works, averages)
    before = {p: p.detach().clone() for p in model.parameters()}
    for work in works.values():
        work.grad = torch.ones_like(work)
    optimizer.prepare(LR, share=0.25)
    optimizer.step()
    for master, work in works.items():
        assert not torch.equal(master, before[master])
        assert torch.equal(work, master.to(work.dtype))
        expected = before[master] + 0.25 * (master.detach() - before[master])
        assert torch.allclose(averages[master], expected, atol=1e-6)
    optimizer.zero_grad()
    assert all(work.grad is None for work in works.values())
    with torch.no_grad():
        next(model.parameters()).fill_(3.0)
    optimizer.refresh()
    assert float(works[next(model.parameters())].detach().float().min()) == 3.0


def test_an_overflow_leaves_the_step_out() -> None:
    model = network()
    optimizer = ours("sgd", model)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.found_inf = torch.ones(1)  # type: ignore[attr-defined]
    steps(model, mover(optimizer), 1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_backbone_and_biases_have_rates_of_their_own() -> None:
    model = network()
    optimizer = make_optimizer(
        model, "sgd", momentum=0.0, weight_decay=0.0, bias_rate=2.0, backbone_rate=0.5
    )
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.prepare(1.0)
    optimizer.step()
    after = [p.detach() for p in model.parameters()]
    moved = [float((b - a).mean()) for a, b in zip(after, before, strict=True)]
    assert moved == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0, 2.0], rel=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")
def test_the_cuda_kernel_moves_as_the_cpu_s(tmp_path: Path) -> None:
    program = Path(__file__).with_name("interpreted_optim.py")
    found = json.loads(python(program, TRITON_INTERPRET="1", TRITON_CACHE_DIR=str(tmp_path)))
    assert len(found) == 6
    for each in found:
        assert each["apart"] < 1e-6, each


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError) as error:
        make_optimizer(nn.Linear(2, 2), "lars", momentum=0.9, weight_decay=0.0)
    assert error.value.code == "config.no_optimizer"


def test_float16_needs_cuda() -> None:
    with pytest.raises(UsageError, match="--precision float16 needs a CUDA device"):
        choose_precision("float16", torch.device("cpu"))
    assert choose_precision("float16", torch.device("cuda")) == "float16"
