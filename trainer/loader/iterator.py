"""The thread that fills the ring of batches: an end for every case, and errors that arrive."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from imagenet_prep.core.errors import ToolError
from trainer.views.draws import Draws

# How often a waiting side looks whether the other one is still there, in seconds.
WATCH_S = 0.1


class DamagedError(Exception):
    """A sample that does not decode: its index in the data set, and why."""

    def __init__(self, sample: int, reason: str) -> None:
        super().__init__(sample, reason)
        self.sample, self.reason = sample, reason


class Backend:
    """Makes batches into a ring of ``slots``. ``draws`` holds epoch and lighting; ``files``
    int64 takes the descriptors of the open files before an epoch begins."""

    slots: int
    draws: Draws
    files: NDArray[np.int64]

    def begin(self) -> None:
        """An epoch begins, in the consumer's thread; what was handed out before is done with."""

    def fill(self, slot: int, indices: NDArray[np.uint64]) -> None:
        """Makes a batch, in the loader's thread. Raises DamagedError, of this batch or of one
        of the two before it."""
        raise NotImplementedError

    def finish(self) -> None:
        """All batches of the epoch are made, in the loader's thread. Raises DamagedError."""

    def take(self, slot: int) -> tuple[Tensor, Tensor]:
        """(images, labels) of a filled slot, in the consumer's thread."""
        raise NotImplementedError

    def release(self, slot: int) -> None:
        """The consumer asks for the next batch, and is done with this one."""

    def close(self) -> None:
        """The epoch has ended, perhaps early, and its thread with it."""


class Filler(threading.Thread):
    """Fills slot after slot of a back end's ring with the batches of an epoch.

    ``take`` gives (slot, sample indices) of the next batch, None at the end, or raises what
    happened in the thread. ``batches`` are the sample indices of each batch; the thread asks
    for each when its turn has come. ``check(indices)`` is called in the thread after each batch
    and raises if it is not to be used. ``named(error, indices)`` turns what ended the thread
    (None: nothing known) while it made that batch into what ``take`` raises.
    """

    def __init__(
        self,
        backend: Backend,
        batches: Iterable[NDArray[np.uint64]],
        check: Callable[[NDArray[np.uint64]], None],
        named: Callable[[BaseException | None, NDArray[np.uint64]], BaseException],
    ) -> None:
        super().__init__(name="loader", daemon=True)
        self.backend, self.batches, self.check, self.named = backend, batches, check, named
        self.error: BaseException | None = None
        self.making = np.empty(0, np.uint64)
        # The consumer's slot and the one that is being filled come on top of what waits.
        self.ready: queue.Queue[tuple[int, NDArray[np.uint64]] | None] = queue.Queue(
            backend.slots - 2
        )
        self.ended = threading.Event()

    def run(self) -> None:
        """The thread: fills slots until the epoch, or the consumer, is done."""
        try:
            self._fill()
        except BaseException as error:  # noqa: BLE001 - raised again by take()
            self.error = self.named(error, self.making)
        self._offer(None)

    def _fill(self) -> None:
        for number, indices in enumerate(self.batches):
            if self.ended.is_set():
                return
            slot, self.making = number % self.backend.slots, indices
            self.backend.fill(slot, indices)
            self.check(indices)
            if not self._offer((slot, indices)):
                return
        self.backend.finish()

    def _offer(self, item: tuple[int, NDArray[np.uint64]] | None) -> bool:
        """Puts ``item`` into the queue; False if the consumer left instead."""
        while not self.ended.is_set():
            try:
                self.ready.put(item, timeout=WATCH_S)
                return True
            except queue.Full:
                continue
        return False

    def take(self) -> tuple[int, NDArray[np.uint64]] | None:
        """The next batch: (its slot, its sample indices); None after the last."""
        while not self.ended.is_set():
            # Asked before the look into the queue: what a dead thread left is all there is.
            alive = self.is_alive()
            try:
                item = self.ready.get(timeout=WATCH_S if alive else 0.001)
            except queue.Empty:
                if alive:
                    continue
                self.error = self.error or self.named(None, self.making)
                item = None
            if item is None and self.error is not None:
                raise self.error
            return item
        raise ToolError(
            "loader.iteration_ended",
            "this iteration of the loader was ended: it was closed, or another iteration began. "
            "A loader is iterated once at a time; make a second loader for a second iteration.",
        )

    def stop(self) -> None:
        """Ends the thread, in the middle of an epoch too, and waits until it has ended."""
        self.ended.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self.ready.get_nowait()
        if self.ident is not None and self is not threading.current_thread():
            self.join()
        self.backend.close()
