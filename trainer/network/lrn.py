"""Local response normalisation across channels, exact and fast.

b = a · d^-β with d = k + α · Σ a² over the n channels around each one (Krizhevsky,
Sutskever, Hinton 2012, section 3.3). The sum over neighbouring channels is a 1×1
convolution with a banded matrix of ones, and for β = 0.75 the power is r·√r with
r = rsqrt(d); PyTorch's own layer pools in three dimensions and calls pow instead.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.network import lrn_cpu as lrn_kernels
from trainer.network.blocks import TRITON


def band_matrix(channels: int, size: int) -> Tensor:
    """(C, C, 1, 1) float32: 1 where output channel i sums input channel j.

    The window of channel i reaches from i - size//2 to i + (size-1)//2, cut at the
    ends, as PyTorch's LocalResponseNorm places it (only odd sizes are symmetric).
    """
    index = torch.arange(channels)
    offset = index[None, :] - index[:, None]
    inside = (offset >= -(size // 2)) & (offset <= (size - 1) // 2)
    return inside.to(torch.float32)[:, :, None, None]


def _power(d: Tensor, beta: float) -> Tensor:
    """d^-β; two cheap operations for the usual β."""
    if beta == 0.75:
        r = torch.rsqrt(d)
        return r * torch.sqrt(r)
    return d.pow(-beta)


def _neighbours(x: Tensor, band: Tensor) -> Tensor:
    """Σ over the neighbours that ``band`` holds, at every place; outside the image is 0."""
    groups = x.shape[1] // band.shape[1]
    if x.is_cuda:  # cuDNN's convolutions would round what they add up to TF32
        if band.shape[-1] == 1 and groups == 1:
            return functional.linear(x.movedim(1, -1), band[:, :, 0, 0]).movedim(-1, 1)
        size = band.shape[-1]
        return functional.avg_pool2d(x, size, 1, size // 2, divisor_override=1)
    return functional.conv2d(x, band, padding=band.shape[-1] // 2, groups=groups)


class _Normalise(torch.autograd.Function):
    """Forward keeps only the input; d is cheap to compute again.

    ``band`` is the kernel of a convolution that adds up the neighbours: (C, C, 1, 1) across
    channels, (C, 1, n, n) within each.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, band: Tensor, alpha: float, beta: float, k: float) -> Tensor:
        ctx.save_for_backward(x, band)
        ctx.constants = (alpha, beta, k)
        d = _neighbours(x * x, band).mul_(alpha).add_(k)
        return _power(d, beta).mul_(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        # db_i/da_j = δ_ij d_i^-β - 2αβ a_i a_j d_i^-(β+1) for j in the window of i
        (gradient,) = gradients
        x, band = ctx.saved_tensors
        alpha, beta, k = ctx.constants
        d = _neighbours(x * x, band).mul_(alpha).add_(k)
        scaled = gradient * _power(d, beta)
        # The neighbours of the neighbours: the transposed band (the square one is its own).
        back = band.transpose(0, 1) if band.shape[1] > 1 else band
        spread = _neighbours(scaled * x / d, back)
        result = scaled.sub_(spread.mul_(x).mul_(2 * alpha * beta))
        return result, None, None, None, None


def _one_pass(x: Tensor) -> Any:
    """The module of kernels that do each direction in one pass on the device of ``x``, or None
    where it has none for such a batch."""
    if x.device.type == "cuda" and TRITON:
        from trainer.network import lrn_triton

        return lrn_triton if lrn_triton.fits(x) else None
    return lrn_kernels if lrn_kernels.fits(x) else None


class _NormaliseOnce(torch.autograd.Function):
    """The same by kernels, in one pass each; forward keeps only the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.constants = (size, alpha, beta, k)
        y: Tensor = _one_pass(x).forward(x, size, alpha, beta, k)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        return _one_pass(x).backward(x, gradients[0], *ctx.constants), None, None, None, None


class _ResponseNorm(nn.Module):
    """b = a · (k + α · Σ a² over the neighbours in ``band``)^-β, summed in float32 whatever
    the input's dtype (float64 stays float64)."""

    band: Tensor

    def __init__(self, band: Tensor, size: int, alpha: float, beta: float, k: float) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k
        self.register_buffer("band", band, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``x``; see the class."""
        # Autocast would run the sum of squares in half precision; the meta device has none.
        plain = (
            contextlib.nullcontext()
            if x.is_meta
            else torch.autocast(device_type=x.device.type, enabled=False)
        )
        with plain:
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            y: Tensor = _Normalise.apply(
                wide, self.band.to(wide.dtype), self.alpha, self.beta, self.k
            )
            return y.to(x.dtype)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class LocalResponseNorm(_ResponseNorm):
    """(B, C, H, W) -> the same shape, normalised across channels.

    ``alpha`` is the paper's: it multiplies the plain sum of squares. PyTorch and the
    2012 code divide theirs by ``size`` first, so their alpha is ``size`` times ours.
    """

    one_pass = True
    """Kernels of our own where they take the batch; False: sums over a band everywhere."""

    def __init__(
        self, channels: int, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0
    ) -> None:
        super().__init__(band_matrix(channels, size), size, alpha, beta, k)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``x``; see the class."""
        if not self.one_pass or _one_pass(x) is None:
            return super().forward(x)
        y: Tensor = _NormaliseOnce.apply(x, self.size, self.alpha, self.beta, self.k)
        return y


class SpatialResponseNorm(_ResponseNorm):
    """(B, C, H, W) -> the same shape, each map normalised over its own ``size``² neighbours.

    The 2012 code has one in its second layer (5×5, 0.001); ``alpha`` multiplies the plain
    sum, where the code divides its constant by ``size``² first. ``size`` is odd.
    """

    def __init__(
        self, channels: int, size: int = 5, alpha: float = 4e-5, beta: float = 0.75, k: float = 2.0
    ) -> None:
        super().__init__(torch.ones(channels, 1, size, size), size, alpha, beta, k)
