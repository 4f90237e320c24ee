"""The weight gradient on CPUs with AVX512-BF16 against its definition in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from trainer.network import weight_gradient
from trainer.network.alexnet import build, network_spec

needs_instruction = pytest.mark.skipif(
    not weight_gradient.multiplies_pairs(), reason="no AVX512-BF16, or AMX too"
)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def whole(*shape: int) -> Tensor:
    """Small whole numbers, which bfloat16 holds and float32 adds up exactly."""
    return torch.randint(-4, 5, shape).bfloat16().to(memory_format=torch.channels_last)


# Batch, inputs, outputs, side and padding of the filter, height, width.
SHAPES = [
    (1, 64, 1, 3, 1, 5, 7),
    (3, 64, 13, 3, 1, 13, 13),
    (4, 7, 128, 5, 2, 9, 6),
    (2, 96, 64, 5, 2, 27, 27),
    (5, 128, 64, 3, 0, 4, 5),
    (2, 64, 6, 5, 2, 2, 1),
    (2, 3, 64, 2, 1, 3, 4),
]


@needs_instruction
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_definition_with_any_number_of_threads(
    shape: tuple[int, ...], threads: None
) -> None:
    images, inputs, outputs, side, padding, height, width = shape
    x = whole(images, inputs, height, width)
    high, wide = height + 2 * padding - side + 1, width + 2 * padding - side + 1
    gradient = whole(images, outputs, high, wide)
    weight = torch.zeros(outputs, inputs, side, side).double().requires_grad_()
    y = nn.functional.conv2d(x.double(), weight, padding=padding)
    (expected,) = torch.autograd.grad(y, weight, gradient.double())
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found = weight_gradient.weight_gradient(x, gradient, side, padding)
        assert found.dtype == torch.float32
        assert torch.equal(found.double(), expected)


@needs_instruction
def test_all_gradients_of_a_convolution_are_those_of_the_layer() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 20, 3, padding=1).bfloat16().to(memory_format=torch.channels_last)
    x = torch.randn(3, 64, 6, 5).bfloat16().to(memory_format=torch.channels_last)
    x.requires_grad_()
    assert layer.bias is not None
    assert weight_gradient.fits(x, layer)
    # In the other layout, as what follows may hand it back.
    gradient = torch.randn(3, 20, 6, 5).bfloat16()
    wanted = [x, layer.weight, layer.bias]
    y = weight_gradient.convolve(x, layer.weight, layer.bias, 1)
    found = torch.autograd.grad(y, wanted, gradient)
    exact = [t.detach().double().requires_grad_() for t in wanted]
    z = nn.functional.conv2d(exact[0], exact[1], exact[2], padding=1)
    assert torch.equal(y, layer(x))
    for mine, theirs, like in zip(
        found, torch.autograd.grad(z, exact, gradient.double()), wanted, strict=True
    ):
        assert mine.dtype == torch.bfloat16
        assert mine.stride() == like.stride()
        assert torch.allclose(mine.double(), theirs, rtol=2**-8, atol=1e-3)


@needs_instruction
def test_not_a_number_reaches_the_filters_that_meet_it() -> None:
    x, gradient = whole(3, 64, 5, 5), whole(3, 8, 5, 5)
    x[2, 9, 0, 0] = float("nan")
    found = weight_gradient.weight_gradient(x, gradient, 3, 1)
    expected = torch.zeros(8, 64, 3, 3).bool()
    expected[:, 9, :2, :2] = True  # the corner meets no filter's last row or column
    assert torch.equal(found.isnan(), expected)


def test_other_batches_and_layers_go_to_the_library() -> None:
    last = torch.channels_last
    layer = nn.Conv2d(64, 64, 3, padding=1).bfloat16()
    x = torch.zeros(2, 64, 5, 5).bfloat16().to(memory_format=last)
    assert weight_gradient.fits(x, layer) == weight_gradient.multiplies_pairs()
    assert not weight_gradient.fits(x.contiguous(), layer)
    assert not weight_gradient.fits(x.float(), layer.float())
    assert not weight_gradient.fits(x[:0], layer.bfloat16())
    for other in (
        nn.Conv2d(64, 64, 3, stride=2), nn.Conv2d(64, 64, 3, groups=2), nn.Conv2d(64, 64, 1),
        nn.Conv2d(64, 64, 3, dilation=2), nn.Conv2d(64, 64, (3, 5)), nn.Conv2d(63, 63, 3),
        nn.Conv2d(64, 64, 3, padding="same"), nn.Conv2d(64, 64, 3, padding_mode="circular"),
    ):  # fmt: skip
        assert not weight_gradient.fits(x, other.bfloat16())
    with torch.no_grad():
        assert not weight_gradient.fits(x, layer)


@needs_instruction
@pytest.mark.parametrize("name", ["torchvision", "compact"])
def test_a_network_s_gradients_are_those_of_the_library(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradients() -> list[Tensor]:
        torch.manual_seed(0)
        spec = network_spec(name, classes=4)
        model = build(spec, 0).bfloat16().to(memory_format=torch.channels_last)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.float()
        for head in model.classifier:
            if isinstance(head, nn.Linear) and not head.weight.any():
                nn.init.normal_(head.weight, std=0.1)
        images = torch.randn(4, 3, spec.input_size, spec.input_size)
        model(50 * images.to(memory_format=torch.channels_last)).float().square().sum().backward()
        return [p.grad for p in model.features.parameters() if p.grad is not None]

    mine = gradients()
    assert len(mine) >= 10
    monkeypatch.setattr(weight_gradient, "fits", lambda *_: False)
    for a, b in zip(mine, gradients(), strict=True):
        apart = (a.double() - b.double()).norm() / b.double().norm()
        assert apart < 0.02
