"""Ctrl-C that ends within two seconds, even in the middle of a long computation.

Python runs its signal handlers between bytecodes only, and one backward pass of a large
batch is a single call of many seconds. A thread therefore watches for the signal too:
if the ordinary KeyboardInterrupt has not ended the process in time, it removes the
temporary files and ends it.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

GRACE_S = 1.2
INTERRUPTED = 130


class InterruptGuard:
    """Watches for SIGINT in a thread; ``folders`` are swept of temporary files at the end."""

    def __init__(self, farewell: Callable[[], None]) -> None:
        self.folders: list[Path] = []
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
        while True:
            received = self._read.recv(1)
            if not received:
                return
            if received[0] == signal.SIGINT:
                break
        threading.Event().wait(GRACE_S)
        self.leave()

    def leave(self) -> None:
        """Sweeps the temporary files, says goodbye and ends the process with status 130."""
        self.sweep()
        self._farewell()
        os._exit(INTERRUPTED)

    def sweep(self) -> None:
        """Removes what an interrupted ``publish`` may have left in the watched folders."""
        for folder in self.folders:
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
