"""Seconds of an ImageNet epoch, from a tutorial's loop to ours, one change at a time.

    python tools/bench/speedup.py [--smoke] [--json FILE] [--images FOLDER] [--rounds N]
                                 [--batch N] [--device auto] [--precision auto] [--chart FILE]

AlexNet of the paper (one tower, LRN, 227 px, SGD) trained on real images: a naive loop, then
crops made once, workers, a beton, our loader, on a GPU its decoder, our LRN, half precision and
channels-last, compiled, on a GPU the fused blocks, and at last the trainer itself. Neighbouring
variants alternate in one run, of ten minutes on two CPU cores. What needs a GPU is listed as
skipped where there is none. --chart draws a PNG beside a tutorial's published hours, by default
beside the record of --json.
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
from tools.bench.recording import Record, Row, machine, speed_row
from tools.bench.speedup_chart import draw
from tools.bench.speedup_plan import (
    NAIVE,
    TRAINER,
    TUTORIAL,
    Measured,
    Variant,
    groups,
    lines,
    measure,
    variants,
)

BATCH = {"cpu": 64, "cuda": 256}
SMOKE_BATCH, ROUNDS = 2, 2
CROPS_ON_CUDA = 2048
# A smoke run has each kind of feed but those of the tests, and the trainer.
IN_SMOKE = (NAIVE, "beton", TRAINER)
# What is asked for from the first variant to the last: on two CPU cores with bfloat16 in hardware,
# and on an H200.
AT_LEAST = {"cpu": 6.0, "cuda": 100.0}


def parse() -> tuple[Options, argparse.Namespace]:
    """The command line: what every benchmark has, and the series's own."""
    parser = option_parser((__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, metavar="N", help="images a step")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
        help="number format of the faster variants (auto: measured, so give it on a busy machine)",
    )  # fmt: skip
    parser.set_defaults(rounds=ROUNDS)
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw the series there (PNG)")
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


class Inputs:
    """What the variants read, made once: photographs, crops of them, betons of those."""

    def __init__(self, given: Options, work: Path, batch: int, device: str) -> None:
        self.given, self.batch, self.device = given, batch, device
        self.images: ImageFiles = photographs(given, work, imagenet_only=True)
        count = CROPS_ON_CUDA if device == "cuda" else batch * (1 if given.smoke else 2)
        self.crops: Crops = make_crops(self.images, work, count, jobs=None)
        self.beton = self.crops.stats.parent / "jpeg.beton"
        if not self.beton.exists():
            build(self.crops.folder, self.crops.stats, self.beton, "jpeg", None)

    def count(self, variant: Variant) -> int:
        """The images of a lap."""
        if self.given.smoke:
            return self.batch
        return self.batch * variant.batches[self.device == "cuda"]

    def data(self, variant: Variant) -> dict[str, Any]:
        """What a variant reads."""
        count = self.count(variant)
        if variant.feed == "originals":
            files = list(itertools.islice(itertools.cycle(self.images.files), count))
            return {"files": [str(path) for path in files], "labels": [0] * count}
        if variant.feed in ("crops", "workers"):
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


def skipped(variant: Variant, given: Options, device: str) -> str | None:
    """Why a variant is left out; None if it is not."""
    if variant.cuda and device != "cuda":
        return "needs a CUDA device"
    if given.smoke and variant.name not in IN_SMOKE:
        return "not part of a smoke run"
    return None


def run_all(
    record: Record, series: tuple[Variant, ...], inputs: Inputs, place: dict[str, Any]
) -> dict[str, list[Lap]]:
    """Runs the series, a few variants at a time -> the laps of each; adds rows of neighbours."""
    laps: dict[str, list[Lap]] = {}
    present = [
        variant for variant in series if skipped(variant, record.given, inputs.device) is None
    ]
    at_once = len(present) if record.given.smoke else 3
    for group in groups(present, at_once):
        title = f"speedup, {group[0].name} to {group[-1].name}"
        if not record.wanted(title):
            continue
        entrants = [
            Entrant(variant.name, "speedup_variants:variant",
                    [{"feed": variant.feed, "network": dict(variant.network),
                      "data": inputs.data(variant), "place": place}])
            for variant in group
        ]  # fmt: skip
        result = race(title, entrants, record.given)
        record.add(result)
        for name, of in result.laps.items():
            laps.setdefault(name, []).extend(of)
        for below, variant in itertools.pairwise(group):
            row = speed_row(
                result, variant.name, below.name, None, f"{variant.name}: {variant.change}"
            )
            record.rows += [] if row is None else [row]
    return laps


def whole(found: list[Measured], at_least: float | None) -> list[Row]:
    """The row from the first variant to the last, where both were measured."""
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
    """Measures, prints and draws the series."""
    from tools.bench.recording import accelerator
    from trainer.device import choose_precision

    given, own = parse()
    device = device_of(own.device)
    import torch

    precision = choose_precision(own.precision, torch.device(device))
    series = variants(precision)
    batch = own.batch or (SMOKE_BATCH if given.smoke else BATCH[device])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    place = {"batch": batch, "threads": cores, "device": device, "small": given.smoke}
    with work_folder(given) as work:
        record = Record("speedup", given, accelerator=accelerator() if device == "cuda" else {})
        inputs = Inputs(given, work, batch, device)
        record.details = {
            "device": device, "batch": batch, "threads": cores, "precision": precision,
            "images": inputs.images.kind, "files": len(inputs.images.files),
        }  # fmt: skip
        if precision == "float32":
            record.skipped["speedup: half precision"] = (
                "bfloat16 is not faster on this processor; channels-last alone has a variant"
            )
        for variant in series:
            why = skipped(variant, given, device)
            if why is not None:
                record.skipped[f"speedup: {variant.name}"] = why
        found = measure(series, run_all(record, series, inputs, place))
        record.details["speedup"] = [asdict(one) for one in found]
        record.details["published"] = [asdict(one) for one in TUTORIAL]
        at_least = AT_LEAST[device] if precision != "float32" else None
        record.rows += whole(found, at_least)
        print("\n".join(lines(found)), end="\n\n")
        chart = own.chart or (
            given.json.with_suffix(".png") if given.json else work / "speedup.png"
        )
        if found:
            from imagenet_prep.core.files import publish

            here = record.accelerator.get("gpu") or f"{cores} cores, {machine()['processor']}"
            with publish(chart) as temporary:
                temporary.write_bytes(draw(found, here, TUTORIAL))
        return record.finish()


if __name__ == "__main__":
    sys.exit(main())
