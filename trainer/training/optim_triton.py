# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, check-untyped-defs=False
# ruff: noqa: ANN001, ANN202, N803
"""One pass over a parameter on CUDA: master, moments, working weights and running average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

jit: Callable[[Any], Any] = triton.jit
BLOCK = 2048
# Places of the step's numbers in its tensor of float32.
RATE, COEFFICIENT, AVERAGE, FIRST, SECOND, SKIP = range(6)


@jit
def _move(master, gradient, work, average, moment, square, numbers, n, factor, decay, beta1, beta2,
          epsilon, ADAM: tl.constexpr, DECOUPLED: tl.constexpr, WORK: tl.constexpr,
          AVERAGE: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """``numbers``: learning rate, what gradients are multiplied with, the average's share, Adam's
    two corrections, and whether the step is left out (not 0)."""
    at = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    mask = at < n
    rate = tl.load(numbers) * factor
    w = tl.load(master + at, mask=mask)
    g = tl.load(gradient + at, mask=mask).to(tl.float32) * tl.load(numbers + 1)
    skip = tl.load(numbers + 5) != 0
    old = tl.load(moment + at, mask=mask)
    if ADAM:
        if not DECOUPLED:
            g += decay * w
        m = old + (1 - beta1) * (g - old)
        before = tl.load(square + at, mask=mask)
        s = beta2 * before + (1 - beta2) * g * g
        tl.store(square + at, tl.where(skip, before, s), mask=mask)
        size = tl.sqrt_rn(s) / tl.load(numbers + 4) + epsilon
        new = w * (1 - rate * decay) if DECOUPLED else w
        new -= rate / tl.load(numbers + 3) * tl.div_rn(m, size)
    else:
        m = beta1 * old + (g + decay * w)
        new = w - rate * m
    new = tl.where(skip, w, new)
    tl.store(moment + at, tl.where(skip, old, m), mask=mask)
    tl.store(master + at, new, mask=mask)
    if WORK:
        tl.store(work + at, new.to(work.dtype.element_ty), mask=mask)
    if AVERAGE:
        mean = tl.load(average + at, mask=mask)
        tl.store(average + at, mean + tl.load(numbers + 2) * (new - mean), mask=mask)


def move(
    master: Tensor, gradient: Tensor, work: Tensor | None, average: Tensor | None, moment: Tensor,
    square: Tensor | None, numbers: Tensor, settings: tuple[float, ...], *, decoupled: bool,
) -> None:  # fmt: skip
    """One step of a parameter; all tensors lie in memory as ``master`` does. ``settings``: factor
    of the learning rate, decay, betas, epsilon; ``square`` None: SGD with momentum."""
    n = master.numel()
    _move[(triton.cdiv(n, BLOCK),)](
        master, gradient, master if work is None else work, master if average is None else average,
        moment, moment if square is None else square, numbers, n, *settings,
        ADAM=square is not None, DECOUPLED=decoupled, WORK=work is not None,
        AVERAGE=average is not None, N=BLOCK, num_warps=8,
    )  # fmt: skip
