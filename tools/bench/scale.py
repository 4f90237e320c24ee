"""Whether the bookkeeping stays straight up to a hundred million images.

    python tools/bench/scale.py [--smoke] [--json FILE] [--work FOLDER] [--most N]
    python tools/bench/scale.py --costs [options of tools/bench/scale_costs.py]

The entries are made up (``scale_stages``); every stage at every size is a process of its own,
whose processor seconds and peak memory are measured. A line is laid through all sizes but the
largest; the "rival" is its value at the largest, so a ratio of 1 is a straight line and one
far below 1 something that grows faster. Beyond 25 million entries what is measured is one of
several parts (``crop --part``), which each list all sources and have a journal of their own.
``--only`` takes a name of a process; all but ``manifests`` and ``order`` need ``first run``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.bench import scale_costs
from tools.bench.harness import REPOSITORY, Options, options, work_folder
from tools.bench.recording import Record, Row
from tools.bench.scale_stages import PROCESSES

SIZES = (100_000, 1_000_000, 10_000_000, 100_000_000)
SMOKE_SIZES = (1_000, 2_000, 4_000)
PART_ENTRIES = 25_000_000
ENTRY_BYTES = 400  # of a journal, roughly; what is on the disk at a time
MOST_BYTES = 15_000_000_000
_LONGEST_S = 3 * 3600


def parts_of(size: int) -> int:
    """Into how many parts so many entries are cut."""
    return -(-size // PART_ENTRIES)


def apart(process: str, size: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Runs stages in a process of their own; of each seconds, cpu_s, gb (the peak), count,
    held and perhaps bytes."""
    code = (
        "import json, sys; from pathlib import Path; "
        "from tools.bench.scale_stages import PROCESSES, Case; "
        "name, size, parts, folder = sys.argv[1:]; "
        "print(json.dumps(dict(PROCESSES[name](Case(int(size), int(parts), Path(folder))))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, process, str(size), str(parts_of(size)), str(folder)],
        cwd=REPOSITORY, stdout=subprocess.PIPE, check=True, timeout=_LONGEST_S,
    )  # fmt: skip
    answer: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return answer


def measure(size: int, work: Path, given: Options) -> dict[str, dict[str, Any]]:
    """All stages at one size, in turn; of several rounds the one with the fewest seconds."""
    folder = work / f"scale-{size}"
    found: dict[str, dict[str, Any]] = {}
    for _ in range(given.rounds if size == min(SIZES) else 1):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            for process in PROCESSES:
                if given.only and given.only not in process and process != "first run":
                    continue
                for stage, once in apart(process, size, folder).items():
                    before = found.get(stage, once)
                    found[stage] = min(before, once, key=lambda each: float(each["cpu_s"]))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    for stage, each in found.items():
        print(
            f"{size:>13,}  {stage:36} {each['seconds']:8.1f} s, {each['cpu_s']:8.1f} of the "
            f"processor, {per_million(each):6.2f} per million, {each['gb']:7.3f} GB",
            flush=True,
        )
    return found


def per_million(each: dict[str, Any]) -> float:
    """Processor seconds of a stage for a million of the entries that it worked on."""
    return float(each["cpu_s"]) / int(each["count"]) * 1e6


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Points (x, y) -> (a, b) of the line a + b x whose relative errors have the least squares."""
    weights = [1 / max(y, 1e-9) ** 2 for _, y in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    if not spread:
        return 0.0, mean_y / mean_x
    slope = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points, strict=True))
    return mean_y - slope / spread * mean_x, slope / spread


def rows(stage: str, points: dict[int, dict[str, Any]]) -> list[Row]:
    """The largest size of a stage beside what the smaller ones, at least two, say of it.

    Seconds are laid over the entries that were worked on, memory over those that it held: of
    parts one is worked on, but all are listed.
    """
    sizes = sorted(points)
    largest, made = sizes[-1], []
    for name, unit, over in (("cpu_s", "s", "count"), ("gb", "GB", "held")):
        known = [(points[size][over], float(points[size][name])) for size in sizes]
        # With three sizes before it, the smallest is all libraries and starting.
        offset, slope = line(known[-3:-1])
        ours, expected = known[-1][1], offset + slope * known[-1][0]
        what = f"{stage}: {unit}"
        made.append(
            Row(what, "a straight line", ours, expected, unit, expected / max(ours, 1e-9), largest)
        )
    return made


def details(found: dict[int, dict[str, dict[str, Any]]], not_run: dict[int, str]) -> dict[str, Any]:
    """Everything that was measured, per million too, and what was not run and why."""
    return {
        "sizes": {
            str(size): {
                "parts": parts_of(size),
                **{
                    stage: {
                        "seconds": round(each["seconds"], 3),
                        "cpu_s": round(each["cpu_s"], 3),
                        "cpu_s_per_million": round(per_million(each), 3),
                        "peak_gb": round(each["gb"], 3),
                        "entries": each["count"],
                        "held": each["held"],
                        **({"bytes": each["bytes"]} if "bytes" in each else {}),
                    }
                    for stage, each in stages.items()
                },
            }
            for size, stages in found.items()
        },
        "not_run": {str(size): why for size, why in not_run.items()},
    }


def refusal(size: int, most: int, work: Path) -> str:
    """Why a size is not run; nothing where it is."""
    if size > most:
        return f"above --most {most:,}"
    needed = min(size, PART_ENTRIES) * ENTRY_BYTES
    free = shutil.disk_usage(work).free
    if 2 * needed > min(free, 2 * MOST_BYTES):
        return f"its journal needs {needed / 1e9:.0f} GB twice where {free / 1e9:.0f} GB are free"
    return ""


def main() -> int:
    """Measures size after size, then prints how straight the lines are."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--most", type=int, default=SIZES[-1], metavar="N")
    parser.add_argument("--costs", action="store_true")
    mine, others = parser.parse_known_args()
    if mine.costs:
        return scale_costs.main(others)
    summary = (__doc__ or "").splitlines()[0] + " --most N leaves larger sizes out."
    given = options(summary, others)
    found: dict[int, dict[str, dict[str, Any]]] = {}
    not_run: dict[int, str] = {}
    with work_folder(given) as work:
        record = Record("scale", given)
        for size in SMOKE_SIZES if given.smoke else SIZES:
            why = refusal(size, mine.most, work)
            if why:
                not_run[size] = why
                print(f"{size:>13,}  not run: {why}")
            else:
                found[size] = measure(size, work, given)
        for stage in next(iter(found.values()), {}):
            points = {size: stages[stage] for size, stages in found.items() if stage in stages}
            if len(points) > 2:
                record.rows += rows(stage, points)
        record.details = details(found, not_run)
        return record.finish()


if __name__ == "__main__":
    sys.exit(main())
