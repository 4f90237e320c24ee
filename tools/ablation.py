"""What each change of the preset ``imagenette`` is worth: short trainings, each without one.

    python tools/ablation.py --beton train.beton [--seeds 0,1] [--epochs 8] [--workers 2]
                             [--only TEXT] [--json FILE]

Each training is a process of its own on one thread; --workers of them run at a time. Prints the
top-1 accuracy after the last epoch, mean of the seeds, and the processor seconds. --json records
all of it with commit and machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from imagenet_prep.core.files import write_json
from tools.bench.recording import command_line, commit, machine, package_versions

PRESET, NETWORK = "imagenette", "best-compact"


@dataclass(frozen=True)
class Variant:
    """The preset with other options, or with other fields of its network's NetworkSpec."""

    name: str
    options: tuple[str, ...] = ()
    network: Mapping[str, Any] = field(default_factory=dict)


VARIANTS = (
    Variant("the preset"),
    Variant("batch normalisation before the ReLU", network={"norm_after": False}),
    Variant("dropout of 0.5 instead of 0.2", network={"dropout": 0.5}),
    Variant("evaluation at 131 px instead of 147", network={"test_size": 0}),
    Variant("weight decay on biases and norms too", ("--decay-biases",)),
    Variant("cosine instead of linear decay", ("--schedule", "cosine")),
    Variant("no averaged weights", ("--average", "0")),
    Variant("random instead of alternating flips", ("--no-alternate",)),
    Variant("training images that grow from 99 px", ("--start-size", "99")),
)


@dataclass(frozen=True)
class Result:
    """A training: top-1 accuracy (%) and loss of the validation images after its last epoch."""

    variant: str
    seed: int
    top1: float
    loss: float
    cpu_s: float


def train(variant: Variant, words: Sequence[str]) -> int:
    """Trains a variant in this process, as ``trainer run`` does -> exit status."""
    from dataclasses import replace

    from trainer.cli.main import run_trainer
    from trainer.network.alexnet import NETWORKS

    NETWORKS[NETWORK] = replace(NETWORKS[NETWORK], **variant.network)
    return run_trainer(["run", "--preset", PRESET, *words, *variant.options])


def measure(variant: Variant, seed: int, beton: Path, epochs: int) -> Result:
    """Trains a variant in a process of its own; SystemExit where that fails."""
    with tempfile.TemporaryDirectory() as work:
        out = Path(work, "run")
        words = ["--beton", str(beton.absolute()), "--out", str(out), "--jobs", "1"]
        words += ["--seed", str(seed), "--epochs", str(epochs)]
        process = subprocess.Popen(
            [sys.executable, __file__, "--train", variant.name, *words],
            cwd=work, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"ablation: {variant.name} failed; its messages are above")
        rows = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        last = [row for row in rows if row["kind"] == "epoch"][-1]
    cpu_s = usage.ru_utime + usage.ru_stime
    top1 = 100 - last["val_top1_error"]
    return Result(variant.name, seed, round(top1, 2), round(last["val_loss"], 4), round(cpu_s))


def table(results: Iterable[Result]) -> list[str]:
    """Results -> a line of Markdown for each variant: accuracy, its difference, processor time."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.variant, []).append(result)
    means = {name: statistics.mean(one.top1 for one in many) for name, many in found.items()}
    base = means.get(VARIANTS[0].name)
    lines = ["| variant | top-1 accuracy | seeds | difference | processor seconds |"]
    lines.append("|---|---:|---|---:|---:|")
    for name, many in found.items():
        seeds = ", ".join(f"{one.top1:.2f}" for one in many)
        apart = "" if base is None or name == VARIANTS[0].name else f"{means[name] - base:+.2f}"
        cpu_s = statistics.mean(one.cpu_s for one in many)
        lines.append(f"| {name} | {means[name]:.2f} % | {seeds} | {apart} | {cpu_s:.0f} |")
    return lines


def main() -> int:
    """Trains what ``--only`` leaves, prints the table, records it."""
    if sys.argv[1:2] == ["--train"]:
        named = {variant.name: variant for variant in VARIANTS}
        return train(named[sys.argv[2]], sys.argv[3:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--beton", type=Path, required=True, help="with its val.beton beside it")
    parser.add_argument("--seeds", default="0", help="such as 0,1 (default 0)")
    parser.add_argument("--epochs", type=int, default=8, metavar="N", help="(default 8)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="(default 2)")
    parser.add_argument("--only", default="", metavar="TEXT", help="variants with this in the name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    chosen = [variant for variant in VARIANTS if given.only in variant.name]
    results: list[Result] = []

    def measured(task: tuple[int, Variant]) -> Result:
        return measure(task[1], task[0], given.beton, given.epochs)

    with ThreadPoolExecutor(given.workers) as pool:
        for result in pool.map(measured, itertools.product(seeds, chosen)):
            results.append(result)
            print(result, file=sys.stderr, flush=True)
    print("\n".join(table(results)))
    if given.json:
        write_json(given.json, {
            "command": command_line(sys.argv), **commit(), "machine": machine(),
            "versions": package_versions(), "epochs": given.epochs,
            "results": [vars(one) for one in results],
        })  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
