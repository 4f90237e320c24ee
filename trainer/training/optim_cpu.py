"""One pass over a parameter on a CPU: master, moments, working weights and running average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.network.lrn_cpu import in_parts, like, wide
from trainer.numba_ext import kernel


@kernel
def _sgd(
    master: Any, gradient: Any, work: Any, average: Any, moment: Any, numbers: Any, first: Any,
    last: Any,
) -> Any:  # fmt: skip
    rate, coefficient, share, decay, momentum = (
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4],
    )  # fmt: skip
    for i in range(first, last):
        g = wide(gradient[i]) * coefficient
        m = momentum * moment[i] + (g + decay * master[i])
        new = master[i] - rate * m
        moment[i] = m
        master[i] = new
        if work.shape[0]:
            work[i] = like(new, work[i])
        if average.shape[0]:
            average[i] += share * (new - average[i])


@kernel
def _adam(
    master: Any, gradient: Any, work: Any, average: Any, moment: Any, square: Any, numbers: Any,
    decoupled: Any, first: Any, last: Any,
) -> Any:  # fmt: skip
    rate, coefficient, share, decay, beta1 = (
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4],
    )  # fmt: skip
    beta2, epsilon, correction, root = numbers[5], numbers[6], numbers[7], numbers[8]
    one = np.float32(1)
    for i in range(first, last):
        g, new = wide(gradient[i]) * coefficient, master[i]
        if decoupled:
            new *= one - rate * decay
        else:
            g += decay * new
        m = moment[i] + (one - beta1) * (g - moment[i])
        s = beta2 * square[i] + (one - beta2) * g * g
        new -= rate / correction * (m / (np.sqrt(s) / root + epsilon))
        moment[i], square[i], master[i] = m, s, new
        if work.shape[0]:
            work[i] = like(new, work[i])
        if average.shape[0]:
            average[i] += share * (new - average[i])


def _flat(tensor: Tensor | None) -> Any:
    """A dense tensor's memory in its own order, bfloat16 as uint16; None: no elements."""
    if tensor is None:
        return np.empty(0, np.float32)
    row = tensor.detach().as_strided((tensor.numel(),), (1,))
    return (row.view(torch.uint16) if row.dtype == torch.bfloat16 else row).numpy()


def move(
    master: Tensor, gradient: Tensor, work: Tensor | None, average: Tensor | None, moment: Tensor,
    square: Tensor | None, numbers: Sequence[float], settings: tuple[float, ...], *,
    decoupled: bool,
) -> None:  # fmt: skip
    """One step of a parameter, as ``optim_triton.move``; ``numbers`` lie on the host."""
    rate, coefficient, share, correction, root, _ = numbers
    factor, decay, beta1, beta2, epsilon = settings
    arrays: list[Any] = [_flat(each) for each in (master, gradient, work, average, moment)]
    sgd: Any = _sgd
    adam: Any = _adam
    given = np.array(
        [rate * factor, coefficient, share, decay, beta1, beta2, epsilon, correction, root],
        np.float32,
    )
    if square is None:
        in_parts(lambda a, b: sgd(*arrays, given, a, b), master.numel())
        return
    arrays.append(_flat(square))
    in_parts(lambda a, b: adam(*arrays, given, decoupled, a, b), master.numel())
