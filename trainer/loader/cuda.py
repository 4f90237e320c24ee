"""The back end that decodes on a CUDA device: only compressed bytes travel.

The thread copies a batch's compressed samples side by side into pinned memory; they go to the
device on one stream. Batches are decoded on two streams in turn, since one batch alone does not
fill the device, and a third one is prepared meanwhile; their results lie in a ring that is
handed out by events. Nothing stops the device: the status of a batch is read when the second
batch after it is on its way.

With NUMBA_ENABLE_CUDASIM=1 everything runs on the CPU, in numba's simulator.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset.beton_tables import BetonInfo
from imagenet_prep.dataset.shards import Betons
from imagenet_prep.dataset.statistics import Stats
from imagenet_prep.jpeg import core
from imagenet_prep.jpeg.index import Index
from trainer.loader.checks import Reading
from trainer.loader.device import DeviceRing
from trainer.loader.iterator import DamagedError
from trainer.loader.packing import MARGIN, Packer, aligned
from trainer.loader.rows import open_rows
from trainer.views.draws import Draws
from trainer.views.views import Views, gain_of, mean_of


class UnusableError(ToolError):
    """This data set or machine cannot decode on the device; the CPU can."""


SIDES = 3
"""Batches under way: two that the device decodes, and the one that the thread prepares."""


class _Side:
    """One of the batches under way: pinned memory, its copy on the device, and events."""

    def __init__(self, ring: DeviceRing, batch_size: int, data_bytes: int) -> None:
        count = ring.views.count
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "jobs": (np.int32, (batch_size, core.JOB)),
            "begins": (np.int64, (batch_size,)),
            "windows": (np.int32, (batch_size * count, 5)),
            "shifts": (np.float32, (batch_size, 3)),
            "normals": (np.float64, (batch_size, 3)),
            "labels": (np.int64, (batch_size,)),
            "status": (np.int32, (batch_size,)),  # zeros, which the kernels change
        }
        places, total = {}, 0
        for name, (dtype, shape) in shapes.items():
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            places[name] = slice(total, total + size)
            total += -(-size // 8) * 8
        pinned = ring.stream is not None
        self.head = torch.zeros(total, dtype=torch.uint8, pin_memory=pinned)
        self.sent = torch.zeros(total, dtype=torch.uint8, device=ring.device)
        self.data = torch.zeros(data_bytes, dtype=torch.uint8, pin_memory=pinned)
        self.host: dict[str, NDArray[Any]] = {}
        self.device: dict[str, Tensor] = {}
        for name, (dtype, shape) in shapes.items():
            kind = getattr(torch, np.dtype(dtype).name)
            self.host[name] = self.head[places[name]].view(kind).reshape(shape).numpy()
            self.device[name] = self.sent[places[name]].view(kind).reshape(shape)
        self.status = self.device["status"]
        self.found = torch.zeros(batch_size, dtype=torch.int32, pin_memory=pinned)
        self.copied, self.decoded = ring.events(2)
        self.indices: NDArray[np.uint64] | None = None

    def settle(self) -> None:
        """Waits until the batch is decoded. Raises DamagedError if a sample of it was not."""
        if self.decoded is not None:
            self.decoded.synchronize()
        indices, self.indices = self.indices, None
        if indices is None:
            return
        status = self.found.numpy()[: len(indices)]
        if status.any():
            failed = int(np.flatnonzero(status)[0])
            raise DamagedError(int(indices[failed]), f"it {core.REASONS[int(status[failed])]}")


class _Store:
    """Where compressed samples lie on the device: in a buffer per side, or, ``resident``, each in
    a place of its own from its first use on."""

    def __init__(self, info: BetonInfo, largest: int, resident: bool, device: torch.device) -> None:
        self.sizes, self.resident = aligned(info.extents[:, 1]), resident
        total = int(self.sizes.sum()) if resident else largest
        count = (total + MARGIN) // 4
        self.words = [
            torch.zeros(count, dtype=torch.int32, device=device)
            for _ in range(1 if resident else SIDES)
        ]
        self.bytes = [words.view(torch.uint8) for words in self.words]
        self._begins = np.full(info.samples if resident else 0, -1, np.int64)
        self._used = 0

    def place(
        self, indices: NDArray[np.uint64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], int, int]:
        """-> (first byte of each sample, which are new, first byte of these, their bytes)."""
        if self.resident:
            begins = self._begins[indices]
            fresh, base = begins < 0, self._used
        else:
            begins, base = np.zeros(len(indices), np.int64), 0
            fresh = np.ones(len(indices), np.bool_)
        ends = base + np.cumsum(self.sizes[indices[fresh]])
        begins[fresh] = ends - self.sizes[indices[fresh]]
        return begins, fresh, base, (int(ends[-1]) - base if len(ends) else 0)

    def keep(self, indices: NDArray[np.uint64], begins: NDArray[np.int64], used: int) -> None:
        """What was placed is on its way to the device."""
        if self.resident:
            self._begins[indices] = begins
            self._used += used


class CudaBackend(DeviceRing):
    """Decodes on the device; see ``iterator.Backend``. Raises UnusableError where samples are
    JPEGs of a kind that only the CPU decodes, or where numba-cuda is missing."""

    def __init__(
        self, betons: Betons, info: BetonInfo, stats: Stats, views: Views, reading: Reading, *,
        batch_size: int, slots: int, jobs: int, layout: str, device: torch.device,
    ) -> None:  # fmt: skip
        require_numba_cuda(device)
        index = open_rows(betons, jobs, reading.progress)
        self.jobs = jobs_of(betons, index, reading)
        super().__init__(views, batch_size=batch_size, slots=slots, layout=layout, device=device)
        self.info, self.draws = info, Draws(views, stats, info.side_px, batch_size)
        self.files = np.full(len(betons.paths), -1, np.int64)
        self.packer = Packer(info.extents, self.files, jobs)
        largest = np.partition(aligned(info.extents[:, 1]), -batch_size)[-batch_size:]
        most = int(largest.sum()) + MARGIN
        self.streams = [self.stream, self.new_stream()]
        self.sides = [_Side(self, batch_size, most) for _ in range(SIDES)]
        self.store = _Store(info, most, self._is_resident(reading.resident), device)
        self.copying = self.new_stream()
        self._number = 0
        self._thread = threading.local()
        self._prepare(index, stats, batch_size)

    def _is_resident(self, chosen: str) -> bool:
        """Whether the compressed set stays on the device, and fits."""
        if chosen == "off":
            return False
        if self.stream is None:
            return chosen == "on"
        free, _ = torch.cuda.mem_get_info(self.device)
        total = int(aligned(self.info.extents[:, 1]).sum())
        if chosen == "on" and total > free:
            raise ToolError(
                "loader.resident",
                f"resident is on, but {total >> 20} MiB of compressed images do not fit into "
                f"the device's free {free >> 20} MiB; use resident='auto'",
            )
        return chosen == "on" or total <= free // 2

    def begin(self) -> None:
        """An epoch begins: damage in one that was left early is not its business."""
        for side in self.sides:
            side.indices = None
            side.settle()  # only waits: the thread may have left before it did
        for stream in self.streams:
            if stream is not None:
                stream.wait_stream(torch.cuda.current_stream(self.device))

    def close(self) -> None:
        """Memory that the consumer frees from now on is no longer written."""
        super().close()
        self.packer.close()
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.streams[1])

    def fill(self, slot: int, indices: NDArray[np.uint64]) -> None:
        """Copies a batch's samples and queues its decoding. Raises DamagedError, also of one of
        the two batches before."""
        number, count = self._number, len(indices)
        side, stream = self.sides[number % SIDES], self.streams[number % 2]
        self._number += 1
        self.draws.draw(indices)
        begins, fresh, base, used = self.store.place(indices)
        self.packer.copy(indices[fresh], begins[fresh] - base, side.data.data_ptr())
        host = side.host
        host["jobs"][:count], host["begins"][:count] = self.jobs[indices], begins
        host["windows"][: count * self.views.count] = self.draws.windows[:count].reshape(-1, 5)
        host["shifts"][:count], host["normals"][:count] = (
            self.draws.shifts[:count], self.draws.normals[:count]
        )  # fmt: skip
        host["labels"][:count] = self.info.labels[indices]
        with self.on_stream(self.copying):
            side.sent.copy_(side.head, non_blocking=True)
            if used:
                self.store.bytes[number % len(self.store.bytes)][base : base + used].copy_(
                    side.data[:used], non_blocking=True
                )
                self.store.keep(indices[fresh], begins[fresh], used)
            if self.copying is not None:
                side.copied.record(self.copying)
        with self.on_stream(stream):
            if stream is not None:
                stream.wait_event(side.copied)
            self.wait_until_free(slot, stream)
            self._decode(number, slot, count)
            self.labels[slot, :count].copy_(side.device["labels"][:count])
            side.found.copy_(side.status, non_blocking=True)
            if stream is not None:
                side.decoded.record(stream)
            self.filled(slot, count, stream)
        side.indices = indices
        self.sides[(number + 1) % SIDES].settle()  # the second batch before, whose side is next

    def finish(self) -> None:
        """Raises DamagedError of the last two batches."""
        for number in range(self._number - 2, self._number):
            self.sides[number % SIDES].settle()

    def _prepare(self, index: Index, stats: Stats, batch_size: int) -> None:
        """What all batches share, on the device, and the kernels."""
        from imagenet_prep.jpeg import cuda as jpeg

        self.jpeg = jpeg
        self._select()
        views = self.views
        mean = mean_of(views, stats.mean)
        if views.dtype == "uint8" or views.mean not in ("image", "centre"):
            mean = mean[:1, :1]  # one value per channel
        gain = gain_of(views, stats.channel_std)
        self._mean, self._gain = self._upload(mean), self._upload(gain)
        self._rows = self._upload(index.positions), self._upload(index.predictors)
        tables = jpeg.tables(index, self._upload)
        try:
            self._decoders = [
                jpeg.Decoder(index, tables, batch_size, self._allocate) for _ in self.streams
            ]
        except ValueError as error:
            raise UnusableError(
                "loader.batch_size", f"batch_size is {batch_size}: {error}; use a smaller one"
            ) from None
        self._out = [self._array(self.ring[slot].reshape(-1)) for slot in range(self.slots)]
        self._launched: dict[tuple[int, int], tuple[Any, Any, Any]] = {}
        self._on = [0 if stream is None else jpeg.as_stream(stream) for stream in self.streams]
        self._own_colour = views.lighting_mode == "image" and views.drawn
        if self.stream is not None:  # compiled now, in this thread, where Ctrl-C works
            self.begin()
            with self.on_stream(self.stream):
                self._decode(0, 0, 1)

    def _select(self) -> None:
        """Numba's device of this thread is the loader's."""
        if self.stream is not None and not getattr(self._thread, "selected", False):
            self.jpeg.cuda.select_device(self.device.index)
            self._thread.selected = True

    def _array(self, tensor: Tensor) -> Any:
        """A tensor -> the same memory for kernels, bfloat16 as int16."""
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.view(torch.int16)
        return tensor.numpy() if self.stream is None else self.jpeg.as_array(tensor)

    def _allocate(self, count: int, dtype: Any) -> Any:
        kind = np.dtype(dtype)
        same = kind if kind.kind == "f" else np.dtype(f"i{kind.itemsize}")
        made = torch.zeros(count, dtype=getattr(torch, same.name), device=self.device)
        return self._array(made).view(kind)

    def _upload(self, array: NDArray[Any]) -> Any:
        kind = array.dtype
        same = kind if kind.kind == "f" else np.dtype(f"i{kind.itemsize}")
        held = torch.from_numpy(np.array(array, order="C").view(same)).to(self.device)
        return self._array(held).view(kind)

    def _arguments(self, number: int, count: int) -> tuple[Any, Any, Any]:
        """(batch, views, normals) for the kernels; the same for all batches of a side and size."""
        side, key = self.sides[number % SIDES], (number % SIDES, count)
        words = self.store.words[number % len(self.store.words)]
        if key not in self._launched:
            there = {
                name: self._array(tensor[: count * (len(tensor) // len(side.status))])
                for name, tensor in side.device.items()
            }
            batch = self.jpeg.Batch(
                self._array(words).view(np.uint32), there["begins"], there["jobs"], *self._rows,
                there["status"],
            )  # fmt: skip
            views = self.jpeg.Views(
                there["windows"], self.views.count, self._mean, self.views.mean == "centre",
                there["shifts"], self._gain,
            )  # fmt: skip
            self._launched[key] = batch, views, there["normals"]
        return self._launched[key]

    def _decode(self, number: int, slot: int, count: int) -> None:
        """Queues the kernels of a batch, on the stream whose turn it is."""
        self._select()
        batch, views, normals = self._arguments(number, count)
        decoder, on = self._decoders[number % 2], self._on[number % 2]
        decoder.decode(batch, on)
        if self._own_colour:
            from trainer.views.cuda_colour import THREADS, own_shifts

            data = batch.words.view(np.uint8)
            self.jpeg.kernel(own_shifts)[count, THREADS, on](
                data, decoder._planes, batch.jobs, batch.begins, batch.status,
                np.int32(decoder.blocks), normals, views.shift,
            )  # fmt: skip
        decoder.view(
            batch, views, self._out[slot], self.views.out_px, self.views.dtype, self.layout,
            resized=self.views.resamples, stream=on,
        )  # fmt: skip


def require_numba_cuda(device: torch.device) -> None:
    """UnusableError where numba-cuda is missing or finds no device."""
    try:
        from imagenet_prep.jpeg.cuda import cuda

        usable = bool(cuda.is_available())
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises
        raise UnusableError(
            "loader.numba_cuda",
            f"numba-cuda cannot be used ({type(error).__name__}: {error}); install it with "
            "pip install numba-cuda",
        ) from None
    if not usable:
        raise UnusableError("loader.numba_cuda", f"numba-cuda finds no usable device for {device}")


def jobs_of(betons: Betons, index: Index, reading: Reading) -> NDArray[np.int32]:
    """int32 (N, JOB) of all samples: a sample's ROW is that of the whole index.

    UnusableError naming the first sample that only the CPU decodes.
    """
    images = index.images
    chosen = np.arange(len(images)) if reading.indices is None else reading.indices
    bad = chosen[images["status"][chosen] != core.OK]
    if len(bad):
        path, sample = betons.sample(int(bad[0]))
        reason = core.REASONS[int(images["status"][bad[0]])]
        raise UnusableError(
            "loader.not_for_gpu",
            f"{path}: {sample}, {reason}, and {len(bad)} of {len(chosen)} samples cannot be "
            "decoded on the device; use decode='cpu'",
        )
    jobs = np.zeros((len(images), core.JOB), np.int32)
    for column, name in enumerate(("mode", "width", "height", "huffman", "quant", "row", "size")):
        jobs[:, column] = images[name]
    return jobs
