"""LRN on a device against float64: the kernels, the general path, compiled, in the network."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.gpu.devices import on_cuda, on_each_device
from trainer.network import lrn
from trainer.network.lrn import LocalResponseNorm, SpatialResponseNorm

LAYOUTS = (torch.channels_last, torch.contiguous_format)
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def both_ways(layer: torch.nn.Module, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    torch.autograd.backward(y, gradient)
    assert x.grad is not None
    return y.detach(), x.grad


def assert_close(layer: torch.nn.Module, x: Tensor, exact_layer: torch.nn.Module) -> None:
    """Both directions, in units of the largest value, against float64 on the CPU."""
    gradient = torch.randn(x.shape).to(x)
    exact = both_ways(exact_layer.cpu(), x.double().cpu(), gradient.double().cpu())
    for found, wanted in zip(both_ways(layer, x, gradient), exact, strict=True):
        assert found.dtype == x.dtype
        off = (found.double().cpu() - wanted).abs().max() / wanted.abs().max()
        assert float(off) < CLOSE[x.dtype]


@on_each_device
@pytest.mark.parametrize(("dtype", "layout"), list(itertools.product(CLOSE, LAYOUTS)))
@pytest.mark.parametrize("shape", [(2, 96, 7, 5), (1, 37, 3, 3), (3, 1, 1, 1)])
def test_across_channels_equals_float64(
    device: str, dtype: torch.dtype, layout: torch.memory_format, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = (30 * torch.randn(shape)).to(device, dtype, memory_format=layout)
    layer = LocalResponseNorm(shape[1]).to(device)
    assert_close(layer, x, LocalResponseNorm(shape[1]))


@on_each_device
def test_sums_over_a_band_equal_float64(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(LocalResponseNorm, "one_pass", False)
    x = (30 * torch.randn(2, 96, 7, 5)).to(device, memory_format=torch.channels_last)
    assert_close(LocalResponseNorm(96).to(device), x, LocalResponseNorm(96))


@on_each_device
def test_within_each_map_equals_float64(device: str) -> None:
    torch.manual_seed(0)
    x = (30 * torch.randn(2, 6, 9, 8)).to(device, memory_format=torch.channels_last)
    assert_close(SpatialResponseNorm(6).to(device), x, SpatialResponseNorm(6))


@on_each_device
@pytest.mark.parametrize("layer", [LocalResponseNorm(6, alpha=1e-3), SpatialResponseNorm(6)])
def test_the_gradient_is_exact_in_float64(device: str, layer: torch.nn.Module) -> None:
    x = (20 * torch.randn(1, 6, 3, 2, dtype=torch.float64)).to(device).requires_grad_()
    assert torch.autograd.gradcheck(layer.to(device), (x,))


@on_cuda
def test_cuda_has_kernels_of_its_own() -> None:
    from trainer.network import lrn_triton

    x = torch.randn(2, 8, 3, 3, device="cuda")
    assert lrn._one_pass(x) is lrn_triton
    assert lrn._one_pass(x[:, ::2]) is None
    assert lrn._one_pass(x.double()) is None


@on_cuda
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
def test_a_compiled_layer_has_the_kernels_in_its_graph() -> None:
    torch.manual_seed(0)
    x = (30 * torch.randn(2, 96, 7, 5)).to("cuda", memory_format=torch.channels_last)
    layer = LocalResponseNorm(96).cuda()
    compiled = torch.compile(layer, fullgraph=True)
    assert isinstance(compiled, torch.nn.Module)
    assert_close(compiled, x, LocalResponseNorm(96))


@on_cuda
def test_a_batch_of_more_than_2_to_the_31_values_is_addressed() -> None:
    batch, channels, side = 22_000, 96, 32
    if torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
        pytest.skip("needs 24 GB on the device")
    x = torch.empty(batch, channels, side, side, device="cuda", dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last).normal_()
    assert x.numel() > 2**31
    layer = LocalResponseNorm(channels).cuda()
    assert torch.equal(layer(x)[-1:], layer(x[-1:].clone(memory_format=torch.preserve_format)))
