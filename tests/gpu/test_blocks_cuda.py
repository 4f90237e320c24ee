"""Blocks, optimisers and the graph on a device, beside what they stand for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainer.device import Precision
from trainer.network import blocks
from trainer.network.alexnet import NETWORKS, NetworkSpec, build
from trainer.network.space_to_depth import space_to_depth
from trainer.training.optim import make_optimizer
from trainer.training.step import Average, Step, StepSettings

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
CUDA = torch.device("cuda")
ALLOWED = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
SHAPES = ((4, 96, 55, 55), (3, 256, 27, 27), (2, 8, 6, 3), (1, 384, 13, 13))
ORDERS = {
    "relu norm pool": blocks.Block(pools=True, alpha=1e-2, k=2.0),
    "norm pool relu": blocks.Block(pools=True, alpha=1e-2, k=2.0, first=False),
    "relu pool": blocks.Block(pools=True),
    "relu": blocks.Block(pools=False),
}


def definition(z: Tensor, bias: Tensor, words: str) -> Tensor:
    """The words in order, by PyTorch."""
    x = z + bias[:, None, None]
    for word in words.split():
        if word == "relu":
            x = functional.relu(x)
        elif word == "norm":
            x = functional.local_response_norm(x, 5, 5e-2, 0.75, 2.0)
        else:
            x = functional.max_pool2d(x, 3, 2)
    return x


def both_ways(run: Any, z: Tensor, bias: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The result and both gradients; the gradient that arrives is rounded to ``dtype``."""
    z, bias = z.detach().requires_grad_(), bias.detach().requires_grad_()
    y = run(z * 1, bias)
    generator = torch.Generator(CUDA).manual_seed(1)
    gradient = torch.randn(y.shape, generator=generator, device=CUDA).to(dtype)
    torch.autograd.backward(y, gradient.to(y.dtype))
    assert z.grad is not None
    assert bias.grad is not None
    return [y.detach(), z.grad, bias.grad]


@pytest.mark.parametrize("dtype", list(ALLOWED))
@pytest.mark.parametrize("words", list(ORDERS))
@pytest.mark.parametrize(
    "shape", [(4, 96, 55, 55), (3, 256, 27, 27), (2, 8, 6, 3), (1, 384, 13, 13)]
)
def test_a_block_equals_its_definition(
    shape: tuple[int, ...], words: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    z = (10 * torch.randn(shape, device=CUDA)).to(dtype).to(memory_format=torch.channels_last)
    bias = torch.randn(shape[1], device=CUDA).to(dtype)
    found = both_ways(ORDERS[words], z, bias, dtype)
    wanted = both_ways(lambda a, b: definition(a, b, words), z.double(), bias.double(), dtype)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype
        assert float((a.double() - b).abs().max() / b.abs().max()) <= ALLOWED[dtype]


@pytest.mark.parametrize("name", ["paper", "original-2012", "one-weird-trick", "torchvision"])
def test_a_network_of_blocks_equals_the_plain_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(NETWORKS[name], classes=5, hidden=(32, 32))
    model = build(spec, 0).to(CUDA, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    images = 60 * torch.randn(8, 3, spec.input_size, spec.input_size, device=CUDA)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with torch.inference_mode():
        fused = model(space_to_depth(images, spec.stem_padding))
        assert torch.allclose(model(images), fused, rtol=1e-4, atol=1e-5)
        plain = model.double()(images.double())  # float64 has no kernels
    assert torch.allclose(fused.double(), plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))


class Trained:
    """A small network's steps on fixed batches."""

    def __init__(self, *, graph: bool, kind: str = "sgd", side: int = 67) -> None:
        spec = NetworkSpec(
            classes=10, input_size=67, widths=(16, 32, 32, 32, 16), pooled=1, hidden=(64, 64),
            init="he", input_scale=1 / 64,
        )  # fmt: skip
        model, average = (
            build(spec, 0).to(CUDA, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for _ in range(2)
        )
        optimizer = make_optimizer(model, kind, momentum=0.9, weight_decay=5e-4)
        self.average = Average(model, average, 0.9)
        self.step = Step(
            model, optimizer, Precision(CUDA, "bfloat16"), StepSettings(clip_norm=5.0),
            self.average, graph=graph,
        )  # fmt: skip
        generator = torch.Generator(CUDA).manual_seed(0)
        images = 60 * torch.randn(4, 32, 3, side, side, generator=generator, device=CUDA)
        self.images = [space_to_depth(each).bfloat16() for each in images]
        self.labels = torch.randint(0, 10, (4, 32), generator=generator, device=CUDA)

    def losses(self, steps: int, rate: float, seed: int = 0) -> list[float]:
        found = []
        for number in range(steps):
            torch.manual_seed(seed + number)
            self.step.prepare(rate / (1 + number / 100), number)
            counted = self.step(self.images[number % 4], self.labels[number % 4])
            found.append(counted[0].clone() / 32)
        return [float(each) for each in found]


@pytest.mark.parametrize(("kind", "rate"), [("sgd", 0.02), ("adamw", 1e-3)])
def test_the_graph_s_steps_are_the_eager_ones(kind: str, rate: float) -> None:
    eager, graph = Trained(graph=False, kind=kind), Trained(graph=True, kind=kind)
    first, second = eager.losses(20, rate), graph.losses(20, rate)
    assert graph.step.graph is not None
    assert graph.step.graph._graph is not None
    # Sums of cuDNN's weight gradients may come in another order.
    assert first == pytest.approx(second, abs=0.02)
    other = Trained(graph=True, kind=kind).losses(20, rate, seed=50)
    assert other != second
    for a, b in zip(
        eager.average.average.parameters(), graph.average.average.parameters(), strict=True
    ):
        assert torch.allclose(a, b, atol=0.02)


def test_two_hundred_steps_with_and_without_blocks_learn_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fused = Trained(graph=True).losses(200, 0.02)
    monkeypatch.setattr(blocks, "TRITON", False)
    plain = Trained(graph=False).losses(200, 0.02)
    assert fused[:10] == pytest.approx(plain[:10], abs=0.1)
    tails = [sum(losses[-20:]) / 20 for losses in (fused, plain)]
    assert tails[0] < 0.85 * fused[0]
    assert tails[0] == pytest.approx(tails[1], abs=0.3)


def test_a_smaller_last_batch_runs_outside_the_graph() -> None:
    trained = Trained(graph=True)
    trained.losses(6, 0.01)
    trained.step.prepare(0.01, 6)
    counted = trained.step(trained.images[0][:5], trained.labels[0][:5])
    assert torch.isfinite(counted).all()
    before = float(counted[0])
    trained.losses(1, 0.01)
    assert float(counted[0]) == before  # the graph writes elsewhere


def test_images_of_another_side_are_captured_again() -> None:
    small, large = Trained(graph=True), Trained(graph=True, side=83)
    eager = Trained(graph=False)
    for trained in (small, eager):
        trained.losses(6, 0.01)
        trained.images = large.images
    assert small.losses(10, 0.01) == pytest.approx(eager.losses(10, 0.01), abs=0.05)
    assert small.step.graph is not None
    assert small.step.graph._graph is not None
    assert small.step.graph._images.shape == large.images[0].shape
