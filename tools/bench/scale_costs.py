"""What very large sets take: cores, hours, bytes and money, from this project's own records.

    python tools/bench/scale_costs.py [--records FOLDER] [--cores N] [--core-hour PRICE] ...

Every rate is read from ``tools/records``: per core with all cores of that machine busy. Prices,
the size of raw images and the speed of a GPU are assumptions, each an option. Everything
about a set is its number of images times a rate, so it is extrapolated; ``bench_scale``
measures whether the bookkeeping stays straight that far.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.bench.harness import REPOSITORY

RECORDS = REPOSITORY / "tools" / "records"
# ImageFiles of train; GB as downloaded: the size of ILSVRC2012_img_train.tar, of the whole of
# ImageNet's fall 2011 release, and a guess of 100 KB for an image of the web.
SETS = {
    "ImageNet-1k": (1_281_167, 147.9),
    "ImageNet-21k": (14_197_122, 1_310.0),
    "400 million": (400_000_000, 40_000.0),
}


@dataclass(frozen=True)
class Rates:
    """What the records say: images per second and core, seconds per million, bytes."""

    crop: float
    stats: float
    build: float
    load: float
    plan_s: float
    second_run_s: float
    crop_bytes: float
    line_bytes: float
    plan_gb: float | None


def read_rates(records: Path) -> Rates:
    """The rates in a folder of records; SystemExit where one is missing."""
    plan = _record(records, "plan")
    build = _record(records, "build")
    scale = records / "bench-scale.json"
    return Rates(
        crop=_per_core(records, "crop", "crop, whole stage"),
        stats=_per_core(records, "stats", "stats, two workers"),
        build=_per_core(records, "build", "build jpeg, two workers"),
        load=_per_core(records, "loader", "loader, uint8 from JPEG"),
        plan_s=_per_million(plan, "plan of a first run"),
        second_run_s=_per_million(plan, "a second run"),
        crop_bytes=float(build["details"]["mean_bytes"]),
        line_bytes=_line_bytes(),
        plan_gb=_plan_gb(json.loads(scale.read_text())) if scale.exists() else None,
    )


def _record(records: Path, name: str) -> dict[str, Any]:
    path = records / f"bench-{name}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise SystemExit(
            f"{path}: {error.strerror}; make it with make bench BENCH={name}"
        ) from None
    return found


def _per_core(records: Path, name: str, what: str) -> float:
    record = _record(records, name)
    ours = next(row["ours"] for row in record["rows"] if row["what"] == what)
    return float(ours) / int(record["machine"]["cores"])


def _per_million(record: dict[str, Any], what: str) -> float:
    rows = (row for row in record["rows"] if row["what"] == what and row["unit"] == "seconds")
    row = next(rows)
    return float(row["ours"]) / int(row["n"]) * 1e6


def _line_bytes() -> float:
    """A row of the journal about an image with a name of ImageNet's length, with SQLite's own."""
    from imagenet_prep.dataset.crop_settings import CropSettings
    from imagenet_prep.dataset.journal import PUT, SCHEMA, Entry, connected

    count, settings = 10_000, CropSettings().text()
    with contextlib.closing(connected(None)) as journal:
        journal.executescript(SCHEMA)
        for number in range(count):
            name = f"train/n01440764/n01440764_{number:05d}.JPEG"
            made = (110_000, 1_600_000_000_123_456_789, settings, 500, 375, "RGB", 20_444)
            journal.execute(PUT, Entry(name, "train", 500, name, "ok", "", "", *made))
        pages = journal.execute("PRAGMA page_count").fetchone()[0]
        return float(pages * journal.execute("PRAGMA page_size").fetchone()[0] / count)


def _plan_gb(scale: dict[str, Any]) -> float:
    """Gigabytes per million sources of a first run's plan, between the two largest sizes that
    were planned whole."""
    sizes = scale["details"]["sizes"]
    whole = sorted(int(size) for size, stages in sizes.items() if stages["parts"] == 1)[-2:]
    small, large = (sizes[str(size)]["plan of a first run"]["peak_gb"] for size in whole)
    return float((large - small) / (whole[1] - whole[0]) * 1e6)


def column(images: int, raw_gb: float, rates: Rates, given: argparse.Namespace) -> dict[str, str]:
    """What one set takes: name of a line -> its text."""
    core_hours = {
        "crop": images / rates.crop / 3600,
        "statistics": images / rates.stats / 3600,
        "betons": images / rates.build / 3600,
    }
    total = sum(core_hours.values())
    crops_tb = images * rates.crop_bytes / 1e12
    # Crops and betons at the same time; the raw images besides.
    stored_tb = raw_gb / 1e3 + 2 * crops_tb
    gpu_hours = given.epochs * images / given.gpu_rate / 3600
    requests = images * (given.get_million + given.put_million) / 1e6
    found = {
        "images": f"{images:,}",
        **{f"core-hours, {name}": f"{hours:,.1f}" for name, hours in core_hours.items()},
        f"hours on {given.cores} cores": f"{total / given.cores:,.2f}",
        "plan of a first run, one core": _duration(images * rates.plan_s / 1e6),
        "second run with nothing to do, one core": _duration(images * rates.second_run_s / 1e6),
        "raw images": _bytes(raw_gb / 1e3),
        "crops, and again the betons": _bytes(crops_tb),
        "files of crops": f"{images:,}",
        f"shards of {given.shard_gb:g} GB": f"{max(1, round(crops_tb * 1e3 / given.shard_gb)):,}",
        "journal": _bytes(images * rates.line_bytes / 1e12),
        "plan's memory": (
            "not measured" if rates.plan_gb is None else f"{images / 1e6 * rates.plan_gb:.1f} GB"
        ),
        "order of an epoch in memory": _bytes(images * 8 / 1e12),
        f"GPU-hours of {given.epochs} epochs": f"{gpu_hours:,.0f}",
        "cores that feed one GPU": f"{given.gpu_rate / rates.load:.1f}",
    }
    money = {
        "preparing": total * given.core_hour,
        "requests, if crops lie in a bucket": requests,
        f"storage, {given.months:g} months": stored_tb * given.tb_month * given.months,
        "training": gpu_hours * given.gpu_hour,
    }
    return found | {f"price, {name}": f"{price:,.0f}" for name, price in money.items()}


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _bytes(terabytes: float) -> str:
    for unit, size in (("TB", 1.0), ("GB", 1e-3)):
        if terabytes >= size:
            return f"{terabytes / size:,.1f} {unit}"
    return f"{terabytes / 1e-6:,.0f} MB"


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line: assumptions, each with its default."""
    parser = argparse.ArgumentParser(
        prog="bench/scale_costs.py", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description=(__doc__ or "").splitlines()[0],
    )  # fmt: skip
    add = parser.add_argument
    add("--records", type=Path, default=RECORDS, help="folder of bench-*.json")
    add("--cores", type=int, default=64, help="cores, on one machine or several")
    add("--core-hour", type=float, default=0.04, help="price of a core-hour")
    add("--tb-month", type=float, default=23.0, help="price of a terabyte for a month")
    add("--months", type=float, default=1.0, help="how long all of it is stored")
    add("--gpu-hour", type=float, default=2.0, help="price of a GPU-hour")
    add("--gpu-rate", type=float, default=2890.0, help="images/s of a GPU (a P100, published)")
    add("--epochs", type=int, default=90, help="of training")
    add("--get-million", type=float, default=0.4, help="price of a million GET requests")
    add("--put-million", type=float, default=5.0, help="price of a million PUT requests")
    add("--shard-gb", type=float, default=4.0, help="size of a shard")
    add("--json", type=Path, metavar="FILE", help="write the table there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table as Markdown."""
    given = options(sys.argv[1:] if arguments is None else arguments)
    rates = read_rates(given.records)
    columns = {name: column(*about, rates, given) for name, about in SETS.items()}
    print("| |", " | ".join(columns), "|")
    print("|---|" + "---:|" * len(columns))
    for name in next(iter(columns.values())):
        print(f"| {name} |", " | ".join(each[name] for each in columns.values()), "|")
    if given.json is not None:
        from imagenet_prep.core.files import write_json

        write_json(given.json, {"rates": vars(rates), "sets": columns})
    return 0


if __name__ == "__main__":
    sys.exit(main())
