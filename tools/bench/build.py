"""How fast crops are packed into a beton, beside FFCV's own writer.

    python tools/bench/build.py [--smoke] [--json FILE] [--images FOLDER] [--rounds N]

Both begin with the same files and end with a file that FFCV's loader opens. Ours is the
whole stage: its file is verified and on the disk, with manifest and statistics.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.bench.harness import Entrant, Options, options, race, work_folder
from tools.bench.image_sets import Crops, make_crops, photographs
from tools.bench.recording import Record, speed_row

OURS, FFCV = "ours", "FFCV DatasetWriter"
CROPS = 8_000
SMOKE_CROPS = 6
AT_LEAST = {"jpeg": 8.0, "raw": 2.0}
FFCV_MODE = {"jpeg": "jpg", "raw": "raw"}


def measure(record: Record, crops: Crops, work: Path, given: Options) -> None:
    """JPEG and raw, with one worker and with two."""
    for kind in AT_LEAST:
        for workers, number in ((1, "one worker"), (2, "two workers")):
            title = f"build {kind}, {number}"
            if not record.wanted(title) or (given.smoke and (workers > 1 or kind != "jpeg")):
                continue
            mine = {
                "cropped": str(crops.folder), "stats": str(crops.stats),
                "out": str(work / "ours.beton"), "image_format": kind, "jobs": workers,
            }  # fmt: skip
            theirs = {
                "files": [str(path) for path in crops.files], "labels": crops.labels,
                "out": str(work / "ffcv.beton"), "write_mode": FFCV_MODE[kind], "jobs": workers,
            }  # fmt: skip
            result = race(
                title,
                [
                    Entrant(OURS, "contenders_build:ours", [mine]),
                    Entrant(FFCV, "contenders_build:ffcv_writer", [theirs]),
                ],
                given,
            )
            record.add(result, speed_row(result, OURS, FFCV, AT_LEAST[kind]))


def main() -> int:
    """Runs the races that ``--only`` leaves."""
    given = options(__doc__.splitlines()[0] if __doc__ else "")
    with work_folder(given) as work:
        record = Record("build", given)
        images = photographs(given, work)
        count = SMOKE_CROPS if given.smoke else CROPS
        crops = make_crops(images, work, count, jobs=1 if given.smoke else None)
        record.details = {"images": images.kind, "mean_bytes": round(crops.mean_bytes)}
        measure(record, crops, work, given)
        return record.finish()


if __name__ == "__main__":
    sys.exit(main())
