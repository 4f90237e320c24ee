"""A ring of batches on a device, and the back end that decodes on the host for it."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagenet_prep.dataset.beton_tables import BetonInfo
from imagenet_prep.dataset.statistics import Stats
from trainer.loader.cpu import Decoder, images_of, shape_of
from trainer.loader.iterator import Backend
from trainer.views.views import Views


class DeviceRing(Backend):
    """``slots`` batches on a device, filled on a stream of its own and handed out by events.

    On "cpu", for tests without a GPU, there are no streams and everything happens at once.
    """

    def __init__(
        self, views: Views, *, batch_size: int, slots: int, layout: str, device: torch.device
    ) -> None:
        self.slots, self.layout, self.device, self.views = slots, layout, device, views
        kind = getattr(torch, views.dtype)
        whole = (slots, batch_size, *shape_of(views, layout))
        self.ring = torch.zeros(whole, dtype=kind, device=device)
        self.labels = torch.zeros((slots, batch_size), dtype=torch.int64, device=device)
        self.counts = [0] * slots
        self.stream = self.new_stream()
        self.done, self.used = self.events(slots), self.events(slots)

    def new_stream(self) -> Any:
        """A stream that comes after all work so far; None without CUDA."""
        if self.device.type != "cuda":
            return None
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        return stream

    def events(self, count: int) -> list[Any]:
        """Events that a thread can wait for without keeping its core busy."""
        if self.device.type != "cuda":
            return [None] * count
        return [torch.cuda.Event(blocking=True) for _ in range(count)]  # type: ignore[no-untyped-call]

    def on_stream(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        """Work is put on ``stream``."""
        return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)

    def wait_until_free(self, slot: int, stream: Any) -> None:
        """``stream`` waits for the consumer's use of what the slot held."""
        if stream is not None:
            stream.wait_event(self.used[slot])

    def filled(self, slot: int, count: int, stream: Any) -> None:
        """All work for the slot is on ``stream``."""
        self.counts[slot] = count
        if stream is not None:
            self.done[slot].record(stream)

    def take(self, slot: int) -> tuple[Tensor, Tensor]:
        """(images, labels) for the consumer, whose stream waits for them."""
        count = self.counts[slot]
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_event(self.done[slot])
        return images_of(self.ring[slot, :count], self.layout), self.labels[slot, :count]

    def release(self, slot: int) -> None:
        """What the consumer has put on its stream is all that it does with the slot."""
        if self.stream is not None:
            self.used[slot].record(torch.cuda.current_stream(self.device))

    def begin(self) -> None:
        """The stream waits for all use of batches of the epoch before."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def close(self) -> None:
        """Memory that the consumer frees from now on is no longer written."""
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)


class HostBackend(DeviceRing):
    """Batches are made on the host, whole, and copied to the device."""

    def __init__(
        self, info: BetonInfo, stats: Stats, views: Views, *, batch_size: int, slots: int,
        jobs: int, layout: str, device: torch.device,
    ) -> None:  # fmt: skip
        super().__init__(views, batch_size=batch_size, slots=slots, layout=layout, device=device)
        self.decoder = Decoder(info, stats, views, batch_size=batch_size, jobs=jobs, layout=layout)
        self.draws, self.files = self.decoder.draws, self.decoder.files
        pinned = self.stream is not None
        self.host = torch.zeros((2, *self.ring.shape[1:]), dtype=self.ring.dtype, pin_memory=pinned)
        self.host_labels = torch.zeros((2, batch_size), dtype=torch.int64, pin_memory=pinned)
        self.copied, self._number, self._all_labels = self.events(2), 0, info.labels
        self.decoder.run(np.empty(0, np.uint64), self.host.data_ptr())  # compiles, or loads

    def fill(self, slot: int, indices: NDArray[np.uint64]) -> None:
        """Decodes on the host, then queues the copy. Raises DamagedError."""
        side, count = self._number % 2, len(indices)
        self._number += 1
        if self.stream is not None:
            self.copied[side].synchronize()
        self.decoder.run(indices, self.host[side].data_ptr())
        self.host_labels[side].numpy()[:count] = self._all_labels[indices]
        with self.on_stream(self.stream):
            self.wait_until_free(slot, self.stream)
            self.ring[slot, :count].copy_(self.host[side, :count], non_blocking=True)
            self.labels[slot, :count].copy_(self.host_labels[side, :count], non_blocking=True)
            if self.stream is not None:
                self.copied[side].record(self.stream)
            self.filled(slot, count, self.stream)
