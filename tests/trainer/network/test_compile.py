"""When the network is compiled, and that a compiled one trains the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer.device import Precision
from trainer.loader.loader import Batch
from trainer.network import compile as compiling
from trainer.network.alexnet import NetworkSpec, build
from trainer.network.blocks import builds_kernels
from trainer.network.compile import compiled
from trainer.training.optim import make_optimizer
from trainer.training.step import Stepper, StepSettings, train_epoch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SPEC = NetworkSpec(
    classes=3, input_size=67, widths=(8, 8, 8, 8, 8), pooled=1, hidden=(16, 16), init="he",
    input_scale=1 / 64, dropout=0.0,
)  # fmt: skip


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile makes its graphs, forward and backward, but no machine code of them."""
    whole = torch.compile

    def compile_graphs(model: nn.Module, *, mode: str, dynamic: bool) -> Any:
        assert mode == compiling.MODE
        return whole(model, backend="aot_eager", dynamic=dynamic, fullgraph=True)

    monkeypatch.setattr(torch, "compile", compile_graphs)


@pytest.mark.parametrize(
    ("choice", "device", "able", "is_compiled"),
    [
        ("auto", CPU, True, False),
        ("auto", CUDA, True, True),
        ("auto", CUDA, False, False),
        ("off", CUDA, True, False),
        ("on", CPU, False, True),
    ],
)
def test_what_is_compiled(
    graphs: None,
    monkeypatch: pytest.MonkeyPatch,
    choice: str,
    device: torch.device,
    able: bool,
    is_compiled: bool,
) -> None:
    monkeypatch.setattr(compiling, "builds_kernels", lambda: able)
    model = nn.Linear(2, 2)
    assert (compiled(model, device, choice) is not model) == is_compiled


def test_without_a_compiler_no_kernels_are_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert not builds_kernels()


def trained(choice: str) -> dict[str, torch.Tensor]:
    """The weights after an epoch of three batches, the last one smaller."""
    model = build(SPEC, 0).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, "sgd", lr=0.02, momentum=0.9, weight_decay=5e-4)
    precision = Precision(CPU, "float32")
    stepper = Stepper(model, optimizer, None, precision, 0.0, lambda _: 0.02, 0)
    generator = torch.Generator().manual_seed(2)
    batches = []
    for size in (4, 4, 2):
        images = 60 * torch.randn(size, 3, 67, 67, generator=generator)
        images = images.to(memory_format=torch.channels_last)
        batches.append(Batch(images, torch.arange(size) % 3, torch.arange(size)))
    learner = compiled(model, CPU, choice)
    settings = StepSettings(classes=3, label_smoothing=0.0, least_batch=1)
    train_epoch(learner, batches, stepper, precision, settings, CPU, lambda _: None)
    return model.state_dict()


def test_a_compiled_network_trains_the_weights_of_the_one_that_was_given(graphs: None) -> None:
    plain, made = trained("off"), trained("on")
    start = build(SPEC, 0).state_dict()
    assert list(made) == list(plain)
    for name, weight in plain.items():
        assert torch.allclose(made[name], weight, rtol=1e-4, atol=1e-6), name
    assert not torch.equal(made["features.0.weight"], start["features.0.weight"])
