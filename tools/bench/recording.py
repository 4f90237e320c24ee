"""A benchmark's record: its rows, the machine, the versions, the commit; a table, a JSON object.

Ratios are such that above 1 is better for us, whatever the unit. Nothing in a record names
a host or a folder of one.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tools.bench.harness import REPOSITORY, Lap, Options, Race, cpu_rate, rate

_PACKAGES = (
    "torch", "torchvision", "triton", "ffcv", "numpy", "numba", "pillow-simd", "joblib",
    "opencv-python", "pyvips", "pyvips-binary", "nvidia-dali-cuda120", "simplejpeg",
)  # fmt: skip
# Of the processor's flags those that matter here.
_VECTORS = {"avx2", "avx512f", "avx512bw", "avx512_bf16", "amx_bf16", "bmi2"}


@dataclass(frozen=True)
class Row:
    """One comparison. ``spread`` is the smallest and largest ratio of a round, ``cpu_ratio``
    the ratio of processor times (what a busy machine disturbs least), ``at_least`` the ratio
    that is asked for."""

    what: str
    rival: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    n: int
    at_least: float | None = None
    spread: tuple[float, float] | None = None
    cpu_ratio: float | None = None


def speed_row(
    race: Race, ours: str, rival: str, at_least: float | None, what: str | None = None
) -> Row | None:
    """ImageFiles per second of two entrants of a race; None where one of them was absent."""
    mine, other = race.laps.get(ours), race.laps.get(rival)
    if not mine or not other:
        return None
    pairs = [_speed(a) / _speed(b) for a, b in zip(mine, other, strict=True)]
    cpu, other_cpu = cpu_rate(mine), cpu_rate(other)
    return Row(
        what=what or race.title,
        rival=rival,
        ours=rate(mine),
        theirs=rate(other),
        unit="images/s",
        ratio=rate(mine) / rate(other),
        n=statistics.median_low(lap.count for lap in mine),
        at_least=at_least,
        spread=(min(pairs), max(pairs)),
        cpu_ratio=cpu / other_cpu if cpu and other_cpu else None,
    )


def _speed(lap: Lap) -> float:
    return lap.count / lap.wall_s


@dataclass
class Record:
    """Collects rows and what was skipped; prints a table; is one JSON object."""

    title: str
    given: Options
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    contenders: dict[str, dict[str, str]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    accelerator: dict[str, Any] = field(default_factory=dict)

    def add(self, race: Race, *rows: Row | None) -> None:
        """Takes over a race: its rows, its absent entrants, its versions."""
        self.rows.extend(row for row in rows if row is not None)
        self.skipped |= {f"{race.title}: {name}": why for name, why in race.absent.items()}
        self.failed |= {f"{race.title}: {name}" for name in race.failed}
        self.contenders |= race.versions

    def wanted(self, title: str) -> bool:
        """Whether ``--only`` lets a race of this title take place."""
        return self.given.only in title

    def finish(self) -> int:
        """Prints the table and writes the JSON object where one is asked for.

        The exit status: 1 if a contender that is installed did not run.
        """
        print(f"{self.title}  (above 1 is better for us)")
        print(table(self.rows))
        for name, why in self.skipped.items():
            print(f"{'FAILED ' if name in self.failed else 'skipped'}  {name}: {why}")
        if self.given.json is not None:
            from imagenet_prep.core.files import write_json

            write_json(self.given.json, self.as_json())
        return 1 if self.failed else 0

    def as_json(self) -> dict[str, Any]:
        """The record as one JSON object."""
        return {
            "bench": self.title,
            "command": command_line(sys.argv),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine() | self.accelerator,
            "versions": package_versions(),
            "contenders": self.contenders,
            **commit(),
            "rounds": self.given.rounds,
            "smoke": self.given.smoke,
            "details": self.details,
            "skipped": self.skipped,
            "rows": [_rounded(asdict(row)) for row in self.rows],
        }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def table(rows: Sequence[Row]) -> str:
    """Rows -> aligned text: a line for each, unknowns left empty."""
    head = ("what", "rival", "ours", "theirs", "unit", "ratio", "spread", "cpu", "at least", "n")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = {0, 1, 4}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.what,
        row.rival,
        _figure(row.ours),
        _figure(row.theirs),
        row.unit,
        f"{row.ratio:.2f}",
        f"{row.spread[0]:.2f}-{row.spread[1]:.2f}" if row.spread else "",
        f"{row.cpu_ratio:.2f}" if row.cpu_ratio else "",
        f"{row.at_least:g}" if row.at_least is not None else "",
        f"{row.n:,}",
    )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.3g}"


def command_line(argv: Sequence[str]) -> str:
    """The command as typed, with absolute paths cut down to their last part."""
    script = Path(argv[0]).resolve()
    inside = script.is_relative_to(REPOSITORY)
    words = [str(script.relative_to(REPOSITORY)) if inside else script.name, *argv[1:]]
    short = [Path(word).name if word.startswith("/") else word for word in words]
    return f"python {' '.join(short)}"


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, memory, system: enough to judge a figure by."""
    affinity = getattr(os, "sched_getaffinity", None)
    described: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "system": platform.system(),
        "release": platform.release(),
        "python": platform.python_version(),
    }
    cpuinfo, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if cpuinfo.exists():
        found = dict(re.findall(r"^(model name|cpu family|model|flags)\s*: (.*)$",
                                cpuinfo.read_text(), re.M))  # fmt: skip
        described["processor"] = found.get("model name", described["processor"])
        described["family"] = f"{found.get('cpu family', '?')}/{found.get('model', '?')}"
        flags = set(found.get("flags", "").split())
        described["vectors"] = sorted(flags & _VECTORS)
    if meminfo.exists():
        total = re.search(r"^MemTotal:\s*(\d+)", meminfo.read_text(), re.M)
        described["memory_gb"] = round(int(total[1]) / 2**20, 1) if total else None
    return described


def package_versions() -> dict[str, str]:
    """The installed versions of what a result can depend on, and of the JPEG library."""
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    from PIL import features

    found["libjpeg-turbo of PIL"] = str(features.version("libjpeg_turbo"))
    return found


def commit() -> Mapping[str, Any]:
    """``commit`` of the checkout or the GPU kit, and whether files differ from it; None where
    that is unknown."""

    def git(*words: str) -> str | None:
        try:
            result = subprocess.run(
                ["git", *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=30,
                check=True,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return None
        return result.stdout.strip()

    changes = git("status", "--porcelain", "--untracked-files=no")
    kit = REPOSITORY / "COMMIT"  # written by tools/setup/gpu_kit.sh
    if changes is None and kit.exists():
        return {"commit": kit.read_text().strip(), "changed": None}
    return {
        "commit": git("rev-parse", "HEAD"),
        "changed": None if changes is None else bool(changes),
    }


def accelerator() -> dict[str, Any]:
    """The GPU for the record: name, memory, driver, versions; empty without one."""
    import torch

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
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        found["gpu_driver"] = answer.stdout.strip()
    return found
