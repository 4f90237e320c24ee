"""What follows a convolution as one operation: bias, ReLU, LRN and pooling.

The kernels are in ``blocks_triton`` for CUDA and in ``blocks_cpu``. What they do not take (other
devices and dtypes, batch or spatial normalisation, on CUDA widths that are no multiple of eight,
on CPUs batches that are not channels last) goes through plain layers.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.network import lrn_cpu


def builds_kernels() -> bool:
    """Whether Triton runs here: it is installed, and there are a C compiler and Python's
    headers, with which it builds what launches its kernels."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return bool(importlib.util.find_spec("triton") and compiler and header.exists())


TRITON = builds_kernels()


@dataclass(frozen=True)
class Block:
    """Bias and ReLU; with ``pools`` also max pooling of 3 x 3 by 2, with ``alpha`` above 0 LRN
    (windows of 5, beta 0.75) between them. ``first``: ReLU before LRN, not after the pooling."""

    pools: bool
    alpha: float = 0.0
    k: float = 1.0
    first: bool = True

    def __call__(self, z: Tensor, bias: Tensor) -> Tensor:
        """Sums of a convolution without its bias (B, C, H, W) -> the next layer's input."""
        z = z.contiguous(memory_format=torch.channels_last)
        if self.pools:
            pooled: Tensor = _Pool.apply(z, bias, self.alpha, self.k, self.first)
            return pooled
        out: Tensor = _ReLU.apply(z, bias)
        return out


def block_of(words: str, size: int, alpha: float, beta: float, k: float) -> Block | None:
    """What ``words`` (relu, norm, pool, in this order) stand for; None: no kernel does that."""
    if words == "relu":
        return Block(pools=False)
    if words in ("relu pool", "pool relu"):
        return Block(pools=True)
    usual = (size, beta) == (5, 0.75) and alpha > 0 and k >= 1e-3
    if words in ("relu norm pool", "norm pool relu") and usual:
        return Block(pools=True, alpha=alpha, k=k, first=words.startswith("relu"))
    return None


def takes(x: Tensor, filters: int) -> bool:
    """Whether the kernels may follow a convolution of ``x`` with so many ``filters``."""
    if x.is_cuda:
        return TRITON and x.dtype != torch.float64 and filters % 8 == 0 and x.numel() > 0
    # Exports run the network on tensors without memory, of another type.
    real = type(x) is Tensor and not torch.compiler.is_compiling()
    # Under autocast the sums of the convolution have another dtype than x.
    half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.float16
    return real and not half and lrn_cpu.fits(x)


def _kernels(z: Tensor) -> Any:
    """The module of kernels for the device of ``z``."""
    if z.is_cuda:
        from trainer.network import blocks_triton

        return blocks_triton
    from trainer.network import blocks_cpu

    return blocks_cpu


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, bias: Tensor, alpha: float, k: float, first: bool) -> Tensor:
        y: Tensor
        y, cells = _kernels(z).pool_forward(z, bias, alpha, k, first)
        kept = z if alpha else None  # without LRN the places say all
        ctx.save_for_backward(kept, bias, cells)
        ctx.settings = (tuple(z.shape[2:]), alpha, k, first)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        z, bias, cells = ctx.saved_tensors
        kernels = _kernels(bias)
        dz, sums = kernels.pool_backward(z, bias, gradients[0], cells, *ctx.settings)
        return dz, sums.to(bias.dtype), None, None, None


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, bias: Tensor) -> Tensor:
        _kernels(z).relu_forward_(z, bias)
        ctx.mark_dirty(z)
        ctx.save_for_backward(z)
        ctx.bias_dtype = bias.dtype
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        (y,) = ctx.saved_tensors
        dz, sums = _kernels(y).relu_backward(y, gradients[0])
        return dz, sums.to(ctx.bias_dtype)
