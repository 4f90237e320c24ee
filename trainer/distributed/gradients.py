"""The mean of the ranks' gradients, and how long a step waits for it.

``Exchange`` measures **exposed communication**: the time from the end of backward's own work to
the arrival of the last mean. Communication beside backward costs nothing and does not count. The
last bucket of gradients is handed over when backward has nothing left to compute, so that moment
is the end of its work; DistributedDataParallel then waits for all means before backward returns.
Waiting for a slower rank is included. On a CPU both moments are read from the clock, on CUDA they
are events in the streams, read at the end of an epoch.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.futures import Future, collect_all


class Exchange:
    """Averages the buckets of gradients of DistributedDataParallel over ``ranks``.

    An own hook and not torch's, for the measurement and for the bits (see ``parts``).
    """

    def __init__(self, ranks: int, *, cuda: bool) -> None:
        self.ranks, self.cuda = ranks, cuda
        self._total_s = 0.0
        self._ended: Any = None  # backward's own work: a time in s, or an event
        self._arrived: list[Any] = []
        self._events: list[tuple[Any, list[Any]]] = []

    def attach(self, learner: nn.parallel.DistributedDataParallel) -> None:
        """Exchanges the gradients of ``learner`` here."""
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
        whole.div_(self.ranks)  # before sums can overflow
        works = [torch.distributed.all_reduce(part, async_op=True) for part in parts(bucket)]
        futures = [work.get_future() for work in works if work is not None]
        if bucket.is_last():
            self._ended = self._now()

        def arrived(future: Future[Any]) -> Tensor:
            if not self.cuda:
                for part in future.value():
                    part.value()  # raises what its exchange has raised
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


def parts(bucket: Any) -> list[Tensor]:
    """The pieces of a bucket of gradients that are sent separately.

    Through gloo every weight's gradient: gloo adds the numbers of three ranks in an order that
    depends on their position in the message, and DistributedDataParallel changes its buckets
    after its first step, so a resumed run would differ in the last bits. NCCL guarantees no bits
    and gets the whole bucket.
    """
    whole: Tensor = bucket.buffer()
    if whole.is_cuda:
        return [whole]
    first = whole.storage_offset()
    places = [(each.storage_offset() - first, each.numel()) for each in bucket.gradients()]
    return [whole[start : start + count] for start, count in places]
