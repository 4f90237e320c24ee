"""bench/gpu.py, the data's half: parity of the pipelines, the fed step, a full-size epoch."""

from __future__ import annotations

import contextlib
import time
import unittest.mock
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tools.bench.contenders_build import build
from tools.bench.contenders_step import INPUT_PX, Ours
from tools.bench.gpu_record import NO_CUDA, Bench
from tools.bench.gpu_replica import copies_that_fit, replicate
from tools.bench.gpu_steps import guarded, trainer, unfed
from tools.bench.image_sets import make_crops, photographs
from trainer.loader.loader import BetonLoader, train_loader

IMAGENET_SAMPLES = 1_281_167
EPOCH_S = 60.0
LEVELS = 1e-3
# Enough for some seconds an epoch: what beginning one costs shall not count.
FED_SAMPLES = {"jpeg": 131_072, "raw": 32_768}
# What the device does is the same expression for all; what it is given differs.
SETTINGS: dict[str, dict[str, Any]] = {
    "mean image": {},
    "centre of the mean": {"mean": "centre"},
    "channel mean, scaled": {"mean": "channel", "scaled": True, "lighting": 0.0},
    "resized": {"view": "resized", "crop_size": 128},
}


@dataclass(frozen=True)
class Betons:
    """The small betons that everything else is made of."""

    jpeg: Path
    raw: Path


def betons(bench: Bench) -> Betons:
    """Crops of real images where there are some, packed both ways; kept in the work folder."""
    images = photographs(bench.given, bench.work)
    count = 16 if bench.small else 8192
    crops = make_crops(images, bench.work, count, jobs=1 if bench.small else None)
    made = {}
    for image_format in ("jpeg", "raw"):
        beton = crops.stats.parent / image_format / "train.beton"
        if not beton.exists():
            beton.parent.mkdir(exist_ok=True)
            build(crops.folder, crops.stats, beton, image_format, 1 if bench.small else None)
        made[image_format] = beton
    bench.record.details |= {
        "images": images.kind, "crops": count, "bytes of a crop": round(crops.mean_bytes),
    }  # fmt: skip
    return Betons(made["jpeg"], made["raw"])


def feeder(bench: Bench, beton: Path, **settings: Any) -> BetonLoader:
    """The training loader onto the device, as ``trainer run`` has it."""
    chosen: dict[str, Any] = {
        "batch_size": bench.batch,
        "crop_size": INPUT_PX,
        "device": bench.device.type,
    }
    return train_loader(beton, **(chosen | settings))


@contextlib.contextmanager
def as_for_a_device(bench: Bench) -> Iterator[None]:
    """Without CUDA the device's half runs on tensors of the CPU, as in the tests."""
    if bench.cuda:
        yield
        return
    with unittest.mock.patch("trainer.loader.backends.on_host", lambda _: False):
        yield


def parity(bench: Bench, data: Betons) -> None:
    """The same epoch made for the CPU and for the device: pixels and labels."""
    where = "CUDA" if bench.cuda else "the device's half, on the CPU,"
    for name, settings in SETTINGS.items():
        with feeder(bench, data.jpeg, device="cpu", out_size=INPUT_PX, **settings) as host:
            wanted = [(b.images.clone(), b.labels.clone(), b.indices.clone()) for b in host]
        off, seen = 0.0, 0
        with (
            as_for_a_device(bench),
            feeder(bench, data.jpeg, out_size=INPUT_PX, **settings) as device,
        ):
            for batch, (images, labels, indices) in zip(device, wanted, strict=True):
                off = max(off, float((batch.images.cpu() - images).abs().max()))
                seen += len(labels)
                if not torch.equal(batch.labels.cpu(), labels) or not torch.equal(
                    batch.indices, indices
                ):
                    bench.fail("parity", f"{name}: other labels or another order")
        bench.difference(f"{where} beside the CPU: {name}", off, LEVELS, "levels", seen)


def fed_without_waiting(bench: Bench, data: Betons) -> None:
    """A fed epoch under torch's sync debug mode ``error``, the loader's own thread included."""
    made = trainer(bench)
    with feeder(bench, data.jpeg) as batches:
        made.train(batches)
        count = made.train(guarded(batches))["count"]
    if count != batches.samples:
        bench.fail("sync", f"{count} images of {batches.samples}")


def fed(bench: Bench, data: Betons) -> None:
    """The step fed from JPEG and from raw images, over the same on one batch."""
    for name, small in (("jpeg", data.jpeg), ("raw", data.raw)):
        beton = bench.work / "fed" / name / "train.beton"
        samples = FED_SAMPLES[name]
        copies = copies_that_fit(small, samples, bench.work)
        replicate(small, beton, samples, copies)
        made, waited = trainer(bench), list[float]()
        try:
            with feeder(bench, beton) as batches:
                runs = {"fed": _epochs(made, batches, waited), "unfed": unfed(bench, made)}
                rates = bench.laps(runs, warm_up=1)
        finally:
            beton.unlink()
        bench.compare(f"fed from {name}", "unfed", rates["fed"], rates["unfed"], samples, 0.9)
        bench.record.details[f"fed from {name}"] = {
            "copies of the pages": copies, "waits for data, s": [round(w, 3) for w in waited[1:]],
        }  # fmt: skip


def _epochs(made: Ours, batches: BetonLoader, waited: list[float]) -> Callable[[], int]:
    """A lap of one epoch; its wait for data goes into ``waited``."""

    def lap() -> int:
        count = int(made.train(batches)["count"])
        waited.append(batches.wait_s)
        return count

    return lap


def rehearsal(bench: Bench, data: Betons) -> None:
    """One epoch over a beton of ImageNet's size; without CUDA only its first batches are read."""
    samples = IMAGENET_SAMPLES if not bench.given.smoke else 3 * 16 + 5
    copies = copies_that_fit(data.jpeg, samples, bench.work) if bench.cuda else 2
    beton = bench.work / "full" / "train.beton"
    started = time.perf_counter()
    replicate(data.jpeg, beton, samples, copies)
    details: dict[str, Any] = {
        "samples": samples,
        "copies of the pages": copies,
        "every sample has bytes of its own": copies * _samples_of(bench) >= samples,
        "bytes": beton.stat().st_size,
        "written in s": round(time.perf_counter() - started, 1),
    }
    bench.record.details["rehearsal"] = details
    try:
        started = time.perf_counter()
        with feeder(bench, beton) as batches:
            details["opened in s"] = round(time.perf_counter() - started, 2)
            if bench.cuda:
                _timed_epoch(bench, data, batches, details)
            else:
                labels = [batch.labels.clone() for batch, _ in zip(batches, range(3), strict=False)]
                if sum(map(len, labels)) != 3 * bench.batch:
                    bench.fail("rehearsal", "its first batches are not whole")
                bench.skip("rehearsal: a timed epoch", NO_CUDA)
    finally:
        beton.unlink()


def _samples_of(bench: Bench) -> int:
    return int(bench.record.details["crops"])


def _timed_epoch(bench: Bench, data: Betons, batches: BetonLoader, details: dict[str, Any]) -> None:
    made = trainer(bench)
    with feeder(bench, data.jpeg) as few:  # tunes the kernels
        made.train(few)
    bench.synchronize()
    started = time.perf_counter()
    count = int(made.train(batches)["count"])
    bench.synchronize()
    seconds = time.perf_counter() - started
    if count != batches.samples:
        bench.fail("rehearsal", f"{count} images of {batches.samples}")
    details |= {"waits for data, s": round(batches.wait_s, 2), "images/s": count / seconds}
    bench.seconds(f"an epoch of {count:,} images", seconds, EPOCH_S, count)
