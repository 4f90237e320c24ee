"""The loader on a CUDA device: its pixels beside the CPU's, and images a second.

    python tools/bench/gpu_loader.py --crops FOLDER [--json FILE] [--samples N] [--smoke]

FOLDER has JPEG crops of one size, in it or in one folder per class. They are packed into a
beton whose pages are repeated to N samples. Parts, most valuable first, each printed and
saved when it is done: JPEG to bfloat16 227 on the device at batch 256 and 1024, one CPU
thread, compressed images resident and copied each time, after a look at its pixels; torchvision's
``decode_jpeg`` on the device; decoding on the CPU's cores; the pixels of other settings beside
the CPU's. ``--smoke`` needs no device: four
small images, whose batches the host makes, or with NUMBA_ENABLE_CUDASIM=1 the simulated device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

PX = 227
LAPS = 3
CPU_IMAGES = 6_000
# A level may be off by so much; in bfloat16 by one rounding of the largest.
LEVELS = {"bfloat16": 1.0, "float32": 1e-3, "uint8": 0.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "uint8": {"dtype": "uint8"},
    "float32, mean image, colour": {},
    "float32, centre of the mean, own colour": {"mean": "centre", "lighting_mode": "image"},
    "float32, resized": {"view": "resized"},
    "bfloat16, space-to-depth": {"dtype": "bfloat16", "layout": "space_to_depth"},
}
FAST: dict[str, Any] = {"dtype": "bfloat16", "layout": "space_to_depth"}


class Lines:
    """Prints a line per result and keeps all of them in a file."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.rows, self.start = path, list[dict[str, Any]](), time.perf_counter()

    def add(self, what: str, value: float, unit: str, **more: Any) -> None:
        """Prints and saves one result."""
        self.rows.append({"what": what, "value": value, "unit": unit, **more})
        shown = ", ".join(f"{name} {text}" for name, text in more.items())
        at = time.perf_counter() - self.start
        print(f"{at:6.1f} s  {what:<58} {value:12,.5g} {unit}  {shown}", flush=True)
        if self.path is not None:
            self.path.write_text(json.dumps(self.rows, indent=1) + "\n")

    @contextlib.contextmanager
    def part(self, what: str) -> Iterator[None]:
        """What breaks in a part is named, and the next part goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a lease of a device ends; the rest counts
            self.add(what, float("nan"), f"FAILED: {type(error).__name__}: {error}")


def small_beton(crops: Path, folder: Path, smoke: bool = False) -> Path:
    """JPEG crops of one size -> a beton with its statistics and manifest; for a ``smoke`` test
    four of them, made tiny."""
    from PIL import Image

    from imagenet_prep.beton.build import build_beton
    from imagenet_prep.core.files import file_digest
    from imagenet_prep.dataset.classes import Classes
    from imagenet_prep.dataset.manifest import source_digest
    from imagenet_prep.dataset.statistics import save_stats
    from imagenet_prep.stats import moments

    suffixes = {".jpg", ".jpeg"}
    files = sorted(path for path in crops.rglob("*") if path.suffix.lower() in suffixes)
    files = files[:4] if smoke else files
    names = sorted({path.parent.name for path in files})
    keys = []
    for number, path in enumerate(files):
        key = f"train/{path.parent.name}/{number:06d}.JPEG"
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        if smoke:
            Image.open(path).convert("RGB").resize((16, 16)).save(folder / key)
        else:
            (folder / key).write_bytes(path.read_bytes())
        keys.append((key, names.index(path.parent.name)))
    images = np.stack([np.asarray(Image.open(folder / key).convert("RGB")) for key, _ in keys])
    source = source_digest((key, file_digest(folder / key)) for key, _ in keys)
    stats = moments.finish(moments.moments_of(images), source)
    save_stats(folder / "stats.npz", stats)
    out = folder / "small" / "train.beton"
    out.parent.mkdir()
    build_beton(
        folder, "train", out, stats=stats, stats_digest=file_digest(folder / "stats.npz"),
        classes=Classes(tuple(names), {}), crops=keys, jobs=1,
    )  # fmt: skip
    return out


def pixels(
    lines: Lines, beton: Path, device: dict[str, Any], names: Iterable[str], **options: Any
) -> None:
    """An epoch of each of some settings, made on the CPU and on the device."""
    from trainer.loader import eval_loader, train_loader

    for name in names:
        make = train_loader if name in SETTINGS else eval_loader
        given = {"batch_size": 32, "jobs": 1} | options | SETTINGS.get(name, {"view": "ten"})
        allowed, worst, seen, count = LEVELS[str(given.get("dtype", "float32"))], 0.0, 0, 0
        with lines.part(f"pixels: {name}"):
            with make(beton, **given) as host, make(beton, **(given | device)) as ours:
                for wanted, found in zip(host, ours, strict=True):
                    off = found.images.cpu().to(torch.float64) - wanted.images.to(torch.float64)
                    worst = max(worst, float(off.abs().max()))
                    seen += int(torch.equal(found.labels.cpu(), wanted.labels)) * len(found.labels)
                    count += len(wanted.labels)
            lines.add(f"pixels: {name}", worst, "levels off at most", images=seen)
            if worst > allowed or seen != count:
                raise RuntimeError(f"{allowed:g} allowed; labels right in {seen} of {count}")


def rate(loader: Any, laps: int = LAPS, limit: int = 1 << 30) -> list[float]:
    """Images a second of ``laps`` epochs after one that does not count."""
    found = []
    for lap in range(laps + 1):
        torch.cuda.synchronize()
        start, count = time.perf_counter(), 0
        for batch in loader:
            count += len(batch.labels)
            if count >= limit:
                break
        torch.cuda.synchronize()
        found.append(count / (time.perf_counter() - start))
        if lap == 0:
            found.clear()
    return found


def rates(lines: Lines, beton: Path, what: str, limit: int = 1 << 30, **options: Any) -> None:
    """A line with the median of some epochs."""
    from trainer.loader import train_loader

    with lines.part(what):
        start = time.perf_counter()
        with train_loader(beton, crop_size=PX, device="cuda", **(FAST | options)) as loader:
            next(iter(loader))
            torch.cuda.synchronize()
            first_s = round(time.perf_counter() - start, 2)
            found = rate(loader, limit=limit)
        spread = f"{min(found):,.0f}-{max(found):,.0f}"
        lines.add(what, statistics.median(found), "images/s", spread=spread, first_batch_s=first_s)


def torchvision_rate(lines: Lines, crops: Path, batch: int) -> None:
    """The rival: nvJPEG through torchvision, pixels only."""
    from torchvision.io import decode_jpeg

    files = [p for p in sorted(crops.rglob("*")) if p.suffix.lower() in {".jpg", ".jpeg"}]
    data = [torch.from_numpy(np.fromfile(path, np.uint8)) for path in files]
    many = (data * (batch // len(data) + 1))[:batch]
    with lines.part("torchvision decode_jpeg"):
        found = []
        for lap in range(6):
            start = time.perf_counter()
            decode_jpeg(many, device="cuda")
            torch.cuda.synchronize()
            if lap > 0:
                found.append(batch / (time.perf_counter() - start))
        lines.add(
            f"torchvision decode_jpeg, lists of {batch}", statistics.median(found), "images/s"
        )


def on_device(lines: Lines, crops: Path, small: Path, samples: int, folder: Path) -> None:
    """What needs a CUDA device."""
    from tools.bench.gpu_replica import copies_that_fit, replicate

    lines.add(torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0] / 2**30, "GiB free")
    gpu = {"device": "cuda", "decode": "gpu"}
    first = "bfloat16, space-to-depth"
    pixels(lines, small, gpu, [first], crop_size=PX)
    beton = folder / "train.beton"
    replicate(small, beton, samples, copies_that_fit(small, samples, folder))
    lines.add("repeated beton", samples, "samples", bytes=beton.stat().st_size)
    one: dict[str, Any] = {"decode": "gpu", "jobs": 1}
    for batch in (1024, 256):
        for resident in ("on", "off"):
            name = f"batch {batch}, one thread, resident {resident}"
            rates(lines, beton, name, batch_size=batch, resident=resident, **one)
    torchvision_rate(lines, crops, 256)
    rates(lines, beton, "batch 256, uint8 channels last, resident on", batch_size=256,
          resident="on", dtype="uint8", layout="channels_last", **one)  # fmt: skip
    rates(lines, beton, "batch 256, decode on the CPU, all cores", CPU_IMAGES, batch_size=256,
          decode="cpu", layout="channels_last")  # fmt: skip
    pixels(lines, small, gpu, [name for name in SETTINGS if name != first], crop_size=PX)
    pixels(lines, small, gpu, ["ten views"], crop_size=PX)


def main() -> int:
    """Runs the parts; the status is 1 when one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--crops", type=Path, required=True, help="folder of JPEG crops")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--samples", type=int, default=131_072, help="samples of the beton")
    parser.add_argument("--smoke", action="store_true", help="a few pixels, without a device")
    given = parser.parse_args()
    lines = Lines(given.json)
    with tempfile.TemporaryDirectory() as folder:
        small = small_beton(given.crops, Path(folder), given.smoke)
        if given.smoke:
            simulated = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
            device = {"decode": "gpu"} if simulated else {"decode": "cpu", "jobs": 2}
            pixels(lines, small, device, [*SETTINGS, "ten views"], crop_size=9)
        elif torch.cuda.is_available():
            on_device(lines, given.crops, small, given.samples, Path(folder))
        else:
            lines.add("loader", float("nan"), "FAILED: there is no CUDA device")
    return int(any(np.isnan(row["value"]) for row in lines.rows))


if __name__ == "__main__":
    sys.exit(main())
