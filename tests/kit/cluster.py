"""Real clusters of Dask and Ray on loopback, and the command line that works on them."""

from __future__ import annotations

import contextlib
import hashlib
import os
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
_PROGRESS = re.compile(r"(crop|stats|build): \d+ of \d+")  # on a slow machine
_LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray listens on loopback only, and looks there
    "RAY_USAGE_STATS_ENABLED": "0",
    "DASK_LOGGING__DISTRIBUTED": "warning",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # only for the clusters of these tests
}


def environment(**more: str) -> dict[str, str]:
    """This process's, in which this checkout is what ``imagenet_prep`` is."""
    return {**os.environ, **_LOOPBACK, "PYTHONPATH": str(REPOSITORY)} | more


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it said, without how far it was."""

    status: int
    out: str
    err: str


class EndedFirstError(AssertionError):
    """A process was done before it could be struck: a fast machine."""


class Running:
    """``imagenet-prep``, or some lines of Python, in a process of its own."""

    def __init__(self, *arguments: object, code: str = "", **more: str) -> None:
        program = ["-c", code] if code else ["-m", "imagenet_prep"]
        self.process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            cwd=REPOSITORY,
            env=environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def end(self) -> Ended:
        """Waits for its end; whatever else happens it is gone after that."""
        with self.process:
            try:
                out, err = self.process.communicate(timeout=LONGEST_S)
            finally:
                self.process.kill()
        said = [line for line in err.splitlines() if not _PROGRESS.fullmatch(line)]
        return Ended(self.process.returncode, out, "\n".join(said))

    def strike(self, victim: Callable[[], int | None], number: int = signal.SIGKILL) -> int:
        """Sends a signal to the first process that ``victim`` finds -> its number.

        Raises EndedFirstError when this process ends before there is one.
        """
        while self.process.poll() is None:
            found = victim()
            if found is not None:
                os.kill(found, number)
                return found
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.005)
        raise EndedFirstError(f"it ended before it could be struck: {self.end()}")


MAPS = """
import contextlib, math, operator, os, sys
from imagenet_prep.core.errors import ToolError
from imagenet_prep.workers.cluster import open_workers
def main():
    with open_workers(sys.argv[2], sys.argv[4], None, reads=[]) as workers:
        print(workers.count)
        results = list(workers.map_ordered(operator.neg, range(100), chunk=3))
        assert results == [-number for number in range(100)], results
        results = list(workers.map_unordered(operator.neg, range(20), chunk=1))
        assert sorted(results) == [-number for number in reversed(range(20))], results
        assert set(workers.map_unordered(os.getenv, ["OMP_NUM_THREADS"])) == {"1"}
        with contextlib.closing(workers.map_ordered(operator.neg, iter(range(10**9)))) as endless:
            assert next(endless) == 0
        try:
            list(workers.map_ordered(math.factorial, [3, -1]))
        except ValueError as error:
            assert "negative" in str(error), error
        else:
            raise AssertionError("an exception was lost")
        try:
            list(workers.map_ordered(os._exit, [9]))
        except ToolError as error:
            print(error)
if __name__ == "__main__":
    main()
"""
"""Everything that maps promise, in a process that is given a cluster's options."""


def prep(*arguments: object, **more: str) -> Ended:
    """Runs ``imagenet-prep`` to its end, with more variables in its environment."""
    return Running(*arguments, **more).end()


def must(*arguments: object, **more: str) -> Ended:
    """Runs ``imagenet-prep`` to a good end at which it has said nothing on stderr."""
    ended = prep(*arguments, **more)
    assert (ended.status, ended.err) == (0, ""), ended
    return ended


def one_sentence(ended: Ended, status: int = 1) -> str:
    """What a run that failed said: one line, no traceback."""
    assert ended.status == status, ended
    lines = ended.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("imagenet-prep: "), ended.err
    return lines[0]


def contents(folder: Path) -> dict[str, str]:
    """Every file below ``folder``, hidden ones included -> the digest of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
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
    """Processes of a cluster, started here and gone with the block that holds them."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, name: str, command: Sequence[str], **more: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env={**environment(), **more}, cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def stop(self) -> None:
        """Kills all of them, and what they have started."""
        everybody = [
            pid for one in self.processes if one.poll() is None
            for pid in (one.pid, *descendants(one.pid))
        ]  # fmt: skip
        for pid in everybody:
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


def until(what: str, ready: Callable[[], bool], server: Server) -> None:
    """Waits until ``ready``; fails with what the cluster's processes said."""
    end = time.monotonic() + LONGEST_S
    while not ready():
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come:\n{server.log()}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.processes[0].wait(0.05)


def one_of(busy: list[int]) -> int | None:
    """The first of some processes, or None where there is none."""
    return next(iter(busy), None)


@dataclass
class Held:
    """A worker that is stopped in the middle of a chunk, so that no run ends without it."""

    busy: Callable[[], list[int]]
    worker: int | None = None

    def catch(self) -> int | None:
        """Stops one of the ``busy`` -> its number; None where it was done just then."""
        found = one_of(self.busy())
        if found is None:
            return None
        os.kill(found, signal.SIGSTOP)
        time.sleep(0.2)  # what it had just sent arrives
        if found not in self.busy():
            os.kill(found, signal.SIGCONT)
            return None
        self.worker = found
        return found

    def free(self) -> None:
        """Lets it go on, and waits for its end: it finishes its chunk, and its cluster has gone."""
        if self.worker is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.worker, signal.SIGCONT)
        end = time.monotonic() + LONGEST_S
        while command_line(self.worker) and time.monotonic() < end:
            time.sleep(0.02)


class DaskCluster:
    """A scheduler and worker processes, each watched by a nanny that starts it again."""

    def __init__(self, server: Server, workers: int) -> None:
        self.server, self.workers = server, workers
        self.port = free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.options = ["--backend", "dask", "--address", self.address]
        self.start_scheduler()
        self.start_workers()

    def start_scheduler(self) -> None:
        self.scheduler = self.server.start("scheduler", [
            sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1",
            "--port", str(self.port), "--no-dashboard", "--dashboard-address", "127.0.0.1:0",
        ])  # fmt: skip

    def start_workers(self) -> None:
        self.server.start("workers", self._worker("--nworkers", str(self.workers)))
        self.wait()

    def wait(self, workers: int = 0) -> None:
        """Until there are so many workers, or those that belong here."""
        until("the workers", lambda: len(self.names()) == (workers or self.workers), self.server)

    def _worker(self, *more: str) -> list[str]:
        return [
            sys.executable, "-m", "distributed.cli.dask_worker", self.address,
            "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard", "--dashboard-address",
            "127.0.0.1:0", "--local-directory", str(self.server.folder), *more,
        ]  # fmt: skip

    @contextlib.contextmanager
    def one_more(self, *before: str, **more: str) -> Iterator[None]:
        """One more worker in the block, with other words before its command."""
        self.wait()
        worker = self.server.start("odd", [*before, *self._worker("--no-nanny")], **more)
        try:
            self.wait(self.workers + 1)
            yield
        finally:
            worker.kill()
            worker.wait()
            self.wait()

    def names(self) -> dict[str, int]:
        """The workers that the scheduler knows of: address -> process."""
        import distributed

        client: Any = distributed.Client
        with contextlib.closing(client(self.address, timeout=LONGEST_S, set_as_default=False)) as c:
            return dict(c.run(os.getpid))

    @contextlib.contextmanager
    def watched(self) -> Iterator[Callable[[], list[int]]]:
        """A function that finds the workers which are in the middle of a chunk."""
        import distributed

        client: Any = distributed.Client
        with contextlib.closing(client(self.address, timeout=LONGEST_S, set_as_default=False)) as c:
            processes = dict(c.run(os.getpid))

            def busy() -> list[int]:
                def names(dask_scheduler: Any) -> list[str]:
                    return [
                        name
                        for name, worker in dask_scheduler.workers.items()
                        if any("run_chunk" in str(task.key) for task in worker.processing)
                    ]

                return [processes[name] for name in c.run_on_scheduler(names)]

            yield busy


class RayCluster:
    """A head of Ray with two processors; skips the test where Ray itself does not start."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.options = ["--backend", "ray", "--address", self.address]
        self.head = server.start("head", [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
            "--node-ip-address", "127.0.0.1", "--port", str(self.port), "--num-cpus", "2",
            "--include-dashboard", "false", "--include-log-monitor", "false",
            "--disable-usage-stats", "--object-store-memory", str(128 << 20),
            "--temp-dir", str(server.folder),
        ])  # fmt: skip
        try:
            until("the head", lambda: self._is_there() or self.head.poll() is not None, server)
        except AssertionError as error:
            pytest.skip(f"Ray does not start on this machine: {error}")
        if self.head.poll() is not None:
            pytest.skip(f"Ray does not start on this machine: {server.log()[-500:]}")

    def _is_there(self) -> bool:
        return any("raylet" in command_line(one) for one in descendants(self.head.pid))

    def busy(self) -> list[int]:
        """The workers that are in the middle of a chunk."""
        everybody = descendants(self.head.pid)
        return [one for one in everybody if "ray::run_chunk" in command_line(one)]

    def store(self) -> int:
        """The process that the cluster's state is in."""
        everybody = descendants(self.head.pid)
        return next(one for one in everybody if "gcs_server" in command_line(one).split(" ")[0])


def _namespaces() -> bool:
    try:
        done = subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/tmp"],
            capture_output=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


needs_namespaces = pytest.mark.skipif(
    not _namespaces(), reason="needs unshare with user name spaces, to hide a disk"
)
