"""Local response normalisation against a plain definition, PyTorch's layer and gradcheck."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.lrn import LocalResponseNorm, SpatialResponseNorm


def plain(a: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """The paper's sum, written as loops over channels."""
    channels = a.shape[1]
    out = torch.empty_like(a)
    for i in range(channels):
        low, high = max(0, i - size // 2), min(channels - 1, i + size // 2)
        total = sum(a[:, j] ** 2 for j in range(low, high + 1))
        out[:, i] = a[:, i] / (k + alpha * total) ** beta
    return out


@pytest.mark.parametrize("beta", [0.75, 0.5])
@pytest.mark.parametrize("size", [3, 5])
def test_equals_the_definition(size: int, beta: float) -> None:
    a = 30 * torch.randn(2, 7, 4, 3, dtype=torch.float64)
    layer = LocalResponseNorm(7, size, 1e-3, beta, 2.0)
    assert torch.allclose(layer(a), plain(a, size, 1e-3, beta, 2.0), rtol=1e-12)


def test_equals_pytorch_whose_alpha_is_divided_by_the_size() -> None:
    a = 50 * torch.randn(2, 16, 5, 5)
    theirs = torch.nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
    ours = LocalResponseNorm(16, 5, 1e-4, 0.75, 2.0)
    assert torch.allclose(ours(a), theirs(a), rtol=1e-5, atol=1e-5)


def test_gradient_is_exact() -> None:
    a = (20 * torch.randn(2, 6, 2, 2, dtype=torch.float64)).requires_grad_()
    layer = LocalResponseNorm(6, 5, 1e-3, 0.75, 2.0)
    assert torch.autograd.gradcheck(layer, (a,))


def test_half_precision_input_is_summed_in_float32() -> None:
    a = (40 * torch.randn(2, 8, 3, 3)).to(torch.bfloat16)
    layer = LocalResponseNorm(8)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(a)
    assert out.dtype == torch.bfloat16
    wide = plain(a.double(), 5, 1e-4, 0.75, 2.0)
    assert torch.allclose(out.double(), wide, rtol=2**-8)


def test_channels_last_stays_channels_last() -> None:
    a = torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last)
    out = LocalResponseNorm(8)(a)
    assert out.is_contiguous(memory_format=torch.channels_last)


def plain_spatial(a: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Each map over its own neighbours, written as loops over places."""
    out = torch.empty_like(a)
    half = size // 2
    for y in range(a.shape[2]):
        for x in range(a.shape[3]):
            part = a[:, :, max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
            out[:, :, y, x] = a[:, :, y, x] / (k + alpha * (part**2).sum((2, 3))) ** beta
    return out


def test_the_spatial_norm_equals_its_definition_and_its_gradient_is_exact() -> None:
    a = (20 * torch.randn(2, 3, 6, 7, dtype=torch.float64)).requires_grad_()
    layer = SpatialResponseNorm(3, 5, 1e-3, 0.75, 2.0)
    assert torch.allclose(layer(a), plain_spatial(a, 5, 1e-3, 0.75, 2.0), rtol=1e-12)
    assert torch.autograd.gradcheck(layer, (a,))
