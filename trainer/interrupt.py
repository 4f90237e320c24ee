"""Signals: a run ends after its step with a checkpoint, any other command ends at once.

Python runs signal handlers between bytecodes only, and one backward pass of a large batch is a
single call of many seconds. A thread therefore watches for signals too: if KeyboardInterrupt has
not ended the process in time, or a run gets the same signal twice, it removes temporary files and
ends the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from imagenet_prep.core.errors import ToolError
from trainer import INTERRUPTED_MESSAGE

GRACE_S = 1.2
REPEAT_S = 0.5
"""The same signal again within this time is the same request: a system may send a signal at the
death of a parent once for each of its threads."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STATUS_OF = {number: 128 + number for number in SIGNALS}
"""Signal -> exit status: 130 for Ctrl-C, 143 SIGTERM, 129 SIGHUP, 138 SIGUSR1, 140 SIGUSR2."""
INTERRUPTED = STATUS_OF[signal.SIGINT]
TIME_LIMIT = 124
"""The exit status of a run that --time-limit has ended, as that of timeout(1)."""
_PR_SET_PDEATHSIG = 1


class StoppedError(ToolError):
    """A run that ended early because it was asked to, with that exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__("run.time_limit" if status == TIME_LIMIT else "run.interrupted", message)
        self.status = status


class Stop:
    """A request to end a run, by a signal or because its time is over.

    ``limit_s``: seconds until the run is to have ended; ``reserve_s`` of them are left for
    writing the checkpoint.
    """

    def __init__(self, limit_s: float | None = None) -> None:
        self.deadline = None if limit_s is None else time.monotonic() + limit_s
        self.reserve_s = 0.0
        self._status = 0

    @property
    def status(self) -> int:
        """0, or the exit status that the process is to end with."""
        late = self.deadline is not None and time.monotonic() + self.reserve_s >= self.deadline
        return self._status or (TIME_LIMIT if late else 0)

    def request(self, status: int) -> None:
        """Asks for the end with ``status``; the first request counts."""
        self._status = self._status or status

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """The first of SIGNALS becomes a request; the same signal again ends the process.

        In the main thread only, where Python handles signals. An ignored SIGHUP (nohup) stays
        ignored, except under torchrun, which passes it on and then kills.
        """

        first: dict[int, float] = {}

        def handle(number: int, _: FrameType | None) -> None:
            status = STATUS_OF[signal.Signals(number)]
            if is_repeated(first, number):  # and no InterruptGuard has ended the process
                raise StoppedError("ended at once by a second signal", status)
            self.request(status)

        under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        before = {
            number: signal.signal(number, handle)
            for number in SIGNALS
            if under_torchrun or signal.getsignal(number) != signal.SIG_IGN
        }
        try:
            if under_torchrun:
                end_with_parent()
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def is_repeated(first: dict[int, float], number: int) -> bool:
    """Whether signal ``number`` came before, not just now; ``first`` has the times by signal."""
    now = time.monotonic()
    return now - first.setdefault(number, now) > REPEAT_S


def end_with_parent() -> None:
    """This process gets SIGTERM when its parent dies (Linux): ranks do not outlive torchrun."""
    if sys.platform.startswith("linux"):
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # it died before the call
            os.kill(os.getpid(), signal.SIGTERM)


class InterruptGuard:
    """Watches for signals in a thread; ``folders`` are cleared of temporary files at the end.

    With a ``stop_request`` the run ends by itself after the first signal, and the same signal
    again ends the process at once; without one SIGINT does, after a grace period.
    """

    def __init__(self) -> None:
        self.folders: list[Path] = []
        self.stop_request: Stop | None = None

    def start(self) -> InterruptGuard:
        """Begins to watch; call it in the main thread."""
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._thread = threading.Thread(target=self._watch, name="interrupt-guard", daemon=True)
        # The C-level handler writes the signal's number here at once.
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends the watch and closes its sockets."""
        signal.set_wakeup_fd(-1)
        self._write.close()
        self._thread.join()
        self._read.close()

    def _watch(self) -> None:
        first: dict[int, float] = {}
        while True:
            received = self._read.recv(1)
            if not received:
                return
            number = received[0]
            if self.stop_request is not None:
                if number in STATUS_OF and is_repeated(first, number):
                    self._leave(STATUS_OF[signal.Signals(number)])
            elif number == signal.SIGINT:
                time.sleep(GRACE_S)
                self._leave(INTERRUPTED)

    def _leave(self, status: int) -> None:
        self.sweep()
        with contextlib.suppress(OSError, ValueError, AttributeError):  # no terminal any more
            sys.stderr.write(f"\ntrainer: {INTERRUPTED_MESSAGE}\n")
            sys.stderr.flush()
        os._exit(status)

    def sweep(self) -> None:
        """Removes what an interrupted ``publish`` may have left in the watched folders."""
        for folder in self.folders:
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)


guard = InterruptGuard()
"""The guard of this process, which ``trainer.cli.main.main`` starts."""
