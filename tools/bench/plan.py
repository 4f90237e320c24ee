"""How long it takes to find out what is to be done, for as many sources as ImageNet has.

    python tools/bench/plan.py [--smoke] [--json FILE] [--work FOLDER]

The sources are made up: 1,000 class folders of hard links to one empty file each, and so are
their crops and the journal. Measured in processes of their own, with their memory: the plan
of a first run, and the whole of a second run, which finds everything done. The "rival" is the
limit that is asked for, so the ratio is limit over ours.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.bench.harness import REPOSITORY, options, work_folder
from tools.bench.recording import Record, Row

SOURCES = 1_281_167
CLASSES = 1_000
PLAN_S, PLAN_GB, SECOND_RUN_S = 15.0, 0.5, 15.0
CROP_BYTES = b"a crop that nobody decodes"


def make_up(raw: Path, count: int) -> None:
    """``count`` sources in class folders named as ImageNet's; a hard link costs no space."""
    for label in range(min(CLASSES, count)):
        folder = raw / "train" / f"n{label:08d}"
        folder.mkdir(parents=True)
        first = folder / f"{folder.name}_0.JPEG"
        first.touch()
        for index in range(1, len(range(label, count, CLASSES))):
            os.link(first, f"{folder}/{folder.name}_{index}.JPEG")


def make_up_crops(raw: Path, dst: Path) -> None:
    """What a run over ``raw`` would have left in ``dst``, as far as a second run looks."""
    from imagenet_prep.dataset.classes import save_classes
    from imagenet_prep.dataset.crop_settings import CropSettings
    from imagenet_prep.dataset.journal import PUT, Entry, finish, opened
    from imagenet_prep.dataset.names import JOURNAL_NAME
    from imagenet_prep.sources.scan import scan

    collection, settings, total = scan(raw), CropSettings().text(), 0
    firsts: dict[str, str] = {}
    save_classes(dst, collection.classes)
    with opened(dst / JOURNAL_NAME, create=True) as journal:
        journal.execute("BEGIN")
        for source in collection.sources:
            total += 1
            folder, target = source.crop.rpartition("/")[0], f"{dst}/{source.crop}"
            if folder in firsts:
                os.link(firsts[folder], target)
            else:
                Path(target).parent.mkdir(parents=True)
                Path(target).write_bytes(CROP_BYTES)
                firsts[folder] = target
            named = (source.key, source.split, source.label, source.crop, "ok", "", "")
            made = (*source.place.stamp(), settings, 500, 375, "RGB", len(CROP_BYTES))
            journal.execute(PUT, Entry(*named, *made))
        finish(journal, total, total)
        journal.execute("COMMIT")


def plan(raw: str, dst: str) -> dict[str, Any]:
    """The plan of a first run: seconds, peak memory, sources."""
    from imagenet_prep.crop.plan import plan_crops, scanned
    from imagenet_prep.dataset.crop_settings import CropSettings
    from imagenet_prep.dataset.journal import attached
    from imagenet_prep.dataset.names import JOURNAL_NAME
    from imagenet_prep.sources.scan import scan

    start, path = time.perf_counter(), Path(dst) / JOURNAL_NAME
    with scanned(scan(Path(raw))) as found, attached(found.connection, path, "j", create=True):
        planned = plan_crops(found, Path(dst), CropSettings().text())
    path.unlink()
    return measured(start, planned.todo)


def second_run(raw: str, dst: str) -> dict[str, Any]:
    """A whole run over what is done already: seconds, peak memory, crops that were there."""
    from imagenet_prep.crop.run import run_crop
    from imagenet_prep.dataset.crop_settings import CropSettings

    start = time.perf_counter()
    report = run_crop(Path(raw), Path(dst), CropSettings(), jobs=1)
    assert report.tried == 0
    return measured(start, report.skipped)


def measured(start: float, count: int) -> dict[str, Any]:
    """Seconds since ``start``, the process's peak memory in GB, and ``count``."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"seconds": time.perf_counter() - start, "gb": peak / 1e9, "count": count}


def apart(name: str, raw: Path, dst: Path) -> dict[str, Any]:
    """Runs ``plan`` or ``second_run`` in a process of its own."""
    code = (
        "import json, sys; from tools.bench import plan as bench_plan; "
        f"print(json.dumps(bench_plan.{name}(sys.argv[1], sys.argv[2])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(raw), str(dst)],
        cwd=REPOSITORY, stdout=subprocess.PIPE, check=True, timeout=600,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def rows(name: str, found: list[dict[str, Any]], limits: tuple[float, float]) -> list[Row]:
    """The median seconds and gigabytes of ``found`` beside their limits."""
    made = []
    for unit, limit in zip(("seconds", "gb"), limits, strict=True):
        ours = statistics.median(float(each[unit]) for each in found)
        count = int(found[0]["count"])
        made.append(Row(name, "the limit", ours, limit, unit, limit / ours, count, 1.0))
    return made


def main() -> int:
    """Makes the sources up, plans, makes the crops up, runs again."""
    given = options(__doc__.splitlines()[0] if __doc__ else "")
    count = 3_000 if given.smoke else SOURCES
    with work_folder(given) as work:
        record = Record("plan", given)
        folder = work / "plan"
        shutil.rmtree(folder, ignore_errors=True)
        raw, dst = folder / "raw", folder / "cropped"
        try:
            make_up(raw, count)
            dst.mkdir()
            first = [apart("plan", raw, dst) for _ in range(given.rounds)]
            make_up_crops(raw, dst)
            second = [apart("second_run", raw, dst) for _ in range(given.rounds)]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        record.rows += rows("plan of a first run", first, (PLAN_S, PLAN_GB))
        record.rows += rows("a second run", second, (SECOND_RUN_S, PLAN_GB))
        return record.finish()


if __name__ == "__main__":
    sys.exit(main())
