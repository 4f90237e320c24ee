"""How fast the statistics of crops are computed, beside NumPy and beside decoding alone.

    python tools/bench/stats.py [--smoke] [--json FILE] [--images FOLDER] [--rounds N]

Ours is the whole stage, its workers started within the measured time and every file
digested; the rivals' processes wait already, and only read, decode and compute.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.bench.harness import Entrant, Options, options, race, work_folder
from tools.bench.image_sets import Crops, halves, make_crops, photographs
from tools.bench.recording import Record, speed_row

OURS, NUMPY, DECODE = "ours", "two NumPy passes", "decoding alone"
CROPS = 8_000
SMOKE_CROPS = 6


def measure(record: Record, crops: Crops, work: Path, given: Options) -> None:
    """Per core, then at two workers."""
    for workers, title in ((1, "stats, one core"), (2, "stats, two workers")):
        if not record.wanted(title) or (given.smoke and workers > 1):
            continue
        shares = [{"files": files} for files in halves(crops.files, workers)]
        whole = {"cropped": str(crops.folder), "out": str(work / "out.npz"), "jobs": workers}
        result = race(
            title,
            [
                Entrant(OURS, "contenders_stats:ours", [whole]),
                Entrant(NUMPY, "contenders_stats:two_passes", shares),
                Entrant(DECODE, "contenders_stats:decode", shares),
            ],
            given,
        )
        limits = {NUMPY: 6.0, DECODE: 0.75}
        record.add(result, *(speed_row(result, OURS, rival, x) for rival, x in limits.items()))


def main() -> int:
    """Runs the races that ``--only`` leaves."""
    given = options(__doc__.splitlines()[0] if __doc__ else "")
    with work_folder(given) as work:
        record = Record("stats", given)
        images = photographs(given, work)
        count = SMOKE_CROPS if given.smoke else CROPS
        crops = make_crops(images, work, count, jobs=1 if given.smoke else None)
        record.details = {"images": images.kind, "mean_bytes": round(crops.mean_bytes)}
        measure(record, crops, work, given)
        return record.finish()


if __name__ == "__main__":
    sys.exit(main())
