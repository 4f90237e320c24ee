"""The processes that train together under ``torchrun``; one process is a world of one."""

from __future__ import annotations

import datetime
import itertools
import os
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import nn

from imagenet_prep.artifacts import UsageError
from trainer.loop import Judged
from trainer.order import rank_batches

# A rank that waits longer than this for another one ends with an error.
_TIMEOUT = datetime.timedelta(minutes=10)


class World:
    """``rank`` of ``ranks`` processes; rank 0 writes and speaks."""

    def __init__(self) -> None:
        self.rank, self.ranks, self.local_rank = 0, 1, 0

    @staticmethod
    def join() -> World:
        """The world that torchrun's environment variables describe."""
        world = World()
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return world
        if not torch.distributed.is_available():
            raise UsageError("this torch has no distributed training; run without torchrun")
        world.rank, world.ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        world.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT
        )
        return world

    def leave(self) -> None:
        """Ends the connections."""
        if self.ranks > 1 or torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    @property
    def main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def jobs(self, wanted: int | None) -> int | None:
        """Decoding threads of this process: its share of the machine unless said otherwise."""
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if wanted is not None or self.ranks == 1 or not hasattr(os, "sched_getaffinity"):
            return wanted
        return max(1, len(os.sched_getaffinity(0)) // beside)

    def learner(self, model: nn.Module, device: torch.device) -> nn.Module:
        """``model`` itself, or wrapped so that its gradients are averaged over the ranks."""
        if self.ranks == 1:
            return model
        place = [device] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            model, device_ids=place, gradient_as_bucket_view=True
        )

    def agree(self, model: nn.Module) -> None:
        """Gives every rank the running statistics of rank 0."""
        if self.ranks > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def weights(self, samples: int, batch_size: int, least_batch: int) -> Iterable[float]:
        """What is left of an epoch, in samples of all ranks -> the weight of each of this
        rank's batches: with it the mean of the ranks' gradients is the mean over the pictures.

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
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found)

    def gathered(self, value: Any) -> list[Any]:
        """The ranks' values in the order of ranks."""
        if self.ranks == 1:
            return [value]
        found: list[Any] = [None] * self.ranks
        torch.distributed.all_gather_object(found, value)
        return found

    def joined(self, judged: Judged) -> Judged:
        """The pictures of all ranks, in the order of the beton, the same on every rank."""
        parts = self.gathered(judged)
        names = [field.name for field in fields(Judged)]
        columns = [torch.cat([getattr(part, name) for part in parts]) for name in names]
        order = columns[0].argsort(stable=True)
        return Judged(*(column[order] for column in columns))
