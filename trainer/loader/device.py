"""A ring of batches on a device, and the back end that decodes on the host for it.

The same arithmetic as the CPU kernel's (``kernels._write_floats``), in torch.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagenet_prep.dataset.statistics import Stats
from trainer.loader.cpu import Decoder, space_to_depth
from trainer.loader.tables import BetonInfo
from trainer.loader.views import Views, gain_of, mean_of


def normalise(
    crops: Tensor, windows: Tensor, shift: Tensor, mean: Tensor, gain: Tensor,
    *, centre: bool = False,
) -> Tensor:  # fmt: skip
    """uint8 crops (B, V, S, S, 3) -> float32 (B, V, 3, S, S), channels last, all on one device.

    ``windows`` int (B, V, 5) says where each was cut (y, x, height, width) and whether it is
    flipped already; ``mean`` float32 (H, W, 3) is subtracted at that place, flipped with the
    crop, or from its ``centre``, never flipped; ``shift`` float32 (B, 3) is the image's colour
    shift and ``gain`` float32 (3,) multiplies the result.
    """
    size = crops.shape[-2]
    steps = torch.arange(size, device=crops.device)
    if centre:
        top, left = ((side - size) // 2 for side in mean.shape[:2])
        local = mean[top : top + size, left : left + size]
    else:
        y, x, _, _, mirror = windows.to(torch.int64)[..., None].unbind(2)
        columns = x + torch.where(mirror != 0, steps.flip(0), steps)
        local = mean[(y + steps)[..., None], columns[:, :, None, :]]
    result = (crops - local + shift[:, None, None, None, :]) * gain
    return result.movedim(-1, -3)


class DeviceRing:
    """``slots`` batches on a device, filled on a stream of its own and handed out by events.

    On "cpu", for tests without a GPU, there are no streams and everything happens at once.
    """

    def __init__(
        self, views: Views, *, batch_size: int, slots: int, layout: str, device: torch.device
    ) -> None:
        self.slots, self.layout, self.device, self.views = slots, layout, device, views
        out = views.out_px
        cells = -(-out // 4)
        shape = {"channels_first": (3, out, out), "space_to_depth": (cells, cells, 48)}.get(
            layout, (out, out, 3)
        )
        kind = getattr(torch, views.dtype)
        whole = (slots, batch_size, views.count, *shape)
        self.ring = torch.zeros(whole, dtype=kind, device=device)
        self.labels = torch.zeros((slots, batch_size), dtype=torch.int64, device=device)
        self.counts = [0] * slots
        self.stream: Any = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.done, self.used = self.events(slots), self.events(slots)
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(device))

    def events(self, count: int) -> list[Any]:
        """Events that a thread can wait for without keeping its core busy."""
        if self.device.type != "cuda":
            return [None] * count
        return [torch.cuda.Event(blocking=True) for _ in range(count)]  # type: ignore[no-untyped-call]

    def on_stream(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        """Work is put on ``stream``."""
        return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)

    def output(self, slot: int, count: int) -> Tensor:
        """(count, V, channels, rows, columns) of a slot, a view into the ring."""
        part = self.ring[slot, :count]
        return part if self.layout == "channels_first" else part.movedim(-1, -3)

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
        images = self.output(slot, count)
        return images[:, 0] if self.views.count == 1 else images, self.labels[slot, :count]

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
    """Windows are cut on the host and travel as uint8; the device does the rest.

    Resampled windows are finished on the host, because the mean is subtracted before.
    """

    def __init__(
        self, info: BetonInfo, stats: Stats, views: Views, *, batch_size: int, slots: int,
        jobs: int, layout: str, device: torch.device,
    ) -> None:  # fmt: skip
        super().__init__(views, batch_size=batch_size, slots=slots, layout=layout, device=device)
        self.whole = views.resamples or views.dtype == "uint8"
        # The colour noise of windows that travel as uint8 is drawn all the same.
        on_host = views if self.whole else replace(views, dtype="uint8")
        self.decoder = Decoder(info, stats, on_host, batch_size=batch_size, jobs=jobs)
        self.draws, self.files = self.decoder.draws, self.decoder.files
        out = views.out_px
        self.host = torch.zeros(
            (2, batch_size, views.count, out, out, 3), dtype=getattr(torch, on_host.dtype),
            pin_memory=self.stream is not None,
        )  # fmt: skip
        self.copied, self._number = self.events(2), 0
        self.host_labels = torch.from_numpy(info.labels)
        self.mean = torch.from_numpy(np.array(mean_of(views, stats.mean))).to(device)
        self.gain = torch.from_numpy(gain_of(views, stats.channel_std)).to(device)
        self.decoder.run(np.empty(0, np.uint64), self.host.data_ptr())  # compiles, or loads

    def fill(self, slot: int, indices: NDArray[np.uint64]) -> None:
        """Decodes on the host, then queues the copy and the rest. Raises DamagedError."""
        side, count = self._number % 2, len(indices)
        self._number += 1
        if self.stream is not None:
            self.copied[side].synchronize()
        self.decoder.run(indices, self.host[side].data_ptr())
        labels = self.host_labels[torch.from_numpy(indices.astype(np.int64))]
        with self.on_stream(self.stream):
            self.wait_until_free(slot, self.stream)
            crops = self.host[side, :count].to(self.device, non_blocking=True)
            if self.stream is not None:
                self.copied[side].record(self.stream)
            images = crops.movedim(-1, -3)
            if not self.whole:
                images = normalise(
                    crops, self._sent(self.draws.windows[:count]),
                    self._sent(self.draws.shifts[:count]), self.mean, self.gain,
                    centre=self.views.mean == "centre",
                )  # fmt: skip
            if self.layout == "space_to_depth":
                images = space_to_depth(images)
            self.output(slot, count).copy_(images)
            self.labels[slot, :count].copy_(self._sent(labels.numpy()))
            self.filled(slot, count, self.stream)

    def finish(self) -> None:
        """Nothing is left to check: damage is found while the host decodes."""

    def _sent(self, array: NDArray[Any]) -> Tensor:
        """An array that is going to change -> what it holds now, on the device."""
        tensor = torch.from_numpy(array)
        if self.stream is None:
            return tensor.clone()
        return tensor.pin_memory().to(self.device, non_blocking=True)
