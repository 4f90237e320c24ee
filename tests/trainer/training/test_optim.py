"""LARS against its definition, in float64 and by itself; the rule that scales a learning rate."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from imagenet_prep.core.errors import UsageError
from tests.kit.short_run import SPEC
from trainer.config.run_config import RunConfig, with_options
from trainer.device import choose_precision
from trainer.network.alexnet import build
from trainer.training.optim import LARS, make_optimizer
from trainer.training.schedule import peak_rate

LR, MOMENTUM, DECAY, TRUST = 3.0, 0.9, 5e-4, 2e-3


def defined(
    weight: NDArray[np.float64], slopes: list[NDArray[np.float64]], *, adapt: bool
) -> NDArray[np.float64]:
    """You, Gitman, Ginsburg (2017), algorithm 1, one weight after all its steps.

    Without ``adapt``: SGD with momentum, without decay.
    """
    velocity = np.zeros_like(weight)
    for slope in slopes:
        local, decay = 1.0, 0.0
        if adapt:
            decay = DECAY
            length = np.sqrt((weight**2).sum())
            if length > 0:  # our addition: what begins as zeros has no length to go by
                local = TRUST * length / (np.sqrt((slope**2).sum()) + decay * length)
        velocity = MOMENTUM * velocity + LR * local * (slope + decay * weight)
        weight = weight - velocity
    return weight


def test_lars_is_the_published_algorithm_on_every_weight_of_a_network() -> None:
    model = build(dataclasses.replace(SPEC, classes=3), 1)
    optimizer = make_optimizer(
        model, "lars", lr=LR, momentum=MOMENTUM, weight_decay=DECAY, trust=TRUST
    )
    generator = torch.Generator().manual_seed(3)
    begun = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    slopes: dict[str, list[NDArray[np.float64]]] = {name: [] for name in begun}
    for _ in range(4):
        for name, parameter in model.named_parameters():
            parameter.grad = 0.01 * torch.randn(parameter.shape, generator=generator)
            slopes[name].append(parameter.grad.double().numpy().copy())
        optimizer.step()
    plain = 0
    for name, parameter in model.named_parameters():
        alone = parameter.ndim == 1  # biases and what normalisation learns
        plain += alone
        wanted = defined(begun[name], slopes[name], adapt=not alone)
        assert np.allclose(parameter.detach().numpy(), wanted, rtol=2e-4, atol=2e-6), name
        assert not np.allclose(parameter.detach().numpy(), begun[name], atol=1e-5), name
    assert plain >= 16  # eight biases, and two vectors for each of the normalisations


def test_a_step_of_lars_does_not_depend_on_the_size_of_the_gradients() -> None:
    moved = []
    for factor in (1.0, 1000.0):
        weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
        optimizer = LARS([{"params": [weight]}], lr=1.0, momentum=0.0, trust=0.01)
        weight.grad = factor * torch.tensor([[1.0, 0.0]])
        optimizer.step()
        moved.append(weight.tolist())
    # A hundredth of the weight's length, 5.
    assert moved[0][0] == pytest.approx([2.95, 4.0])
    assert moved[0] == moved[1]


@pytest.mark.parametrize(
    ("lr", "lr_per", "total", "wanted"),
    [(0.1, 256, 8192, 3.2), (0.1, 256, 256, 0.1), (0.1, 256, 64, 0.025), (0.1, 0, 8192, 0.1)],
)
def test_a_learning_rate_scales_with_the_pictures_of_a_step(
    lr: float, lr_per: int, total: int, wanted: float
) -> None:
    assert peak_rate(lr, lr_per, total) == pytest.approx(wanted)


def test_the_trust_of_the_configuration_reaches_lars() -> None:
    config = with_options(RunConfig(), {"optimizer": "lars", "trust": 0.02})
    optimizer = make_optimizer(
        nn.Linear(2, 2), config.optimizer, lr=config.lr, momentum=config.momentum,
        weight_decay=config.weight_decay, trust=config.trust,
    )  # fmt: skip
    assert [(group["trust"], group["adapt"]) for group in optimizer.param_groups] == [
        *((0.02, True), (0.02, False))
    ]


def test_float16_on_a_cpu_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="--precision float16 needs a CUDA device"):
        choose_precision("float16", torch.device("cpu"))
    assert choose_precision("float16", torch.device("cuda")) == "float16"
