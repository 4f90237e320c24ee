"""The processes that train together under ``torchrun``; one process is a world of one."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from imagenet_prep.core.errors import ToolError, UsageError
from trainer.device import usable_cpus
from trainer.distributed.gradients import Exchange
from trainer.distributed.rendezvous import meet
from trainer.inference.judge import Judged
from trainer.loader.order import rank_batches

TIMEOUT_S = 300.0
"""How long a rank waits for another one. Longer than a network failure, a compilation or a large
checkpoint takes; a rank that is killed is noticed at once."""

_TRANSPORT = re.compile(r"gloo|NCCL|pair closure|TCPStore|socket|connection", re.IGNORECASE)
_SILENCE = re.compile(r"timed? ?out", re.IGNORECASE)


def _share_of_cpus() -> int:
    """The CPUs of this process, divided by the ranks on this machine; at least 1."""
    return max(1, usable_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class World:
    """``rank`` of ``ranks`` processes; rank 0 writes and prints."""

    def __init__(self) -> None:
        self.rank, self.ranks, self.local_rank = 0, 1, 0
        self.timeout_s = TIMEOUT_S
        self._broken = False
        self._group: Any = None  # for values other than gradients, through gloo
        self._exchange: Exchange | None = None
        self._waited_s = 0.0

    @staticmethod
    def join(timeout_s: float = TIMEOUT_S) -> World:
        """The processes that torchrun's environment variables describe.

        In a step a rank waits for another one for ``timeout_s``. ToolError when the others do
        not come.
        """
        world = World()
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return world
        if not torch.distributed.is_available():
            raise UsageError(
                "distributed.unavailable",
                "this torch has no distributed training; run without torchrun",
            )
        world.rank, world.ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        world.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        world.timeout_s = timeout_s
        if world.ranks > 1:
            # Hosts start at different times, however short the timeout of a step is.
            patience_s = max(timeout_s, TIMEOUT_S)
            if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # 1 is torchrun's, not the user's
                torch.set_num_threads(_share_of_cpus())
            with world.answering(patience_s):
                world._connect(patience_s)
        return world

    def _connect(self, patience_s: float) -> None:
        cuda = torch.cuda.is_available()
        found, _, _ = next(rendezvous("env://", timeout=datetime.timedelta(seconds=patience_s)))
        patience = datetime.timedelta(seconds=self.timeout_s)
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=meet(found, self.rank, self.ranks, patience_s),
            rank=self.rank,
            world_size=self.ranks,
            # NCCL aborts a process after its timeout, so its timeout is the longer one: the
            # ranks communicate through gloo in each step, and that raises.
            timeout=2 * patience if cuda else patience,
        )
        if cuda:
            self._group = torch.distributed.new_group(backend="gloo", timeout=patience)

    def leave(self) -> None:
        """Closes the connections, except broken ones, which might block."""
        if torch.distributed.is_initialized() and not self._broken:
            torch.distributed.destroy_process_group()

    @contextlib.contextmanager
    def answering(self, patience_s: float | None = None) -> Iterator[None]:
        """Errors of the transports when another process has ended, or does not answer for
        ``patience_s`` (None: ``timeout_s``), become ToolError."""
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            lost = isinstance(error, torch.distributed.DistError) or _TRANSPORT.search(text)
            if self.ranks == 1 or not lost:
                raise
            self._broken = True
            what = "has ended"
            if _SILENCE.search(text):
                what = f"did not answer for {patience_s or self.timeout_s:g} s (--timeout)"
            raise ToolError(
                "distributed.lost",
                f"rank {self.rank} of {self.ranks}: another process {what}; see its own error "
                "message, and continue from last.pt with --resume",
            ) from error

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - started

    def communication_s(self) -> float:
        """Seconds that this rank has spent waiting for others, as ``exchange`` defines it, and
        in other communication; on CUDA this waits for the device."""
        return self._waited_s + (0.0 if self._exchange is None else self._exchange.seconds())

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def jobs(self, wanted: int | None) -> int | None:
        """Decoding threads of this process: ``wanted``, or its share of the machine's CPUs."""
        return wanted if wanted is not None or self.ranks == 1 else _share_of_cpus()

    def learner(self, model: nn.Module, device: torch.device) -> nn.Module:
        """``model`` itself, or wrapped so that its gradients are averaged over the ranks."""
        if self.ranks == 1:
            return model
        cuda = device.type == "cuda"
        learner = nn.parallel.DistributedDataParallel(
            model, device_ids=[device] if cuda else None, gradient_as_bucket_view=True
        )
        if self._exchange is None:
            self._exchange = Exchange(self.ranks, cuda=cuda)
        self._exchange.attach(learner)
        return learner

    def agree(self, model: nn.Module) -> None:
        """Gives every rank the running statistics of rank 0."""
        if self.ranks > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def weights(self, samples: int, batch_size: int, least_batch: int) -> Iterable[float]:
        """What is left of an epoch, in samples of all ranks -> the weight of each of this
        rank's batches: with it the mean of the ranks' gradients is the mean over the images.

        0 where a rank has fewer than ``least_batch``: none of them takes such a step.
        """
        if self.ranks == 1:
            return itertools.repeat(1.0)
        order = np.arange(samples, dtype=np.uint64)
        parts = [
            [len(batch) for batch in rank_batches(order, batch_size, rank, self.ranks)]
            for rank in range(self.ranks)
        ]
        return [
            0.0 if min(sizes) < least_batch else sizes[self.rank] * self.ranks / sum(sizes)
            for sizes in zip(*parts, strict=True)
        ]

    def largest(self, value: int) -> int:
        """The largest of the ranks' values; waits for all ranks, not for the device."""
        if self.ranks == 1:
            return value
        found = torch.tensor([value])
        with self._waiting():
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(found)

    def gathered(self, value: Any) -> list[Any]:
        """The ranks' values in the order of ranks."""
        if self.ranks == 1:
            return [value]
        found: list[Any] = [None] * self.ranks
        with self._waiting():
            torch.distributed.all_gather_object(found, value, group=self._group)
        return found

    def from_main(self, value: Any) -> Any:
        """Rank 0's value, on every rank; the other ranks' values are ignored."""
        if self.ranks == 1:
            return value
        found = [value]
        with self._waiting():
            torch.distributed.broadcast_object_list(found, 0, group=self._group)
        return found[0]

    def summed(self, values: Tensor) -> Tensor:
        """The sum of the ranks' tensors, in float64 and in the order of ranks: the same bits
        on every rank, and exact for counts."""
        parts = self.gathered(values.cpu())
        return torch.stack([part.double() for part in parts]).cumsum(0)[-1]

    def joined(self, judged: Judged) -> Judged:
        """The images of all ranks, in the order of the beton file, the same on every rank."""
        parts = self.gathered(judged)
        names = [field.name for field in fields(Judged)]
        columns = [torch.cat([getattr(part, name) for part in parts]) for name in names]
        order = columns[0].argsort(stable=True)
        return Judged(*(column[order] for column in columns))
