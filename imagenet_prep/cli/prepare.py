"""``imagenet-prep prepare``: crop, stats and build in one, each only where something changed.

``crop`` knows by itself what is up to date. For the rest there is ``prepared.json``, written
last: what was asked for, what was told, and size and time stamp of every file that was read or
made. As long as all of that holds, statistics and betons are those of another run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagenet_prep import __version__
from imagenet_prep.cli import build as betons
from imagenet_prep.cli import results
from imagenet_prep.cli.crop import crop_options, make_crops, source_options
from imagenet_prep.cli.options import (
    FOLDER,
    Where,
    json_option,
    option,
    print_result,
    warn_stock_pillow,
    where_options,
)
from imagenet_prep.cli.stats import make_stats
from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.files import file_digest, read_json, write_json
from imagenet_prep.dataset.names import (
    CLASSES_NAME,
    JOURNAL_NAME,
    SPLITS,
    STATS_NAME,
    manifest_beside,
    stats_beside,
)
from imagenet_prep.storage.location import Location

if TYPE_CHECKING:
    from imagenet_prep.workers.processes import Jobs

PREPARED_NAME = "prepared.json"


@click.command(short_help="Run crop, stats and build.")
@source_options
@option("--dst", "Folder of all results.", FOLDER, Path())
@crop_options
@betons.packing_options
@where_options
@json_option
def prepare(
    src: Location,
    dst: Path,
    where: Where,
    as_json: bool,
    packing: dict[str, Any],
    **cropping: Any,
) -> None:
    """Run crop, stats and build: cropped/ with stats.npz, train.beton, val.beton, ... in --dst.

    What is up to date is not made again; to make it again, delete prepared.json.

    \b
    Example: imagenet-prep prepare --src raw --dst .
    """
    warn_stock_pillow()
    betons.require_way(dst, SPLITS, **packing)
    start = time.perf_counter()
    with where.workers(reads=[src], writes=[dst]) as jobs:
        src, dst = where.path(src), where.path(dst)
        cropped = dst / "cropped"
        report = make_crops(src, cropped, jobs=jobs, **cropping)
        asked = _asked(dst, cropped, packing)
        made = _still_there(dst / PREPARED_NAME, asked)
        up_to_date = made is not None
        if made is None:
            made = _make(cropped, dst, jobs, asked, packing)
    seconds = time.perf_counter() - start
    value = {
        "crop": results.crop_value(report),
        **made,
        "betons": made["build"]["betons"],
        "up_to_date": up_to_date,
        "seconds": round(seconds, 3),
    }
    print_result(as_json, value, results.prepare_lines(value, report, cropped))


def _make(
    cropped: Path, dst: Path, jobs: Jobs, asked: dict[str, Any], packing: dict[str, Any]
) -> dict[str, Any]:
    """Statistics and betons -> the values of ``stats`` and ``build``, also kept for another run."""
    from imagenet_prep.jpeg.index import rows_beside

    stats_file = cropped / STATS_NAME
    statistics, _ = make_stats(cropped, stats_file, jobs)
    built = betons.make_betons(cropped, dst, stats_file, jobs, **packing)
    files = [cropped / JOURNAL_NAME, stats_file]
    for beton in (Path(name) for entry in built["betons"] for name in entry["files"]):
        files += [beton, manifest_beside(beton), rows_beside(beton), stats_beside(beton)]
    made = {"stats": statistics, "build": built}
    write_json(dst / PREPARED_NAME, {"asked": asked, "files": _stamps(files), "made": made})
    return made


def _asked(dst: Path, cropped: Path, packing: dict[str, Any]) -> dict[str, Any]:
    """What decides about the results, beside the files; the class list is written by every run."""
    classes = file_digest(cropped / CLASSES_NAME)
    return {"version": __version__, "dst": str(dst), "classes": classes, "packing": packing}


def _stamps(files: Iterable[str | Path]) -> dict[str, list[int]]:
    """Size and time of change of each file; raises OSError where one is not there."""
    found = ((str(file), Path(file).stat()) for file in files)
    return {name: [status.st_size, status.st_mtime_ns] for name, status in found}


def _still_there(file: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The values that an earlier run told, with no time spent, where it was asked for the same
    and no file has changed since; otherwise None."""
    try:
        before = read_json(file, "what was prepared", "prepare again")
        if before["asked"] != asked or before["files"] != _stamps(before["files"]):
            return None
        made: dict[str, Any] = before["made"]
        for stage in ("stats", "build"):
            made[stage] |= {"seconds": 0.0, "images_per_second": 0.0}
    except (ToolError, OSError, KeyError, TypeError, AttributeError):
        return None  # none, or not of this version: all is made anew
    return made
