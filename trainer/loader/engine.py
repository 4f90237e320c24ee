"""FFCV as it is used here: its parts, and our operations in its graph.

FFCV compiles an operation's function anew for every loader, frozen with all that it
captures, and numba cannot keep such code on disk. The work of ours is done by functions
of a module, compiled once and kept: they find everything, epoch and seed included, through
the address of a small array that ``CropDecoder`` owns, and nothing is compiled again.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import math
import unittest.mock
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numba as _numba
import numpy as np
import torch
from numpy.typing import NDArray

from imagenet_prep.dataset.statistics import Stats
from trainer.hashing import MASK
from trainer.loader import kernels as ops
from trainer.loader.device import normalise
from trainer.loader.views import Views, colour_basis, gain_of, mean_of

numba: Any = _numba
# Numba starts that many threads at most: the cores of the process when it was imported.
MOST_THREADS = int(numba.config.NUMBA_NUM_THREADS)
# What NumPy and numba hold a dtype of the network's input in; both halves are two bytes.
STORED = {"uint8": "<u1", "float32": "<f4", "bfloat16": "<u2", "float16": "<u2"}


@contextlib.contextmanager
def same_threads() -> Iterator[None]:
    """FFCV sets the thread counts of torch and numba where it likes; this puts them back."""
    torch_threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        numba.set_num_threads(numba_threads)


@contextlib.contextmanager
def no_deprecations() -> Iterator[None]:
    """Hides what FFCV 1.0.2 uses of Python that Python means to drop, and nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*distutils.*", DeprecationWarning)
        warnings.filterwarnings("ignore", "ast\\.Index is deprecated", DeprecationWarning)
        yield


def import_ffcv() -> Any:
    """The parts of FFCV that are used here, imported without its side effects.

    FFCV fills a numba typed dict while it is imported, which is seconds of compiling for
    two constants that only Python reads: a plain dict takes its place.
    """
    wanted = {
        "loader.loader": ("Loader",),
        "loader.epoch_iterator": ("EpochIterator", "IS_CUDA"),
        "fields.decoders": ("SimpleRGBImageDecoder", "IntDecoder"),
        "pipeline.operation": ("Operation",),
        "pipeline.compiler": ("Compiler",),
        "pipeline.allocation_query": ("AllocationQuery",),
        "transforms.ops": ("ToTensor", "ToDevice", "ToTorchImage"),
        "transforms.common": ("Squeeze",),
        "types": ("HeaderType", "FieldDescType", "ALLOC_TABLE_TYPE", "CURRENT_VERSION",
                  "get_handlers", "get_metadata_type"),
        "fields.rgb_image": ("RGBImageField",),
        "fields.basics": ("IntField",),
        "libffcv": ("ctypes_imdecode",),
    }  # fmt: skip
    with same_threads(), no_deprecations(), unittest.mock.patch("numba.typed.Dict", dict):
        modules = {name: importlib.import_module(f"ffcv.{name}") for name in wanted}
    parts = {part: getattr(modules[name], part) for name in wanted for part in wanted[name]}
    return SimpleNamespace(**parts)


ffcv = import_ffcv()


def _address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


class CropDecoder(ffcv.SimpleRGBImageDecoder):  # type: ignore[misc, name-defined]
    """FFCV decoder: samples of a data set -> their views, in one pass over the pixels.

    extents int64 (N, 4): offset and size in bytes, FFCV's mode (0 JPEG, 1 raw) and the number of
    its file, of each sample, all within their files; the pictures are ``side_px`` square;
    ``stats`` are those of the data set. A sample becomes (out, out, 3) of ``views.dtype``,
    (3, out, out) with ``planes``, with one more axis in front for several views. ``files``
    int64 has the descriptors of the open files; after a batch ``fault`` tells whether a
    sample of it did not decode, and ``placed`` and ``shifts`` say what was drawn.
    """

    def __init__(
        self,
        views: Views,
        stats: Stats,
        extents: NDArray[np.int64],
        side_px: int,
        *,
        batch_size: int,
        jobs: int,
        planes: bool = False,
    ) -> None:
        super().__init__()
        self.views, self.stats, self.side_px, self.jobs = views, stats, side_px, jobs
        self.dtype = np.dtype(STORED[views.dtype])
        out, count = views.out_px, views.count
        shape = (3, out, out) if planes else (out, out, 3)
        self.shape: tuple[int, ...] = shape if count == 1 else (count, *shape)
        threads = 1 if jobs == 1 else MOST_THREADS
        packed = extents[extents[:, 2] == 0, 1]
        most_packed = (int(packed.max()) if len(packed) else 0) + 64
        mean = mean_of(views, stats.mean)
        gain = gain_of(views, stats.channel_std)
        self.files = np.full(int(extents[:, 3].max(initial=0)) + 1, -1, np.int64)
        self._arrays: dict[str, NDArray[Any]] = {
            "control": np.array([views.seed & MASK, 0], np.uint64),
            "extents": np.ascontiguousarray(extents, np.int64),
            "files": self.files,
            "means": np.ascontiguousarray(np.stack([mean, mean[:, ::-1]]), np.float32),
            "numbers": np.zeros(ops.NUMBERS),
            "gain": np.tile(gain, out),
            "places": np.ascontiguousarray(views.places(side_px)),
            "picture": np.zeros((threads, 3 * side_px * (side_px + 1)), np.uint8),
            "packed": np.zeros((threads, most_packed), np.uint8),
            "work": np.zeros((threads, ops.work_length(side_px, out)), np.float32),
            "spans": np.zeros((threads, 4 * out), np.int64),
            "status": np.zeros(batch_size, np.int32),
            "placed": np.zeros((batch_size, count, 3), np.int64),
            "shifts": np.zeros((batch_size, 3), np.float32),
        }
        self.lighting = views.lighting
        job = {name: _address(array) for name, array in self._arrays.items()} | {
            "imdecode": ctypes.cast(ffcv.ctypes_imdecode, ctypes.c_void_p).value,
            "pread": ctypes.cast(ctypes.CDLL(None).pread, ctypes.c_void_p).value,
            "side": side_px,
            "crop": views.crop_px,
            "out": out,
            "taps": ops.taps(side_px, out),
            "samples": len(extents),
            "views": count,
            "most_packed": most_packed,
            "resized": views.kind == "resized",
            "drawn": views.drawn,
            "mirror": views.mirror,
            "form": ops.FORMS[views.dtype],
            "planes": planes,
            "colour": ops.COLOURS[views.lighting_mode],
            "centre": views.mean == "centre" and views.dtype != "uint8",
            "resample": views.resamples,
        }
        self._job = np.array([job[name] for name in ops.JOB], np.int64)

    @property
    def epoch(self) -> int:
        """The epoch whose draws the next batch gets; setting it compiles nothing."""
        return int(self._arrays["control"][1])

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._arrays["control"][1] = epoch

    @property
    def lighting(self) -> float:
        """The colour noise of the next batch; see ``Views``."""
        return self.views.lighting

    @lighting.setter
    def lighting(self, value: float) -> None:
        self.views = views = replace(self.views, lighting=value)
        basis = colour_basis(self.stats.eigenvectors, self.stats.eigenstdev, views)
        ratio = [math.log(side) for side in views.ratio]
        self._arrays["numbers"][:] = [*basis.ravel(), *views.scale, *ratio, value]

    def placed(self, count: int) -> NDArray[np.int64]:
        """(count, V, 3): y, x and mirror of the views of the last batch's samples."""
        return self._arrays["placed"][:count]

    def shifts(self, count: int) -> NDArray[np.float32]:
        """(count, 3): the colour shifts of the last batch's samples, in levels."""
        return self._arrays["shifts"][:count]

    def fault(self, count: int) -> tuple[int, str] | None:
        """(position, reason) of the first of a batch's ``count`` samples that failed, or None."""
        status = self._arrays["status"][:count]
        failed = np.flatnonzero(status)
        return (int(failed[0]), ops.FAULTS[int(status[failed[0]])]) if len(failed) else None

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        """FFCV's question: what comes out of this operation, and where it is put."""
        state = replace(previous_state, jit_mode=True, shape=self.shape, dtype=self.dtype)
        return state, ffcv.AllocationQuery(self.shape, self.dtype)

    def generate_code(self) -> Callable[..., Any]:
        """FFCV's question: the function of a batch. It hands over to the compiled kernels."""
        run = ops.batch_serial if self.jobs == 1 else ops.batch_parallel
        job = _address(self._job)

        def decode(batch_indices: Any, destination: Any, _metadata: Any, _storage: Any) -> Any:
            run(job, batch_indices, destination.ctypes.data)
            return destination[: len(batch_indices)]

        return decode


def _sent(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array that is going to change -> what it holds now, on the device; to CUDA through
    pinned memory, so that the loader's thread does not wait for the pictures before it."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class DeviceAugment(ffcv.Operation):  # type: ignore[misc, name-defined]
    """FFCV operation on a device: uint8 windows -> the network's input, see ``augment``.

    (B, S, S, 3), or (B, V, S, S, 3), to the same with the channels in front, of ``dtype``.
    What was drawn is the decoder's; ``host`` are the decoder's views with their arithmetic.
    """

    def __init__(self, decoder: CropDecoder, views: Views, device: torch.device) -> None:
        super().__init__()
        self.decoder, self.views, self.device = decoder, views, device
        self.dtype = getattr(torch, views.dtype)
        stats = decoder.stats
        self.mean = torch.from_numpy(np.array(mean_of(views, stats.mean))).to(device)
        self.gain = torch.from_numpy(gain_of(views, stats.channel_std)).to(device)

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        """FFCV's question: what comes out of this operation, and where it is put."""
        *views, height, width, channels = previous_state.shape
        shape = (*views, channels, height, width)
        state = replace(previous_state, shape=shape, dtype=self.dtype, jit_mode=False)
        query = ffcv.AllocationQuery((*views, height, width, channels), self.dtype, self.device)
        return state, query

    def generate_code(self) -> Callable[..., Any]:
        """FFCV's question: the function of a batch, run by Python on FFCV's own stream."""

        def augment(crops: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            count = len(crops)
            placed = _sent(self.decoder.placed(count), self.device)
            shifts = _sent(self.decoder.shifts(count), self.device)
            return normalise(
                crops, placed, shifts, self.mean, self.gain, centre=self.views.mean == "centre",
                out=out[:count],
            )  # fmt: skip

        return augment
