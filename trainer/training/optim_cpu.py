"""One pass over a parameter on a CPU: master, moments, working weights and running average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.network.lrn_cpu import in_parts, like, wide
from trainer.numba_ext import kernel

# Elements that are moved together, as parts of the arrays and in loops of few of them: the
# compiler makes vector instructions only where it can tell indices and arrays apart.
_CHUNK = 4096


@kernel
def _scaled(gradient: Any, coefficient: Any, found: Any) -> None:
    for i in range(gradient.shape[0]):
        found[i] = wide(gradient[i]) * coefficient


@kernel
def _follow(master: Any, work: Any, average: Any, share: Any) -> None:
    for i in range(work.shape[0]):
        work[i] = like(master[i], work[i])
    for i in range(average.shape[0]):
        average[i] += share * (master[i] - average[i])


@kernel
def _sgd(
    master: Any, gradient: Any, work: Any, average: Any, moment: Any, numbers: Any, first: Any,
    last: Any,
) -> None:  # fmt: skip
    rate, coefficient, share, decay, momentum = (
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4],
    )  # fmt: skip
    g = np.empty(_CHUNK, np.float32)
    for begin in range(first, last, _CHUNK):
        end = min(begin + _CHUNK, last)
        w, m = master[begin:end], moment[begin:end]
        _scaled(gradient[begin:end], coefficient, g)
        for i in range(w.shape[0]):
            m[i] = momentum * m[i] + (g[i] + decay * w[i])
        for i in range(w.shape[0]):
            w[i] -= rate * m[i]
        _follow(w, work[begin:end], average[begin:end], share)


@kernel
def _adam(
    master: Any, gradient: Any, work: Any, average: Any, moment: Any, square: Any, numbers: Any,
    decoupled: Any, first: Any, last: Any,
) -> None:  # fmt: skip
    rate, coefficient, share, decay, beta1 = (
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4],
    )  # fmt: skip
    beta2, epsilon, correction, root = numbers[5], numbers[6], numbers[7], numbers[8]
    one = np.float32(1)
    keep, coupled = (one - rate * decay, np.float32(0)) if decoupled else (one, decay)
    g = np.empty(_CHUNK, np.float32)
    for begin in range(first, last, _CHUNK):
        end = min(begin + _CHUNK, last)
        w, m, s = master[begin:end], moment[begin:end], square[begin:end]
        _scaled(gradient[begin:end], coefficient, g)
        for i in range(w.shape[0]):
            g[i] += coupled * w[i]
        for i in range(w.shape[0]):
            m[i] += (one - beta1) * (g[i] - m[i])
        for i in range(w.shape[0]):
            s[i] = beta2 * s[i] + (one - beta2) * g[i] * g[i]
        for i in range(w.shape[0]):
            g[i] = m[i] / (np.sqrt(s[i]) / root + epsilon)
        for i in range(w.shape[0]):
            w[i] = keep * w[i] - rate / correction * g[i]
        _follow(w, work[begin:end], average[begin:end], share)


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
