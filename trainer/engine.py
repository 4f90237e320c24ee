"""FFCV as it is used here: its parts, our operations in its graph, its thread, guarded.

FFCV compiles an operation's function anew for every loader, frozen with all that it
captures, and numba cannot keep such code on disk. The work of ours is done by functions
of a module, compiled once and kept: they find everything, epoch and seed included, through
the address of a small array that ``CropDecoder`` owns, and nothing is compiled again.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import queue
import threading
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

from trainer import ops
from trainer.draws import MASK, Draws, Views, draws, epoch_order

numba: Any = _numba
# Numba starts that many threads at most: the cores of the process when it was imported.
MOST_THREADS = int(numba.config.NUMBA_NUM_THREADS)
# How often a waiting side looks whether the other one is still there, in seconds.
WATCH_S = 0.1


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
        "traversal_order.base": ("TraversalOrder",),
        "memory_managers.os_cache": ("OSCacheManager",),
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
    """FFCV decoder: samples of a beton -> their views, in one pass over the pixels.

    extents int64 (N, 3): offset and size in bytes and FFCV's mode (0 JPEG, 1 raw) of each
    sample, all within the file; the pictures are ``side_px`` square. With ``mean`` float32
    (side, side, 3) and ``basis`` float64 (3, 3), see ``draws.colour_basis``: float32
    (out, out, 3), the mean image subtracted at the window's own place and the colour shift
    added. Without them: the windows as uint8. After a batch ``fault`` tells whether a
    sample of it did not decode.
    """

    def __init__(
        self,
        views: Views,
        extents: NDArray[np.int64],
        side_px: int,
        *,
        batch_size: int,
        jobs: int,
        mean: NDArray[np.float32] | None = None,
        basis: NDArray[np.float64] | None = None,
    ) -> None:
        super().__init__()
        if mean is None and views.resamples:
            raise ValueError("windows are resampled as float32 only: give a mean image")
        self.views, self.side_px, self.jobs = views, side_px, jobs
        self.dtype = np.dtype("<u1" if mean is None else "<f4")
        threads = 1 if jobs == 1 else MOST_THREADS
        out = views.out_px
        image = np.zeros((side_px, side_px, 3), np.float32) if mean is None else mean
        colours = np.zeros((3, 3)) if basis is None else basis
        self._arrays: dict[str, NDArray[Any]] = {
            "control": np.array([views.seed & MASK, 0], np.uint64),
            "extents": np.ascontiguousarray(extents, np.int64),
            "means": np.ascontiguousarray(np.stack([image, image[:, ::-1]]), np.float32),
            "numbers": np.append(np.ravel(colours), views.scale_min).astype(np.float64),
            "picture": np.zeros((threads, 3 * side_px * (side_px + 1)), np.uint8),
            "work": np.zeros((threads, ops.work_length(side_px, out)), np.float32),
            "spans": np.zeros((threads, 4 * out), np.int64),
            "status": np.zeros(batch_size, np.int32),
        }
        job = {name: _address(array) for name, array in self._arrays.items()} | {
            "imdecode": ctypes.cast(ffcv.ctypes_imdecode, ctypes.c_void_p).value,
            "side": side_px,
            "crop": views.crop_px,
            "out": out,
            "taps": ops.taps(side_px, out),
            "samples": len(extents),
            "random": views.random,
            "drawn": views.scale_min < 1,
            "mirror": views.mirror,
            "float": mean is not None,
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

    def draws(self, indices: NDArray[Any]) -> Draws:
        """The draws that the compiled code makes for these samples in this epoch."""
        return draws(self.views, self.epoch, indices, self.side_px)

    def fault(self, count: int) -> tuple[int, str] | None:
        """(position, reason) of the first of a batch's ``count`` samples that failed, or None."""
        status = self._arrays["status"][:count]
        failed = np.flatnonzero(status)
        return (int(failed[0]), ops.FAULTS[int(status[failed[0]])]) if len(failed) else None

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        """FFCV's question: what comes out of this operation, and where it is put."""
        shape = (self.views.out_px, self.views.out_px, 3)
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=self.dtype)
        return state, ffcv.AllocationQuery(shape, self.dtype)

    def generate_code(self) -> Callable[..., Any]:
        """FFCV's question: the function of a batch. It hands over to the compiled kernels."""
        run = ops.batch_serial if self.jobs == 1 else ops.batch_parallel
        job = _address(self._job)

        def decode(batch_indices: Any, destination: Any, _metadata: Any, storage_state: Any) -> Any:
            run(job, batch_indices, destination.ctypes.data, storage_state[0].ctypes.data)
            return destination[: len(batch_indices)]

        return decode


class DeviceAugment(ffcv.Operation):  # type: ignore[misc, name-defined]
    """FFCV operation on a device: uint8 crops (B, S, S, 3) -> float32 (B, 3, S, S).

    ``function(crops, y, x, mirror, shift, mean, out)`` does the arithmetic
    (``augment.normalise``); the draws are ``decoder``'s, computed on the host.
    """

    def __init__(
        self,
        decoder: CropDecoder,
        function: Callable[..., torch.Tensor],
        mean: NDArray[np.float32],
        basis: NDArray[np.float64],
        device: torch.device,
    ) -> None:
        super().__init__()
        self.decoder, self.function, self.basis, self.device = decoder, function, basis, device
        self.mean = torch.from_numpy(np.array(mean, np.float32)).to(device)

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        """FFCV's question: what comes out of this operation, and where it is put."""
        height, width, channels = previous_state.shape
        shape = (channels, height, width)
        state = replace(previous_state, shape=shape, dtype=torch.float32, jit_mode=False)
        return state, ffcv.AllocationQuery((height, width, channels), torch.float32, self.device)

    def generate_code(self) -> Callable[..., Any]:
        """FFCV's question: the function of a batch, run by Python on FFCV's own stream."""

        def augment(crops: torch.Tensor, out: torch.Tensor, batch_indices: Any) -> torch.Tensor:
            drawn = self.decoder.draws(batch_indices)
            shift = (drawn.normals @ self.basis.T).astype(np.float32)
            host = (drawn.y, drawn.x, drawn.mirror, shift)
            moved = [torch.from_numpy(array).to(self.device) for array in host]
            return self.function(crops, *moved, self.mean, out[: len(crops)])

        augment.with_indices = True  # type: ignore[attr-defined]
        return augment


class EpochOrder(ffcv.TraversalOrder):  # type: ignore[misc, name-defined]
    """FFCV traversal order: a permutation that depends on (seed, epoch) only, or file order."""

    def __init__(self, seed: int, shuffled: bool) -> None:
        self.order_seed, self.shuffled = seed, shuffled

    def __call__(self, loader: Any) -> EpochOrder:
        """FFCV calls the instance that it is given, with the loader."""
        super().__init__(loader)
        return self

    def sample_order(self, epoch: int) -> NDArray[np.uint64]:
        """The sample indices (N,) uint64 of an epoch in the order of their batches."""
        count = len(self.indices)
        if not self.shuffled:
            return np.arange(count, dtype=np.uint64)
        return epoch_order(self.order_seed, epoch, count)


# Numba's fallback threading layer ends the process when two threads compute at once.
_COMPUTING = threading.Lock()


def make_loader(path: str, batch_size: int, jobs: int, order: EpochOrder, **options: Any) -> Any:
    """FFCV's loader over a beton in the page cache, without side effects in the process.

    FFCV's own compiling is switched off while it puts the loader together: our kernels are
    compiled already, its copying of the labels needs none, and each loader would wait for
    seconds. Its compiled reader of the file is not used; see also ``ops._bytes``.
    """
    no_reader = unittest.mock.patch.object(ffcv.OSCacheManager, "compile_reader", lambda _: None)
    no_compiler = unittest.mock.patch.object(ffcv.Compiler, "is_enabled", False)
    with same_threads(), no_deprecations(), no_reader, no_compiler:
        return ffcv.Loader(
            path, batch_size, num_workers=jobs, os_cache=True, order=order, seed=0,
            drop_last=False, **options,
        )  # fmt: skip


class Epoch(ffcv.EpochIterator):  # type: ignore[misc, name-defined]
    """FFCV's thread that fills the ring of batches, with an end for every case.

    ``take`` gives (sample indices, results) of the next batch, None at the end, or raises
    what happened in the thread. ``check(indices)`` is called in the thread after each
    batch and raises if a sample failed. FFCV's own loop ends silently on any error, and
    waits for ever with a last word that nobody takes.
    """

    def __init__(
        self, loader: Any, order: NDArray[np.uint64], check: Callable[[NDArray[Any]], None]
    ) -> None:
        self.check = check
        self.error: BaseException | None = None
        super().__init__(loader, order)

    def start(self) -> None:
        """FFCV starts its thread while it is being made; see ``begin``."""

    def begin(self) -> None:
        """Starts the thread."""
        super().start()

    def compile(self) -> None:
        """Runs the pipeline on an empty batch, in the caller's thread: compiles, or loads."""
        with same_threads(), _COMPUTING:
            numba.set_num_threads(self.loader.num_workers)
            self.run_pipeline(0, self.order[:0], 0, None)

    def run(self) -> None:
        """The thread: fills slot after slot until the epoch, or the consumer, is done."""
        try:
            # Numba counts threads per thread; torch's count is the caller's business.
            numba.set_num_threads(self.loader.num_workers)
            self._fill()
        except BaseException as error:  # noqa: BLE001 - raised again by take()
            self.error = error
        self._offer(None)

    def _fill(self) -> None:
        ring = self.loader.batches_ahead + 2
        events: list[Any] = [None] * ring
        for number, indices in enumerate(self.iter_ixes):
            if self.terminate_event.is_set():
                return
            slot = number % ring
            if ffcv.IS_CUDA:
                # The host's side of the slot may still be on its way to the device.
                self.cuda_streams[slot].synchronize()
            with _COMPUTING:
                results = self.run_pipeline(number, indices, slot, events[slot])
            self.check(indices)
            if not self._offer((slot, indices, results)):
                return
            if ffcv.IS_CUDA:
                # There was room, so the consumer has asked for batch number - batches_ahead
                # and has submitted its work on the one before: the one in the next slot.
                events[(slot + 1) % ring] = torch.cuda.Event()  # type: ignore[no-untyped-call]
                events[(slot + 1) % ring].record(self.current_stream)

    def _offer(self, item: Any) -> bool:
        """Puts ``item`` into the queue; False if the consumer left instead."""
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(item, timeout=WATCH_S)
                return True
            except queue.Full:
                continue
        return False

    def take(self) -> tuple[NDArray[np.uint64], tuple[torch.Tensor, ...]] | None:
        """The next batch: (its sample indices (B,), FFCV's results); None after the last."""
        while not self.terminate_event.is_set():
            # Asked before the look into the queue: what a dead thread left is all there is.
            alive = self.is_alive()
            try:
                item = self.output_queue.get(timeout=WATCH_S if alive else 0.001)
            except queue.Empty:
                if alive:
                    continue
                raise self.error or RuntimeError("the loader's thread ended early") from None
            if item is None:
                if self.error is not None:
                    raise self.error
                return None
            slot, indices, results = item
            if ffcv.IS_CUDA:
                self.current_stream.wait_stream(self.cuda_streams[slot])
            return indices, results
        raise RuntimeError("this epoch of the loader was ended")

    def stop(self) -> None:
        """Ends the thread, in the middle of an epoch too, and waits until it has ended."""
        self.terminate_event.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self.output_queue.get_nowait()
        if self.ident is not None and self is not threading.current_thread():
            self.join()
        self.close()
