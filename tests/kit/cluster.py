"""Real clusters of Dask and Ray on loopback, and the command line that works on them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LONGEST_S = 240
_PROGRESS = re.compile(
    r"(crop|stats|build): \d+ of \d+|(layout|note:) .*"
)  # the former: slow machine
_LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray listens on loopback only, and looks there
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # only for the clusters of these tests
}


def environment(**more: str) -> dict[str, str]:
    """This process's environment, in which this checkout is ``imagenet_prep``."""
    return {**os.environ, **_LOOPBACK, "PYTHONPATH": str(REPOSITORY)} | more


@dataclass(frozen=True)
class Ended:
    """Exit status and output of a process, without progress and notices."""

    status: int
    out: str
    err: str


class Running:
    """``imagenet-prep``, or some lines of Python, in a process of its own."""

    def __init__(self, *arguments: object, code: str = "", **more: str) -> None:
        program = ["-c", code] if code else ["-m", "imagenet_prep"]
        self.process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)], cwd=REPOSITORY,
            env=environment(**more), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def end(self) -> Ended:
        """Waits for its end; kills it after ``LONGEST_S``."""
        with self.process:
            try:
                out, err = self.process.communicate(timeout=LONGEST_S)
            finally:
                self.process.kill()
        lines = [line for line in err.splitlines() if not _PROGRESS.fullmatch(line)]
        return Ended(self.process.returncode, out, "\n".join(lines))

    def strike(self, victim: Callable[[], int | None]) -> int:
        """Kills the first process that ``victim`` finds while this one runs -> its number."""
        while self.process.poll() is None:
            found = victim()
            if found is not None:
                os.kill(found, signal.SIGKILL)
                return found
            time.sleep(0.005)
        raise AssertionError(f"it ended before a process was killed: {self.end()}")


def prep(*arguments: object, **more: str) -> Ended:
    """Runs ``imagenet-prep`` to its end, with more variables in its environment."""
    return Running(*arguments, **more).end()


def must(*arguments: object) -> None:
    """Runs ``imagenet-prep``, which succeeds and prints nothing on stderr."""
    ended = prep(*arguments)
    assert (ended.status, ended.err) == (0, ""), ended


def one_message(ended: Ended, status: int = 1) -> str:
    """The error message of a run that failed: one line, no traceback."""
    assert ended.status == status, ended
    lines = ended.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("imagenet-prep: "), ended.err
    return lines[0]


def contents(folder: Path) -> dict[str, str]:
    """Every file below ``folder`` but the crop journal -> the digest of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(("crop.jsonl", "crop.sqlite"))
    }


def free_port() -> int:
    """A port that nobody uses, outside of the range from which the system takes ports."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def descendants(process: int) -> list[int]:
    """The processes that ``process`` has started, and those that these have."""
    found = []
    for tasks in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, tasks.read_text().split()):
                found += [child, *descendants(child)]
    return found


def command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


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


def _namespaces() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/tmp"]
    try:
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


needs_namespaces = pytest.mark.skipif(
    not _namespaces(), reason="needs unshare with user name spaces, to hide a disk"
)
