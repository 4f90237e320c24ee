"""How fast and in how much memory images are cropped, beside three rivals.

    python tools/bench/crop.py [--smoke] [--json FILE] [--images FOLDER] [--rounds N]

From a file's bytes to the written 256 x 256 JPEG. Per core: one process, one thread. Two
workers: two processes with half of the files each, already started; for ours also the whole
stage, whose workers start within the measured time.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.bench.harness import BENCH_FOLDER, Entrant, Options, options, race, work_folder
from tools.bench.image_sets import ImageFiles, halves, link_collection, photographs
from tools.bench.recording import Record, Row, speed_row

OURS, TUTORIAL, STOCK, VIPS = "ours", "tutorial's recipe", "stock Pillow", "libvips thumbnail"
STAGE_COPIES = 10
SMOKE_IMAGES = 4
FEW_SOURCES, MANY_SOURCES = 1_000, 10_000
MOST_MB = 300
STOCK_PYTHON = BENCH_FOLDER / "pillow" / "bin" / "python"


def entrants(images: ImageFiles, work: Path, workers: int) -> list[Entrant]:
    """Everyone who crops single images, in ``workers`` processes."""

    def entrant(name: str, function: str, python: Path = Path(sys.executable)) -> Entrant:
        folder = work / "out" / function / str(workers)
        shares = [
            {"files": files, "folder": str(folder / f"{name}-{number}".replace(" ", "-"))}
            for number, files in enumerate(halves(images.files, workers))
        ]
        return Entrant(name, f"contenders_crop:{function}", shares, python)

    return [
        entrant(OURS, "ours"),
        entrant(TUTORIAL, "tutorial"),
        entrant(STOCK, "tutorial", STOCK_PYTHON),
        entrant(VIPS, "libvips"),
    ]


def images_alone(record: Record, images: ImageFiles, work: Path, given: Options) -> None:
    """The recipe against its rivals, per core and at two workers."""
    for workers, title in ((1, "crop, one core"), (2, "crop, two workers")):
        if not record.wanted(title) or (given.smoke and workers > 1):
            continue
        result = race(title, entrants(images, work, workers), given)
        limits = {TUTORIAL: 1.10, STOCK: 1.75, VIPS: 2.5}
        record.add(result, *(speed_row(result, OURS, rival, x) for rival, x in limits.items()))


def whole_stage(record: Record, images: ImageFiles, work: Path, given: Options) -> None:
    """The stage with two workers over the stage with one."""
    title = "crop, whole stage"
    if not record.wanted(title):
        return
    count = len(images.files) * (1 if given.smoke else STAGE_COPIES)
    src = link_collection(images.files, work / f"raw-{count}", count)
    names = {"two workers": 2, "one worker": 1}
    runners = [
        Entrant(name, "contenders_crop:stage",
                [{"src": str(src), "dst": str(work / f"stage-{jobs}"), "jobs": jobs}])
        for name, jobs in names.items()
    ]  # fmt: skip
    result = race(title, runners, given)
    record.add(result, speed_row(result, "two workers", "one worker", 1.85))


def memory(record: Record, images: ImageFiles, work: Path, given: Options) -> None:
    """The peak memory of any worker, with few and with many sources."""
    title = "crop, memory of a worker"
    if given.smoke or not record.wanted(title):
        return
    peaks: dict[int, float] = {}
    for count in (FEW_SOURCES, MANY_SOURCES):
        src = link_collection(images.files, work / f"raw-{count}", count)
        share = {"src": str(src), "dst": str(work / "stage-memory"), "jobs": 2}
        once = Entrant(f"{count:,} sources", "contenders_crop:stage", [share])
        result = race(title, [once], replace(given, rounds=1), watch=True, warm_up=False)
        record.add(result)
        if result.laps:
            peaks[count] = result.laps[once.name][0].peak_mb
    rivals = {"the limit": (MANY_SOURCES, float(MOST_MB))}
    if FEW_SOURCES in peaks:
        rivals[f"{FEW_SOURCES:,} sources"] = (MANY_SOURCES, peaks[FEW_SOURCES])
    for rival, (count, theirs) in rivals.items():
        if peaks.get(count):
            at_least = 1.0 if rival == "the limit" else 0.95
            what = f"{title}, {count:,} sources"
            ours = peaks[count]
            record.rows.append(Row(what, rival, ours, theirs, "MB", theirs / ours, count, at_least))


def main() -> int:
    """Runs the races that ``--only`` leaves."""
    given = options(__doc__.splitlines()[0] if __doc__ else "")
    with work_folder(given) as work:
        record = Record("crop", given)
        images = photographs(given, work, imagenet_only=True)
        if given.smoke:
            images = ImageFiles(images.kind, images.files[:SMOKE_IMAGES])
        record.details = {"images": images.kind, "files": len(images.files)}
        images_alone(record, images, work, given)
        whole_stage(record, images, work, given)
        memory(record, images, work, given)
        return record.finish()


if __name__ == "__main__":
    sys.exit(main())
