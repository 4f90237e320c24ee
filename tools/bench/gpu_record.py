"""What the parts of bench/gpu.py share: the device, laps in turns, rows, checks."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tools.bench.harness import Options
from tools.bench.recording import Record, Row

NO_CUDA = "there is no CUDA device"
# A difference of nothing at all counts as this part of what is allowed.
_LEAST_SHARE = 1e-3
# Runs in turns -> things per second of each round.
Rates = dict[str, list[float]]


@dataclass(frozen=True)
class Bench:
    """Where and how much is measured: ``batch`` images a step, ``steps`` a lap."""

    record: Record
    given: Options
    device: torch.device
    work: Path

    @property
    def cuda(self) -> bool:
        """Whether there is a device to measure."""
        return self.device.type == "cuda"

    @property
    def small(self) -> bool:
        """Whether this is about the code alone: no figure of it means anything."""
        return self.given.smoke or not self.cuda

    @property
    def batch(self) -> int:
        return 4 if self.small else 256

    @property
    def steps(self) -> int:
        return 2 if self.small else 20

    @property
    def threads(self) -> int:
        """The cores that this process may use."""
        affinity = getattr(os, "sched_getaffinity", None)
        return len(affinity(0)) if affinity else os.cpu_count() or 1

    def synchronize(self) -> None:
        """Waits until the device has done what it was given."""
        if self.cuda:
            torch.cuda.synchronize()

    def laps(self, runs: Mapping[str, Callable[[], int]], warm_up: int = 2) -> Rates:
        """Runs, each doing some number of things, in turns -> their rates, round by round."""
        for run in runs.values():
            for _ in range(warm_up):
                run()
        rates: Rates = {name: [] for name in runs}
        names = list(runs)
        for number in range(self.given.rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                self.synchronize()
                start = time.perf_counter()
                count = runs[name]()
                self.synchronize()
                rates[name].append(count / (time.perf_counter() - start))
        return rates

    def compare(
        self,
        what: str,
        rival: str,
        ours: Sequence[float],
        theirs: Sequence[float],
        n: int,
        at_least: float | None = None,
        unit: str = "images/s",
    ) -> None:
        """A row of two rates: medians, with the spread of the rounds' ratios."""
        pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
        mine, other = statistics.median(ours), statistics.median(theirs)
        spread = (min(pairs), max(pairs))
        row = Row(what, rival, mine, other, unit, mine / other, n, at_least, spread)
        self.record.rows.append(row)

    def difference(self, what: str, found: float, allowed: float, unit: str, n: int) -> None:
        """A row of a difference beside what is allowed; too large a one is a failure."""
        ratio = allowed / max(found, allowed * _LEAST_SHARE)
        self.record.rows.append(Row(what, "allowed", found, allowed, unit, ratio, n, 1.0))
        if not found <= allowed:
            self.fail(what, f"{found:.3g} {unit} where {allowed:g} are allowed")

    def seconds(self, what: str, found_s: float, goal_s: float, n: int) -> None:
        """A row of a time beside the one that is asked for."""
        row = Row(what, "goal", found_s, goal_s, "s", goal_s / found_s, n, 1.0)
        self.record.rows.append(row)

    def skip(self, what: str, why: str) -> None:
        """Names what is not measured."""
        self.record.skipped[what] = why

    def fail(self, what: str, why: str) -> None:
        """Names what is wrong; the script's exit status will be 1."""
        self.record.skipped[what] = why
        self.record.failed.add(what)

    @contextlib.contextmanager
    def part(self, title: str, *, cuda: bool = False) -> Iterator[bool]:
        """A part of the whole: yields whether it takes place. What breaks in it is named and
        the next part goes on; the record so far is on disk after each."""
        if not self.record.wanted(title):
            yield False
            return
        if cuda and not self.cuda:
            self.skip(title, NO_CUDA)
            yield False
            return
        start = time.perf_counter()
        try:
            yield True
        except Exception as error:  # noqa: BLE001 - a lease of a device ends; the rest counts
            words = str(error).splitlines() or ["no word"]
            self.fail(title, f"{type(error).__name__}: {words[0][:300]}")
        if self.cuda:  # where it broke, waiting was perhaps forbidden
            torch.cuda.set_sync_debug_mode("default")
        print(f"{title}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
        if self.given.json is not None:
            from imagenet_prep.core.files import write_json

            write_json(self.given.json, self.record.as_json())


def accelerator() -> dict[str, Any]:
    """The GPU for the record: name, memory, driver, versions; empty without one."""
    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    found: dict[str, Any] = {
        "gpu": properties.name,
        "gpu_memory_gb": round(properties.total_memory / 2**30, 1),
        "gpu_processors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        found["gpu_driver"] = said.stdout.strip()
    return found
