"""The mean of the ranks' gradients, and how long a step waits for it.

**Exposed communication** is what is counted here: the time between the end of backward's own
work and the arrival of the last mean. While backward still computes, exchanges that run beside
it cost nothing and count nothing. The last bucket of gradients is handed over when backward has
nothing left to compute, so that moment is the end of its work; DistributedDataParallel then
waits for all means before backward returns. Time that ranks wait for a slower one is in it.
On a CPU both moments are read from the clock, on CUDA they are events in the streams, read at
the end of an epoch.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.futures import Future, collect_all


class Exchange:
    """Averages the buckets of gradients of DistributedDataParallel over ``ranks``.

    ``dtype`` is what travels; the weights and the optimiser have float32 in any case. PyTorch's
    own ``bf16_compress_hook`` does the same to bfloat16 and is refused without NCCL.
    """

    def __init__(self, ranks: int, dtype: torch.dtype, *, cuda: bool) -> None:
        self.ranks, self.dtype, self.cuda = ranks, dtype, cuda
        self._total_s = 0.0
        self._ended: Any = None  # backward's own work: a time in s, or an event
        self._arrived: list[Any] = []
        self._events: list[tuple[Any, list[Any]]] = []

    def attach(self, learner: nn.parallel.DistributedDataParallel) -> None:
        """Has ``learner``'s gradients exchanged here."""
        # A lambda: of a typed function PyTorch wants the annotation as an object, not its name.
        learner.register_comm_hook(None, lambda _, bucket: self._reduce(bucket))

    def seconds(self) -> float:
        """Exposed communication so far; on CUDA this waits for the device."""
        self._count()
        if self._events:
            torch.cuda.synchronize()
            for ended, arrived in self._events:
                waits = [ended.elapsed_time(event) / 1000 for event in arrived]
                self._total_s += max(0.0, *waits)
            self._events = []
        return self._total_s

    def _reduce(self, bucket: Any) -> Future[Tensor]:
        if bucket.index() == 0:
            self._count()
        whole: Tensor = bucket.buffer()
        # Divided before it is rounded, and before sums can overflow.
        sent = whole.div_(self.ranks).to(self.dtype)
        works = [torch.distributed.all_reduce(part, async_op=True) for part in parts(bucket, sent)]
        futures = [work.get_future() for work in works if work is not None]
        if bucket.is_last():
            self._ended = self._now()

        def arrived(future: Future[Any]) -> Tensor:
            if not self.cuda:
                for part in future.value():
                    part.value()  # raises what its exchange has raised
            if sent is not whole:
                whole.copy_(sent)
            self._arrived.append(self._now())
            return whole

        return (futures[0] if self.cuda else collect_all(futures)).then(arrived)

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _count(self) -> None:
        """Takes the backward pass that has ended into the sum."""
        if self._ended is not None and self._arrived:
            if self.cuda:
                self._events.append((self._ended, self._arrived))
            else:
                self._total_s += max(0.0, max(self._arrived) - self._ended)
        self._ended, self._arrived = None, []


def parts(bucket: Any, sent: Tensor) -> list[Tensor]:
    """The pieces of ``sent``, a copy of ``bucket``'s gradients in a row, that travel by themselves.

    Through gloo every weight's gradient: gloo adds the numbers of three ranks in an order that
    depends on their place in what is sent. DistributedDataParallel fills its buckets otherwise
    after its first step, so of whole buckets a run that goes on from a checkpoint would differ
    in the last bits. NCCL promises no bits and gets the bucket whole.
    """
    if sent.is_cuda:
        return [sent]
    first = bucket.buffer().storage_offset()
    places = [(each.storage_offset() - first, each.numel()) for each in bucket.gradients()]
    return [sent[start : start + count] for start, count in places]
