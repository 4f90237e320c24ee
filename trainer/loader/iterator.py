"""FFCV's thread, guarded: an end for every case, and an error that reaches the consumer."""

from __future__ import annotations

import contextlib
import functools
import queue
import sys
import threading
import unittest.mock
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.loader.engine import ffcv, no_deprecations, numba, same_threads
from trainer.loader.tables import BetonInfo

# How often a waiting side looks whether the other one is still there, in seconds.
WATCH_S = 0.1


class _NoMemory(contextlib.nullcontext[None]):
    """In the place of what FFCV calls a memory manager: our kernels read the file themselves.

    FFCV's maps the file, and a process that reads a map of a file that was cut is ended by
    the system; it also makes sets and dictionaries of all samples and pages when it is made:
    3 s and 640 MB for ImageNet.
    """

    state = ()

    def __init__(self, _reader: Any) -> None:
        super().__init__()

    def compile_reader(self) -> None:
        """FFCV's question for a function that reads a sample; nothing here calls one."""

    def schedule_epoch(self, _batches: Any) -> _NoMemory:
        """FFCV's announcement of an epoch -> its context."""
        return self

    def start_batch(self, _number: int) -> None:
        """FFCV's announcement of a batch."""


class _Tables(SimpleNamespace):
    """In the place of FFCV's reader: the checked tables, of one file or of several as one.

    FFCV's would read a file's tables a second time, and knows of no more files than one.
    """

    def __init__(self, info: BetonInfo) -> None:
        super().__init__(
            num_samples=info.samples,
            page_size=info.page_size_bytes,
            handlers=dict(info.fields),
            metadata=info.metadata,
        )


# Numba's fallback threading layer ends the process when two threads compute at once.
_COMPUTING = threading.Lock()


def make_loader(name: str, info: BetonInfo, batch_size: int, jobs: int, **options: Any) -> Any:
    """FFCV's loader over the samples of ``info``, without side effects in the process.

    FFCV's own compiling is switched off while it puts the loader together: our kernels are
    compiled already, its copying of the labels needs none, and each loader would wait for
    seconds.
    """
    module = sys.modules[ffcv.Loader.__module__]
    no_memory = unittest.mock.patch.object(module, "OSCacheManager", _NoMemory)
    no_reader = unittest.mock.patch.object(module, "Reader", lambda *_: _Tables(info))
    no_compiler = unittest.mock.patch.object(ffcv.Compiler, "is_enabled", False)
    with same_threads(), no_deprecations(), no_memory, no_reader, no_compiler:
        loader = ffcv.Loader(
            name, batch_size, num_workers=jobs, os_cache=True, seed=0, drop_last=False, **options
        )  # fmt: skip
    # The ring of buffers is the loader's: FFCV would ask the system for a new one each epoch,
    # hundreds of megabytes whose first use costs more than their filling.
    loader.graph.allocate_memory = functools.cache(loader.graph.allocate_memory)
    return loader


class Epoch(ffcv.EpochIterator):  # type: ignore[misc, name-defined]
    """FFCV's thread that fills the ring of batches, with an end for every case.

    ``take`` gives (sample indices, results) of the next batch, None at the end, or raises
    what happened in the thread. ``batches`` are the sample indices of each batch, none longer
    than the loader's batch size; the thread asks for each when its turn has come.
    ``check(indices)`` is called in the thread after each batch and raises if a sample failed.
    ``named(error, indices)`` turns what ended the thread (None: nothing that it could say)
    while it made that batch into what ``take`` raises. FFCV's own loop ends silently on any
    error, and waits for ever with a last word that nobody takes.
    """

    def __init__(
        self,
        loader: Any,
        batches: Iterable[NDArray[np.uint64]],
        check: Callable[[NDArray[Any]], None],
        named: Callable[[BaseException | None, NDArray[Any]], BaseException],
    ) -> None:
        self.check, self.named = check, named
        self.error: BaseException | None = None
        self.making = np.empty(0, np.uint64)
        super().__init__(loader, np.empty(0, np.uint64))
        self.iter_ixes = iter(batches)

    def start(self) -> None:
        """FFCV starts its thread while it is being made; see ``begin``."""

    def begin(self) -> None:
        """Starts the thread."""
        if ffcv.IS_CUDA:
            # The ring is that of the epoch before, whose copies and steps may still be queued,
            # and what waits for them slot by slot is this epoch's own.
            torch.cuda.synchronize()
        super().start()

    def compile(self) -> None:
        """Runs the pipeline on an empty batch, in the caller's thread: compiles, or loads."""
        with same_threads(), _COMPUTING:
            numba.set_num_threads(self.loader.num_workers)
            self.run_pipeline(0, np.empty(0, np.uint64), 0, None)

    def run(self) -> None:
        """The thread: fills slot after slot until the epoch, or the consumer, is done."""
        try:
            # Numba counts threads per thread; torch's count is the caller's business.
            numba.set_num_threads(self.loader.num_workers)
            self._fill()
        except BaseException as error:  # noqa: BLE001 - raised again by take()
            self.error = self.named(error, self.making)
        self._offer(None)

    def _fill(self) -> None:
        ring = self.loader.batches_ahead + 2
        events: list[Any] = [None] * ring
        for number, indices in enumerate(self.iter_ixes):
            if self.terminate_event.is_set():
                return
            slot, self.making = number % ring, indices
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
                self.error = self.error or self.named(None, self.making)
                item = None
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
