"""Real clusters of Dask and Ray on loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.kit.command import LONGEST_S, command_line, descendants, environment, free_port


@dataclass
class Server:
    """Processes of a cluster that end with the block that holds them."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, command: Sequence[str], **more: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment(**more), cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def until(self, what: str, ready: Callable[[], bool]) -> None:
        """Waits until ``ready``; fails with the log of the processes."""
        end = time.monotonic() + LONGEST_S
        while not ready():
            if time.monotonic() > end or self.processes[0].poll() is not None:
                raise AssertionError(f"{what} did not come:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Kills all of them, and the processes that they started."""
        living = [one.pid for one in self.processes if one.poll() is None]
        for pid in [*living, *(child for one in living for child in descendants(one))]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait(LONGEST_S)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Server]:
    """The processes of a cluster, until the block ends."""
    server = Server(folder)
    try:
        yield server
    finally:
        server.stop()


class DaskCluster:
    """A scheduler and three worker processes, each of which a nanny starts again."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.options = ["--backend", "dask", "--address", self.address]
        program = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"]
        place = ["--host", "127.0.0.1", "--port", self.address.rpartition(":")[2]]
        dashboard = ["--dashboard-address", "127.0.0.1:0"]
        self.scheduler = server.start([*program, *place, *dashboard])
        server.start(self._worker("--nworkers", "3"))
        self.wait(3)

    def _worker(self, *more: str) -> list[str]:
        return [
            sys.executable, "-m", "distributed.cli.dask_worker", self.address,
            "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard", "--dashboard-address",
            "127.0.0.1:0", "--local-directory", str(self.server.folder), *more,
        ]  # fmt: skip

    def wait(self, workers: int) -> None:
        self.server.until("the workers", lambda: len(self.workers()) == workers)

    @contextlib.contextmanager
    def one_more(self, *before: str, **more: str) -> Iterator[None]:
        """One more worker in the block, with other words before its command."""
        self.wait(3)
        worker = self.server.start([*before, *self._worker("--no-nanny")], **more)
        try:
            self.wait(4)
            yield
        finally:
            worker.kill()
            worker.wait()
            self.wait(3)

    def workers(self) -> list[int]:
        """The processes of the workers."""
        import distributed

        client: Any = distributed.Client
        with contextlib.closing(client(self.address, timeout=LONGEST_S, set_as_default=False)) as c:
            return list(c.run(os.getpid).values())

    def head(self) -> int:
        """The process without which there is no cluster."""
        return self.scheduler.pid


class RayCluster:
    """A head of Ray with two processors; skips the test where Ray itself does not start."""

    def __init__(self, server: Server) -> None:
        address = f"127.0.0.1:{free_port()}"
        self.options = ["--backend", "ray", "--address", address]
        self.process = server.start([
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
            "--node-ip-address", "127.0.0.1", "--port", address.rpartition(":")[2],
            "--num-cpus", "2", "--include-dashboard", "false", "--include-log-monitor", "false",
            "--disable-usage-stats", "--object-store-memory", str(128 << 20),
            "--temp-dir", str(server.folder),
        ])  # fmt: skip
        try:
            server.until("the head", lambda: bool(self._named("raylet")))
        except AssertionError as error:
            pytest.skip(f"Ray does not start on this machine: {error}")

    def _named(self, words: str) -> list[int]:
        return [one for one in descendants(self.process.pid) if words in command_line(one)]

    def workers(self) -> list[int]:
        """The processes of the workers that run a chunk."""
        return self._named("ray::_run")

    def head(self) -> int:
        """The process without which there is no cluster."""
        return self._named("gcs_server")[0]
