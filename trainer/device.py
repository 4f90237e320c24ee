"""Device and precision of a run."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from typing import Any

import torch
from torch.nn import functional

from imagenet_prep.core.errors import UsageError


class Precision:
    """How the forward pass computes: float32, bfloat16 or float16 under autocast."""

    def __init__(self, device: torch.device, name: str) -> None:
        self.device = device
        self.name = name
        self.dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name)
        # Only float16 gradients need scaling: their exponents underflow.
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """The autocast context of a forward pass; does nothing for float32."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def choose_precision(name: str, device: torch.device) -> str:
    """``auto`` -> the fastest number format that the device has in hardware; others stay.

    bfloat16 on CUDA from compute capability 8, float16 on older CUDA devices; bfloat16 on
    CPUs with AMX or AVX512-BF16 where a short measurement shows that it is faster; float32
    elsewhere. UsageError for float16 on a CPU.
    """
    if name == "float16" and device.type == "cpu":
        raise UsageError(
            "device.float16_on_cpu",
            "--precision float16 needs a CUDA device; use bfloat16, float32 or auto on a CPU",
        )
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float16"
    capability = torch.cpu.get_capabilities()
    has_bfloat16 = any(capability.get(flag) for flag in ("amx_bf16", "avx512_bf16", "bf16"))
    return "bfloat16" if has_bfloat16 and _bfloat16_pays() else "float32"


@functools.cache
def _bfloat16_pays() -> bool:
    """Whether a convolution, forward and backward, takes four fifths of float32's time or less.

    Virtual machines report instructions that they emulate slowly. CPU time of one thread: on a
    busy machine threads wait for one another, and seconds say nothing. Takes a tenth of a second.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rounds = [[_convolution_s(dtype) for dtype in _TRIED] for _ in range(2)]
    finally:
        torch.set_num_threads(threads)
    float32, bfloat16 = map(min, zip(*rounds, strict=True))
    return bool(bfloat16 <= 0.8 * float32)


_TRIED = (torch.float32, torch.bfloat16)


def _convolution_s(dtype: torch.dtype) -> float:
    """Seconds of CPU time of conv4 of the paper on 4 images, forward and backward."""
    weight = torch.full((384, 384, 3, 3), 0.01, dtype=dtype, requires_grad=True)
    x = torch.ones(4, 384, 13, 13, dtype=dtype).to(memory_format=torch.channels_last)
    started = time.thread_time()
    torch.autograd.backward(functional.conv2d(x, weight, padding=1).sum())
    return time.thread_time() - started


def usable_cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(name: str) -> torch.device:
    """``auto`` -> CUDA where there is a device; UsageError for CUDA without one."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError(
            "device.no_cuda",
            "--device cuda: this machine has no usable CUDA device; use --device cpu",
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")
