"""What the benchmarks share: contenders that run in turns, the table, the record.

Each contender has processes of its own (``tools/bench/contender.py``), so that no library, thread
count or memory of one touches another; the imports and preparations of all are over before
the first lap. A round is one lap of each, in an order that turns from round to round. One
lap before the first round warms up and is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
BENCH_FOLDER = REPOSITORY / ".bench"
ROUNDS = 5
_WATCH_EVERY_S = 0.05
# Libraries count their threads by these; a contender that is to have more asks for them.
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VIPS_CONCURRENCY"), "1"
)


class FailedError(Exception):
    """A contender that did not run, and why: a benchmark has to mend it."""


class AbsentError(FailedError):
    """A contender that is not installed, and how it would be."""


@dataclass(frozen=True)
class Entrant:
    """Who runs: ``function`` (``module:function`` of tools) in one process per share.

    A share is the arguments of one process; its laps are the work of all shares together.
    """

    name: str
    function: str
    shares: Sequence[Mapping[str, Any]]
    python: Path = Path(sys.executable)


@dataclass(frozen=True)
class Lap:
    """One lap: wall time, processor time of all processes (None where it is not known),
    images, and the peak memory of a worker (a process that a share's process started)."""

    wall_s: float
    cpu_s: float | None
    count: int
    peak_mb: float
    facts: tuple[Mapping[str, Any], ...]


class _Process:
    """One process of a contender; ``hear`` waits for its next answer, never for ever."""

    def __init__(self, entrant: Entrant, share: Mapping[str, Any]) -> None:
        if not entrant.python.exists():
            raise AbsentError("its environment is missing (make bench-env)")
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._buffer = b""
        self.process = subprocess.Popen(
            [str(entrant.python), "-m", "tools.bench.contender", entrant.function],
            cwd=REPOSITORY, env={**os.environ, **_ONE_THREAD}, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words,
        )  # fmt: skip
        self.say(json.dumps(share))

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise FailedError(self._last_words()) from None

    def hear(self, deadline: float, peaks: Peaks | None = None) -> dict[str, Any]:
        assert self.process.stdout is not None
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise FailedError("did not end in time")
            wait = left if peaks is None else min(left, _WATCH_EVERY_S)
            if select.select([self.process.stdout], [], [], wait)[0]:
                part = os.read(self.process.stdout.fileno(), 1 << 16)
                if not part:
                    raise FailedError(self._last_words())
                self._buffer += part
            elif peaks is not None:
                peaks.look(self.process.pid)
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "absent" in answer:
            raise AbsentError(answer["absent"])
        return answer

    def _last_words(self) -> str:
        status = self.process.wait(timeout=10)
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        return f"ended with status {status}: {last.strip()[:200]}"

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._words.close()
        self.process.wait()


class Peaks:
    """The largest memory of any process below the ones that were looked at, in MB."""

    def __init__(self) -> None:
        self.worker_mb = 0.0

    def look(self, root: int) -> None:
        """Reads the peaks of all processes that ``root`` has started (Linux only)."""
        for pid in process_tree(root)[1:]:
            with contextlib.suppress(OSError, StopIteration):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                peak = next(line for line in lines if line.startswith("VmHWM:"))
                self.worker_mb = max(self.worker_mb, int(peak.split()[1]) / 1024)


def process_tree(root: int) -> list[int]:
    """``root`` and all processes below it, as far as the system tells (Linux)."""
    found = [root]
    for pid in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found.extend(int(child) for child in (task / "children").read_text().split())
    return found


def tree_cpu_s(root: int) -> float | None:
    """Processor seconds of ``root``, of what it has started and of what has ended of that."""
    if not Path("/proc/self/stat").exists():
        return None
    ticks = 0
    for pid in process_tree(root):
        with contextlib.suppress(OSError):
            numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(number) for number in numbers[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


class Crew:
    """The processes of one entrant; a context manager that leaves none behind."""

    def __init__(self, entrant: Entrant) -> None:
        self.entrant = entrant
        self.versions: dict[str, str] = {}
        self._processes: list[_Process] = []
        try:
            for share in entrant.shares:
                self._processes.append(_Process(entrant, share))
        except BaseException:
            self.close()
            raise

    def ready(self, timeout_s: float) -> None:
        """Waits until all have imported and prepared; raises FailedError if one cannot."""
        deadline = time.monotonic() + timeout_s
        for process in self._processes:
            self.versions = process.hear(deadline)["versions"]

    def lap(self, timeout_s: float, watch: bool = False) -> Lap:
        """One lap of all processes together; raises FailedError if it does not end."""
        deadline = time.monotonic() + timeout_s
        for process in self._processes:
            process.say("reset")
            process.hear(deadline)
        peaks = Peaks() if watch else None
        before = [tree_cpu_s(process.process.pid) for process in self._processes]
        start = time.perf_counter()
        for process in self._processes:
            process.say("lap")
        facts = tuple(process.hear(deadline, peaks) for process in self._processes)
        wall_s = time.perf_counter() - start
        after = [tree_cpu_s(process.process.pid) for process in self._processes]
        spent = [b - a for a, b in zip(before, after, strict=True) if a is not None and b]
        count = sum(int(fact["count"]) for fact in facts)
        peak_mb = peaks.worker_mb if peaks else 0.0
        return Lap(wall_s, sum(spent) if spent else None, count, peak_mb, facts)

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.close()
        self._processes = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Options:
    """The command line. ``work`` is a folder for data, kept between runs."""

    smoke: bool
    rounds: int
    json: Path | None
    images: Path | None
    work: Path
    only: str
    start_s: float
    lap_s: float


def option_parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has; one may add its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--smoke", action="store_true", help="a short run on a few images")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="laps of each (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="real images to use")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="kept between runs")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only races with this in the name"
    )
    parser.add_argument("--lap-timeout", type=float, default=600, metavar="SECONDS")
    return parser


def options(description: str, arguments: Sequence[str] | None = None) -> Options:
    """The command line of a benchmark without options of its own."""
    parser = option_parser(description)
    return options_of(parser, parser.parse_args(arguments))


def options_of(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Options:
    """What was parsed -> what every benchmark is told; wrong usage ends the program."""
    if given.rounds < 1:
        parser.error("--rounds must be at least 1")
    if given.images is not None and not given.images.is_dir():
        parser.error(f"{given.images}: no such folder; name a folder of images")
    return Options(
        smoke=given.smoke,
        rounds=1 if given.smoke else given.rounds,
        json=given.json,
        images=given.images,
        work=given.work or BENCH_FOLDER / "work",
        only=given.only,
        start_s=300,
        lap_s=300 if given.smoke else given.lap_timeout,
    )


@contextlib.contextmanager
def work_folder(given: Options) -> Iterator[Path]:
    """A folder for what a benchmark builds: ``--work``, or for a smoke test a passing one."""
    if not given.smoke:
        given.work.mkdir(parents=True, exist_ok=True)
        yield given.work.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Race:
    """The laps of each entrant; who was absent and why; those of them who failed."""

    title: str
    laps: dict[str, list[Lap]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)


def race(
    title: str,
    entrants: Sequence[Entrant],
    given: Options,
    *,
    watch: bool = False,
    warm_up: bool = True,
) -> Race:
    """All entrants in turns, ``given.rounds`` laps each after one to warm up.

    ``watch`` measures the memory of workers too, which costs a little time.
    """
    result = Race(title)
    with contextlib.ExitStack() as stack:
        crews: dict[str, Crew] = {}
        for entrant in entrants:
            with _absences(result, entrant.name):
                crews[entrant.name] = stack.enter_context(Crew(entrant))
        for name, crew in crews.items():
            with _absences(result, name):
                crew.ready(given.start_s)
                result.versions[name] = crew.versions
                if warm_up and not given.smoke:
                    crew.lap(given.lap_s)
        for number in range(given.rounds):
            names = list(crews)
            turn = number % len(names) if names else 0
            for name in names[turn:] + names[:turn]:
                if name in result.absent:
                    continue
                with _absences(result, name):
                    lap = crews[name].lap(given.lap_s, watch)
                    result.laps.setdefault(name, []).append(lap)
    for name in result.absent:
        result.laps.pop(name, None)
    return result


@contextlib.contextmanager
def _absences(result: Race, name: str) -> Iterator[None]:
    try:
        yield
    except FailedError as error:
        result.absent[name] = str(error)
        if not isinstance(error, AbsentError):
            result.failed.add(name)


def rate(laps: Sequence[Lap]) -> float:
    """ImageFiles per second: the median of the laps."""
    return statistics.median(lap.count / lap.wall_s for lap in laps)


def cpu_rate(laps: Sequence[Lap]) -> float | None:
    """ImageFiles per second of processor time, the best lap (noise only ever adds)."""
    known = [lap.count / lap.cpu_s for lap in laps if lap.cpu_s]
    return max(known) if known else None
