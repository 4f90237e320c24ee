"""Local response normalisation against a plain definition, PyTorch's layer and gradcheck."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainer.network import lrn_cpu
from trainer.network.lrn import LocalResponseNorm, SpatialResponseNorm


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
    a = (20 * torch.randn(1, 6, 2, 2, dtype=torch.float64)).requires_grad_()
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


def test_the_spatial_norm_and_its_gradient_equal_the_definition() -> None:
    a = (20 * torch.randn(1, 2, 6, 7, dtype=torch.float64)).requires_grad_()
    layer = SpatialResponseNorm(2, 5, 1e-3, 0.75, 2.0)
    assert torch.allclose(layer(a), plain_spatial(a, 5, 1e-3, 0.75, 2.0), rtol=1e-12)
    assert torch.autograd.gradcheck(layer, (a,))


LAYOUTS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def gradients(
    layer: Callable[[Tensor], Tensor], a: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """(output, gradient of Σ output · weight)."""
    a = a.clone(memory_format=torch.preserve_format).requires_grad_()
    out = layer(a)
    torch.autograd.backward(out, weight.to(out.dtype))
    assert a.grad is not None
    return out.detach(), a.grad


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "beta"), [(5, 0.75), (5, 0.5), (4, 0.75), (1, 0.75)])
def test_every_dtype_and_layout_is_the_definition_rounded(
    layout: torch.memory_format, dtype: torch.dtype, size: int, beta: float
) -> None:
    a = (30 * torch.randn(3, 17, 15, 20)).to(dtype).to(memory_format=layout)
    weight = torch.randn(3, 17, 15, 20).to(dtype).to(memory_format=layout)
    layer = LocalResponseNorm(17, size, 1e-3, beta, 2.0)
    out, gradient = gradients(layer, a, weight)
    # The loops over channels are slow; in float64 the layer equals them (tested above).
    exact, exact_gradient = gradients(layer, a.double(), weight.double())
    step = {torch.float32: 2**-20, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    assert out.dtype == gradient.dtype == dtype
    assert out.is_contiguous(memory_format=layout)
    assert torch.allclose(out.double(), exact, rtol=step, atol=1e-6)
    assert torch.allclose(gradient.double(), exact_gradient, rtol=2 * step, atol=step)


def test_an_even_window_lies_where_pytorch_puts_it() -> None:
    a = (50 * torch.randn(2, 16, 5, 5)).to(memory_format=torch.channels_last)
    theirs = torch.nn.LocalResponseNorm(4, alpha=4e-4, beta=0.75, k=2.0)
    assert torch.allclose(LocalResponseNorm(16, 4)(a), theirs(a), rtol=1e-5, atol=1e-5)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    a = (30 * torch.randn(4, 24, 31, 9)).to(memory_format=torch.channels_last)
    weight = torch.randn(4, 24, 31, 9).to(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(gradients(LocalResponseNorm(24), a, weight))
    finally:
        torch.set_num_threads(before)
    for out, gradient in found[1:]:
        assert torch.equal(out, found[0][0])
        assert torch.equal(gradient, found[0][1])


@pytest.mark.parametrize("openmp", [True, False])
def test_work_in_parts_covers_all_rows_once_and_passes_errors_on(
    openmp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not openmp:
        monkeypatch.setattr(lrn_cpu, "_openmp", lambda: None)
    elif lrn_cpu._openmp() is None:
        pytest.skip("PyTorch does not use GNU's OpenMP here")
    before = torch.get_num_threads()

    def fail(first: int, last: int) -> None:
        raise ValueError(f"{first} {last}")

    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            done: list[int] = []
            lrn_cpu.in_parts(lambda a, b, to=done: to.extend(range(a, b)), 1003, 10)
            assert sorted(done) == list(range(1003))
            with pytest.raises(ValueError, match=r"\d+ \d+"):
                lrn_cpu.in_parts(fail, 1003, 10)
    finally:
        torch.set_num_threads(before)


def test_a_gradient_in_another_layout_is_taken() -> None:
    a = (30 * torch.randn(2, 8, 5, 6)).to(memory_format=torch.channels_last)
    weight = torch.randn(2, 8, 5, 6)
    layer = LocalResponseNorm(8)
    _, gradient = gradients(layer, a, weight)
    _, expected = gradients(layer, a.contiguous(), weight)
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_stays_nan_and_infinity_spreads_no_further(dtype: torch.dtype) -> None:
    a = torch.ones(1, 12, 1, 1, dtype=dtype).to(memory_format=torch.channels_last)
    a[0, 5] = float("nan")
    out = LocalResponseNorm(12)(a)[0, :, 0, 0]
    assert torch.isnan(out).tolist() == [False] * 3 + [True] * 5 + [False] * 4


def test_an_empty_batch_stays_empty() -> None:
    a = torch.empty(0, 8, 3, 3).to(memory_format=torch.channels_last)
    assert LocalResponseNorm(8)(a).shape == (0, 8, 3, 3)
