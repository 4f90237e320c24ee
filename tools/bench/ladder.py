"""From a tutorial's loop over ImageNet to ours, one change at a time, in seconds per epoch.

    python tools/bench/ladder.py [--smoke] [--json FILE] [--images FOLDER] [--rounds N]
                                 [--batch N] [--device auto] [--chart FILE]

AlexNet of the paper (one tower, LRN, 227 px, SGD) trained on real images: a naive loop, then
crops made once, workers, a beton, our pipeline, our LRN, half precision and channels-last,
compiled, and at last the trainer itself. Rungs that follow one another run in turns. --chart
draws the ladder (PNG); with --json it lies beside the record unless named.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.bench.contenders_build import build
from tools.bench.harness import Entrant, Lap, Options, option_parser, options_of, race, work_folder
from tools.bench.image_sets import Crops, ImageFiles, make_crops, photographs
from tools.bench.ladder_chart import draw
from tools.bench.ladder_plan import (
    COMPILED,
    NAIVE,
    TRAINER,
    Measured,
    Rung,
    groups,
    lines,
    measure,
    rungs,
)
from tools.bench.recording import Record, Row, machine, speed_row

BATCH = {"cpu": 128, "cuda": 256}
SMOKE_BATCH, BATCHES_ON_CPU = 2, 2
CROPS_ON_CUDA = 2048
COVERED = ("cropped once", "our pipeline", "our LRN")
# What is asked for from the first rung to the last: on two CPU cores with bfloat16 in hardware,
# and on an H200.
AT_LEAST = {"cpu": 6.0, "cuda": 100.0}


def parse() -> tuple[Options, argparse.Namespace]:
    """The command line: what every benchmark has, and the ladder's own."""
    parser = option_parser((__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, metavar="N", help="images a step")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw the ladder there (PNG)")
    given = parser.parse_args()
    if given.batch is not None and given.batch < 1:
        parser.error("--batch must be at least 1")
    return options_of(parser, given), given


def device_of(choice: str) -> str:
    """``auto`` -> CUDA where there is one."""
    import torch

    if choice == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if choice == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device; use --device cpu")
    return choice


class Ground:
    """What the rungs read, made once: photographs, crops of them, betons of those."""

    def __init__(self, given: Options, work: Path, batch: int, device: str) -> None:
        self.given, self.batch, self.device = given, batch, device
        self.images: ImageFiles = photographs(given, work, imagenet_only=True)
        count = batch * (1 if given.smoke else BATCHES_ON_CPU)
        self.crops: Crops = make_crops(
            self.images, work, CROPS_ON_CUDA if device == "cuda" else count, jobs=None
        )
        self.beton = self.crops.stats.parent / "jpeg.beton"
        if not self.beton.exists():
            build(self.crops.folder, self.crops.stats, self.beton, "jpeg", None)

    def count(self, rung: Rung) -> int:
        """The images of a lap."""
        if self.given.smoke:
            return self.batch
        return self.batch * (rung.batches if self.device == "cuda" else BATCHES_ON_CPU)

    def data(self, rung: Rung) -> dict[str, Any]:
        """What a rung reads."""
        count = self.count(rung)
        if rung.feed == "originals":
            files = list(itertools.islice(itertools.cycle(self.images.files), count))
            return {"files": [str(path) for path in files], "labels": [0] * count}
        if rung.feed in ("crops", "workers"):
            pairs = itertools.cycle(zip(self.crops.files, self.crops.labels, strict=True))
            some = list(itertools.islice(pairs, count))
            return {"files": [str(path) for path, _ in some], "labels": [n for _, n in some]}
        return {"beton": str(self._beton(count)), "stats": str(self.crops.stats)}

    def _beton(self, count: int) -> Path:
        """The beton of the crops, or one that has them again and again."""
        if count == len(self.crops.files):
            return self.beton
        from tools.bench.gpu_replica import copies_that_fit, replicate

        target = self.beton.with_name(f"jpeg-{count}.beton")
        if not target.exists():
            copies = copies_that_fit(self.beton, count, target.parent)
            replicate(self.beton, target, count, copies)
        return target


def skipped(rung: Rung, given: Options) -> str | None:
    """Why a rung is left out; None if it is not."""
    if given.smoke and rung.name == COMPILED:
        return "compiling takes longer than a smoke test"
    if given.smoke and rung.name in COVERED:
        return "a smoke test runs its code in the rungs above it"
    return None


def climb(
    record: Record, ladder: tuple[Rung, ...], ground: Ground, place: dict[str, Any]
) -> dict[str, list[Lap]]:
    """Runs the ladder, a few rungs at a time -> the laps of each; adds rows of neighbours."""
    laps: dict[str, list[Lap]] = {}
    present = [rung for rung in ladder if skipped(rung, record.given) is None]
    at_once = len(present) if record.given.smoke else 3
    for group in groups(present, at_once):
        title = f"ladder, {group[0].name} to {group[-1].name}"
        if not record.wanted(title):
            continue
        entrants = [
            Entrant(rung.name, "ladder_rungs:rung",
                    [{"feed": rung.feed, "network": dict(rung.network),
                      "data": ground.data(rung), "place": place}])
            for rung in group
        ]  # fmt: skip
        result = race(title, entrants, record.given)
        record.add(result)
        for name, of in result.laps.items():
            laps.setdefault(name, []).extend(of)
        for below, rung in itertools.pairwise(group):
            row = speed_row(result, rung.name, below.name, None, f"{rung.name}: {rung.change}")
            record.rows += [] if row is None else [row]
    return laps


def whole(found: list[Measured], at_least: float | None) -> list[Row]:
    """The row from the first rung to the last, where both were measured."""
    if len(found) < 2 or found[0].name != NAIVE or found[-1].name != TRAINER:
        return []
    first, last = found[0], found[-1]
    return [
        Row(
            f"{first.name} to {last.name}", first.name, last.images_per_second,
            first.images_per_second, "images/s", last.times, last.images, at_least,
        )
    ]  # fmt: skip


def main() -> int:
    """Measures, prints and draws the ladder."""
    from tools.bench.gpu_record import accelerator
    from trainer.device import choose_precision

    given, own = parse()
    device = device_of(own.device)
    import torch

    precision = choose_precision("auto", torch.device(device))
    ladder = rungs(precision)
    batch = own.batch or (SMOKE_BATCH if given.smoke else BATCH[device])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    place = {"batch": batch, "threads": cores, "device": device, "small": given.smoke}
    with work_folder(given) as work:
        record = Record("ladder", given, accelerator=accelerator() if device == "cuda" else {})
        ground = Ground(given, work, batch, device)
        record.details = {
            "device": device, "batch": batch, "threads": cores, "precision": precision,
            "images": ground.images.kind, "files": len(ground.images.files),
        }  # fmt: skip
        if precision == "float32":
            record.skipped["ladder: half precision"] = (
                "this processor has no bfloat16 in hardware, where it would cost time; "
                "channels-last alone has a rung"
            )
        for rung in ladder:
            why = skipped(rung, given)
            if why is not None:
                record.skipped[f"ladder: {rung.name}"] = why
        found = measure(ladder, climb(record, ladder, ground, place))
        record.details["ladder"] = [asdict(one) for one in found]
        at_least = AT_LEAST[device] if precision != "float32" else None
        record.rows += whole(found, at_least)
        print("\n".join(lines(found)), end="\n\n")
        chart = own.chart or (given.json.with_suffix(".png") if given.json else work / "ladder.png")
        if found:
            from imagenet_prep.core.files import publish

            here = record.accelerator.get("gpu") or f"{cores} cores, {machine()['processor']}"
            with publish(chart) as temporary:
                temporary.write_bytes(draw(found, here))
        return record.finish()


if __name__ == "__main__":
    sys.exit(main())
