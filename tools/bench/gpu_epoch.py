"""Epochs of ImageNet's size by ``trainer run`` itself, evaluation of 50,000 images included.

    python tools/bench/gpu_epoch.py --crops FOLDER [--json FILE] [--batch-size N] [--smoke]

The crops of FOLDER are packed into beton files whose pages are repeated to 1,281,167 and 50,000
samples, with their row index. Printed: the command's output, and for each epoch images a second,
shares of time, and the seconds of the whole command. ``--smoke``: a few samples on any device.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from imagenet_prep.dataset.manifest import load_manifest, save_manifest
from tools.bench.gpu_loader import Lines, small_beton
from tools.bench.gpu_replica import copies_that_fit, replicate, replicate_rows

SAMPLES, VALIDATION = 1_281_167, 50_000
MOST_COPIES = 100  # of the pages: 0.7 GB for 300 crops
SHOWN = ("images_per_second", "wait_share", "step_share", "train_loss", "val_loss")


def betons(small: Path, folder: Path, train: int, validation: int) -> Path:
    """A small beton -> train.beton and val.beton of so many samples in ``folder``."""
    for split, samples in (("train", train), ("val", validation)):
        target = folder / f"{split}.beton"
        replicate(small, target, samples, min(copies_that_fit(small, samples, folder), MOST_COPIES))
        save_manifest(target, replace(load_manifest(target), split=split))
        replicate_rows(small, target, samples)
    return folder / "train.beton"


def main() -> int:
    """Makes the betons, trains two epochs, prints their figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--crops", type=Path, required=True, help="folder of JPEG crops")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--smoke", action="store_true", help="a few samples")
    given = parser.parse_args()
    lines = Lines(given.json)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small = small_beton(given.crops, folder / "small")
        beton = betons(small, folder, *((40, 8) if given.smoke else (SAMPLES, VALIDATION)))
        lines.add("betons", beton.stat().st_size / 1e9, "GB")
        run = folder / "run"
        preset, epochs = ("demo", 1) if given.smoke else ("paper", 2)
        batch = 8 if given.smoke else given.batch_size
        words = ["--preset", preset, "--epochs", str(epochs), "--batch-size", str(batch)]
        begun = time.perf_counter()
        command = [sys.executable, "-m", "trainer", "run", "--beton", str(beton), "--out", str(run)]
        status = subprocess.run([*command, *words], check=False).returncode
        lines.add("command", time.perf_counter() - begun, "s", status=status)
        if status == 0:
            for text in (run / "metrics.jsonl").read_text().splitlines():
                row = json.loads(text)
                if row.get("kind") != "step":
                    shown = {name: round(row[name], 4) for name in SHOWN if name in row}
                    lines.add(f"epoch {row['epoch']}", row["seconds"], "s", **shown)
    return status


if __name__ == "__main__":
    sys.exit(main())
