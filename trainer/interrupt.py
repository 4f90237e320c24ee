"""Ctrl-C and SIGTERM: a run ends after its step with a checkpoint, anything else at once.

Python runs its signal handlers between bytecodes only, and one backward pass of a large
batch is a single call of many seconds. A thread therefore watches for signals too: if
the ordinary KeyboardInterrupt has not ended the process in time, or a run that finishes
its step gets a second signal, it removes the temporary files and ends the process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from imagenet_prep.core.errors import ToolError

GRACE_S = 1.2
INTERRUPTED = 130
TERMINATED = 143
STATUS_OF = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


class StoppedError(ToolError):
    """A run that ended before its time because it was asked to; ``status`` is 130 or 143."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class Stop:
    """A wish to end: 0, or the exit status that the process is to end with."""

    def __init__(self) -> None:
        self.status = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While it lasts, the first SIGINT or SIGTERM is a wish and a second one of its kind
        ends: torchrun adds a SIGTERM of its own to the terminal's SIGINT.

        In the main thread only, where Python handles signals.
        """

        def handle(number: int, _: FrameType | None) -> None:
            status = STATUS_OF[signal.Signals(number)]
            if self.status == status:  # where no guard's thread has ended the process
                raise StoppedError("ended at once", status)
            self.status = self.status or status

        before = {number: signal.signal(number, handle) for number in STATUS_OF}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class InterruptGuard:
    """Watches for signals in a thread; ``folders`` are swept of temporary files at the end.

    Where there is a ``stop_request`` the run ends by itself after the first signal, and the
    second one ends the process at once; elsewhere SIGINT does, after a grace.
    """

    def __init__(self, farewell: Callable[[], None]) -> None:
        self.folders: list[Path] = []
        self.stop_request: Stop | None = None
        self._farewell = farewell
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._thread = threading.Thread(target=self._watch, name="interrupt-guard", daemon=True)

    def start(self) -> InterruptGuard:
        """Begins to watch; call it in the main thread."""
        # The C-level handler writes the signal's number here at once.
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends the watch and gives its sockets back."""
        signal.set_wakeup_fd(-1)
        self._write.close()
        self._thread.join()
        self._read.close()

    def _watch(self) -> None:
        wishes: list[int] = []
        while True:
            received = self._read.recv(1)
            if not received:
                return
            if self.stop_request is not None:
                if received[0] in wishes:
                    self.leave(STATUS_OF[signal.Signals(received[0])])
                wishes += [received[0]] if received[0] in STATUS_OF else []
            elif received[0] == signal.SIGINT:
                threading.Event().wait(GRACE_S)
                self.leave(INTERRUPTED)

    def leave(self, status: int) -> None:
        """Sweeps the temporary files, says goodbye and ends the process."""
        self.sweep()
        self._farewell()
        os._exit(status)

    def sweep(self) -> None:
        """Removes what an interrupted ``publish`` may have left in the watched folders."""
        for folder in self.folders:
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
