"""The back end for the CPU: numba kernels make a batch in one pass over its pixels."""

from __future__ import annotations

import ctypes
import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from imagenet_prep.dataset.beton_tables import BetonInfo
from imagenet_prep.dataset.statistics import Stats
from imagenet_prep.jpeg import turbo
from imagenet_prep.jpeg.scan import new_memory
from trainer.loader.iterator import Backend, DamagedError
from trainer.numba_ext import numba
from trainer.views import kernels
from trainer.views.draws import Draws
from trainer.views.views import LAYOUTS, Views, gain_of, mean_of

# Numba starts that many threads at most: the cores of the process when it was imported.
MOST_THREADS = int(numba.config.NUMBA_NUM_THREADS)
# Numba's fallback threading layer ends the process when two threads compute at once.
COMPUTING = threading.Lock()


def address(array: NDArray[Any]) -> int:
    """Where an array's memory begins."""
    return int(array.ctypes.data)


class Decoder:
    """Samples of a data set -> their views, in memory of the caller's.

    ``run(indices, out)`` makes (n, *``shape_of(views, layout)``) of ``views.dtype`` at the address
    ``out``; of squares that reach over the edge it writes only what is inside. ``files`` int64
    are the descriptors of the open files; ``draws`` has what is random. ``jobs`` threads work on
    at most ``batch_size`` samples at once.
    """

    def __init__(
        self, info: BetonInfo, stats: Stats, views: Views, *, batch_size: int, jobs: int,
        layout: str = "channels_last",
    ) -> None:  # fmt: skip
        self.info, self.jobs = info, jobs
        self.draws = Draws(views, stats, info.side_px, batch_size)
        side, out, threads = info.side_px, views.out_px, 1 if jobs == 1 else MOST_THREADS
        packed = info.extents[info.extents[:, 2] == 0, 1]
        most_packed = int(packed.max(initial=0)) + 64
        self._given: NDArray[np.uint8] | None = None
        mean, gain = mean_of(views, stats.mean), gain_of(views, stats.channel_std)
        self.files = np.full(int(info.extents[:, 3].max(initial=0)) + 1, -1, np.int64)
        self.status = np.zeros(batch_size, np.int32)
        self._arrays: dict[str, NDArray[Any]] = {
            "extents": np.ascontiguousarray(info.extents, np.int64),
            "files": self.files,
            "means": np.ascontiguousarray(np.stack([mean, mean[:, ::-1]]), np.float32),
            "gain": np.tile(gain, out),
            "room": new_memory(threads if len(packed) else 0, side, side),
            "image": np.zeros((threads, 3 * side * (side + 1)), np.uint8),
            "packed": np.zeros((threads, most_packed), np.uint8),
            "work": np.zeros((threads, kernels.work_length(side, out)), np.float32),
            "spans": np.zeros((threads, 4 * out), np.int64),
            "status": self.status,
            "windows": self.draws.windows,
            "normals": self.draws.normals,
            "shifts": self.draws.shifts,
        }
        job = {name: address(array) for name, array in self._arrays.items()} | {
            "pread": pointer(ctypes.CDLL(None).pread),
            "given": 0,
            "room_bytes": self._arrays["room"].shape[1],
            "side": side,
            "out": out,
            "taps": kernels.taps(side, out),
            "samples": info.samples,
            "views": views.count,
            "most_packed": most_packed,
            "form": kernels.FORMS[views.dtype],
            "layout": LAYOUTS.index(layout),
            "own_colour": views.lighting_mode == "image" and views.drawn,
            "centre": views.mean == "centre" and views.dtype != "uint8",
            "resample": views.resamples,
        }
        self._job = np.array([job[name] for name in kernels.JOB], np.int64)

    def run(
        self, indices: NDArray[np.uint64], out: int, images: NDArray[np.uint8] | None = None
    ) -> None:
        """Makes the views of the samples ``indices`` at ``out``. Raises DamagedError.

        ``images`` (n, side, side, 3) are decoded already and are not read from the file.
        """
        self.draws.draw(indices)
        status = self.status[: len(indices)]
        status[:] = kernels.STATUS_OK if images is None else kernels.STATUS_GIVEN
        self._compute(indices, out, images)
        others = np.flatnonzero(status == kernels.STATUS_OTHER)
        if len(others):
            given = self._decode_others(others, indices)
            status[others] = kernels.STATUS_GIVEN
            self._compute(indices, out, given)
        if status.any():
            failed = int(status.argmax())
            raise DamagedError(int(indices[failed]), kernels.REASONS[int(status[failed])])

    def _compute(
        self, indices: NDArray[np.uint64], out: int, images: NDArray[np.uint8] | None
    ) -> None:
        """The batch; with ``images`` only those samples whose status is GIVEN."""
        self._job[kernels.JOB.index("given")] = 0 if images is None else address(images)
        job = address(self._job)
        if self.jobs == 1:
            kernels.batch_serial(job, indices, out)
        else:
            before = numba.get_num_threads()  # of the calling thread
            numba.set_num_threads(self.jobs)
            with COMPUTING:
                kernels.batch_parallel(job, indices, out)
            numba.set_num_threads(before)

    def _decode_others(
        self, positions: NDArray[np.int64], indices: NDArray[np.uint64]
    ) -> NDArray[np.uint8]:
        """-> images (B, side, side, 3), filled where the kernels do not read the JPEG: those of
        kinds that data sets seldom have (progressive, other subsampling)."""
        if self._given is None:
            side = self.info.side_px
            self._given = np.zeros((len(self.status), side, side, 3), np.uint8)
        with ThreadPoolExecutor(self.jobs) as pool:
            for _ in pool.map(self._decode, positions.tolist(), indices[positions].tolist()):
                pass
        return self._given

    def _decode(self, position: int, index: int) -> None:
        assert self._given is not None
        at, size, _mode, number = self.info.extents[index].tolist()
        data = os.pread(int(self.files[number]), size, at)
        if len(data) < size:
            raise DamagedError(index, kernels.REASONS[kernels.STATUS_SHORT])
        pixels = self._given[position]
        try:
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                same = image.size == pixels.shape[1::-1]
            if same:
                turbo.decode_into(data, pixels)
        except (OSError, SyntaxError, ValueError):
            raise DamagedError(index, kernels.REASONS[kernels.STATUS_CORRUPT]) from None
        if not same:
            raise DamagedError(index, kernels.REASONS[kernels.STATUS_SIZE])


def pointer(function: Any) -> int:
    """The address of a C function."""
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


def shape_of(views: Views, layout: str) -> tuple[int, ...]:
    """(V, rows, columns, channels) of a sample in memory, channels first for that layout.

    "space_to_depth": (V, n, n, 48), n = S / 4 rounded up; channel 12 dy + 3 dx + c of (y, x) is
    channel c of pixel (4 y + dy, 4 x + dx), 0 outside.
    """
    out, squares = views.out_px, -(-views.out_px // 4)
    shape = {"channels_first": (3, out, out), "space_to_depth": (squares, squares, 48)}
    return views.count, *shape.get(layout, (out, out, 3))


def images_of(memory: Tensor, layout: str) -> Tensor:
    """(B, ...) as in ``shape_of`` -> (B, V, channels, rows, columns), or without V where it is 1,
    a view."""
    images = memory if layout == "channels_first" else memory.movedim(-1, -3)
    return images[:, 0] if images.shape[1] == 1 else images


class CpuBackend(Backend):
    """Makes batches where they are used."""

    def __init__(
        self, info: BetonInfo, stats: Stats, views: Views, *, batch_size: int, slots: int,
        jobs: int, layout: str,
    ) -> None:  # fmt: skip
        self.slots, self.layout = slots, layout
        self.decoder = Decoder(
            info, stats, views, batch_size=batch_size, jobs=jobs, layout=layout
        )  # fmt: skip
        self.draws, self.files = self.decoder.draws, self.decoder.files
        self.labels = torch.from_numpy(info.labels)
        # The ring is the loader's: a new one each epoch would cost more than its filling.
        shape = (slots, batch_size, *shape_of(views, layout))
        self._ring = torch.zeros(shape, dtype=getattr(torch, views.dtype))
        self._made: list[tuple[Tensor, Tensor] | None] = [None] * slots
        self.decoder.run(np.empty(0, np.uint64), self._ring.data_ptr())  # compiles, or loads

    def fill(self, slot: int, indices: NDArray[np.uint64]) -> None:
        """Makes a batch, in the loader's thread."""
        ring = self._ring[slot]
        self.decoder.run(indices, ring.data_ptr())
        images = images_of(ring[: len(indices)], self.layout)
        self._made[slot] = images, self.labels[torch.from_numpy(indices.astype(np.int64))]

    def take(self, slot: int) -> tuple[Tensor, Tensor]:
        """(images, labels) of a filled slot, for the consumer."""
        made = self._made[slot]
        assert made is not None
        return made
