"""Blocks on the CPU against their definition in float64, and networks made of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.kit.plain_network import FAITHFUL, Margins, exact, with_last_layer
from trainer.network import alexnet, blocks

ALPHA, K = 1e-2, 2.0
ORDERS = {
    "relu norm pool": blocks.Block(pools=True, alpha=ALPHA, k=K),
    "norm pool relu": blocks.Block(pools=True, alpha=ALPHA, k=K, first=False),
    "relu pool": blocks.Block(pools=True),
    "relu": blocks.Block(pools=False),
}
# Sides that are odd, even and the least; one channel, odd numbers of them, the widest layer.
SHAPES = [(2, 8, 3, 3), (1, 24, 7, 6), (3, 1, 4, 5), (2, 37, 5, 9), (1, 96, 55, 55), (1, 384, 5, 5)]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def definition(z: Tensor, bias: Tensor, words: str) -> Tensor:
    """The words in order, by PyTorch."""
    x = z + bias[:, None, None]
    for word in words.split():
        if word == "relu":
            x = functional.relu(x)
        elif word == "norm":
            x = functional.local_response_norm(x, 5, 5 * ALPHA, 0.75, K)
        else:
            x = functional.max_pool2d(x, 3, 2)
    return x


def both_ways(run: Any, z: Tensor, bias: Tensor) -> list[Tensor]:
    """The result and both gradients of ``run(z, bias)``; ``z`` is copied, blocks may change it."""
    z, bias = z.detach().requires_grad_(), bias.detach().requires_grad_()
    y = run(z * 1, bias)
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    torch.autograd.backward(y, gradient.bfloat16().to(y.dtype))
    assert z.grad is not None
    assert bias.grad is not None
    return [y.detach(), z.grad, bias.grad]


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, in units of the largest value."""
    return float((found.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def sums(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    z = 10 * torch.randn(shape, generator=generator)
    return z.to(dtype).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("words", list(ORDERS))
def test_blocks_equal_the_definition_both_ways(words: str, dtype: torch.dtype) -> None:
    allowed = 2e-6 if dtype == torch.float32 else 2**-8
    for shape in SHAPES:
        z, bias = sums(shape, dtype), torch.linspace(-2, 2, shape[1]).to(dtype)
        found = both_ways(ORDERS[words], z, bias)
        wanted = both_ways(lambda a, b: definition(a, b, words), z.double(), bias.double())
        for mine, theirs in zip(found, wanted, strict=True):
            assert mine.dtype == dtype
            assert mine.dim() < 4 or mine.is_contiguous(memory_format=torch.channels_last)
            assert apart(mine, theirs) < allowed, shape


@pytest.mark.parametrize("words", list(ORDERS))
def test_ties_and_zeros_go_where_the_definition_sends_them(words: str) -> None:
    generator = torch.Generator().manual_seed(0)
    # Small whole numbers: most windows have their largest value several times. LRN's sums differ
    # between equal values, so that its roundings could decide: there all channels are equal.
    one = torch.randint(-1, 2, (2, 1, 9, 8), generator=generator).float()
    for z in (one.repeat(1, 16, 1, 1), 0 * one):
        z = z.to(memory_format=torch.channels_last)
        bias = torch.zeros(z.shape[1])
        found = both_ways(ORDERS[words], z, bias)
        wanted = both_ways(lambda a, b: definition(a, b, words), z.double(), bias.double())
        assert max(apart(a, b) for a, b in zip(found, wanted, strict=True)) < 2e-6


@pytest.mark.parametrize(
    ("words", "value"), list(itertools.product(ORDERS, (float("nan"), float("inf"), -float("inf"))))
)
def test_nan_and_infinity_reach_what_they_reach_in_the_definition(words: str, value: float) -> None:
    z = torch.ones(1, 24, 5, 5).to(memory_format=torch.channels_last)
    z[0, 11, 2, 3] = value
    wanted = definition(z.double(), torch.zeros(24).double(), words)
    found = ORDERS[words](z.clone(memory_format=torch.preserve_format), torch.zeros(24)).double()
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("words", list(ORDERS))
def test_any_number_of_threads_gives_the_same_bits(words: str, threads: None) -> None:
    z, bias = sums((5, 24, 17, 16), torch.float32), torch.linspace(-1, 1, 24)
    found = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append(both_ways(ORDERS[words], z, bias))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_batches_that_blocks_take() -> None:
    x = torch.zeros(2, 3, 9, 9).to(memory_format=torch.channels_last)
    assert blocks.takes(x, 7)
    assert blocks.takes(x.bfloat16(), 7)
    for other in (x.contiguous(), x.double(), x.half(), x[:0], x.to("meta")):
        assert not blocks.takes(other, 8)


@pytest.mark.parametrize("name", FAITHFUL)
def test_networks_of_blocks_equal_their_definition(name: str) -> None:
    spec = replace(
        alexnet.NETWORKS[name], classes=5, input_size=67, pooled=1, widths=(12, 24, 16, 18, 8),
        hidden=(16, 16), channels=3,
    )  # fmt: skip
    weight = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    for seed in range(50):
        model, margins = with_last_layer(spec, seed), Margins()
        images = 60 * torch.randn(2, 3, 67, 67, generator=torch.Generator().manual_seed(seed))
        wanted, gradients = exact(spec, model, images, weight, margins)
        if margins.least > 2e-5:
            break
    assert margins.least > 2e-5
    model.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    assert sum(stage.block is not None for stage in model._stages) >= 4
    logits = model(images)
    torch.autograd.backward((logits * weight).sum())
    assert apart(logits.detach(), wanted) < 1e-5
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert apart(parameter.grad, gradients[key]) < 1e-4, key
