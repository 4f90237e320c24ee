"""How fast the training loader feeds, beside FFCV's pipelines, DALI and PyTorch's DataLoader.

    python tools/bench/loader.py [--smoke] [--json FILE] [--images FOLDER] [--rounds N]

An epoch of 227 x 227 random crops out of 256 x 256 JPEG crops, batch 256, two workers, files
in the page cache. All loaders are compiled and running before the first epoch that counts.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.bench.contenders_build import build
from tools.bench.harness import Entrant, Options, Race, options, race, rate, work_folder
from tools.bench.image_sets import Crops, make_crops, photographs
from tools.bench.recording import Record, Row, speed_row

OURS, RAW = "ours", "ours, raw"
DECODE, FLIP = "libjpeg-turbo alone, accurate IDCT", "FFCV RandomHorizontalFlip"
OUR_DECODE = "our decoder alone"
DALI, DALI_FUSED, DALI_IMAGE = "DALI", "DALI, channel mean", "DALI, mean image"
TORCHVISION = "torchvision decode_jpeg"
TUTORIAL, SHORT = "tutorial's pipeline", "tutorial's pipeline, data set's colours"
CROPS, BATCH, THREADS = 8_000, 256, 2
SMOKE_CROPS, SMOKE_BATCH = 8, 4
BATCHES_AHEAD = 3
UINT8 = {"dtype": "uint8"}
PLAIN = {"mirror": False, "lighting": 0.0}


class Field:
    """Who can take part: entrants over the same crops, as files and as betons."""

    def __init__(self, crops: Crops, jpeg: Path, raw: Path | None, smoke: bool) -> None:
        self.jpeg, self.raw, self.stats, self.smoke = jpeg, raw, crops.stats, smoke
        self.batch = SMOKE_BATCH if smoke else BATCH
        self.files = [str(path) for path in crops.files]
        self.labels = list(crops.labels)

    def ours(
        self, name: str, settings: dict[str, Any], *, raw: bool = False, threads: int = THREADS
    ) -> Entrant:
        """train_loader with these settings."""
        share = {
            "beton": str(self.raw if raw else self.jpeg), "stats": str(self.stats),
            "batch": self.batch, "threads": threads, "settings": settings,
        }  # fmt: skip
        return Entrant(name, "contenders_loader:ours", [share])

    def ffcv(self, name: str, flip: bool, *, raw: bool = False, threads: int = THREADS) -> Entrant:
        """FFCV's stock pipeline; in a smoke test without its seconds of compiling."""
        share = {
            "beton": str(self.raw if raw else self.jpeg), "batch": self.batch,
            "threads": threads, "flip": flip, "compiled": not self.smoke,
        }  # fmt: skip
        return Entrant(name, "contenders_loader:ffcv_stock", [share])

    def decode(self, name: str, threads: int) -> Entrant:
        """Decoding alone, by our decoder or by the machine's libjpeg-turbo."""
        share = {"files": self.files, "threads": threads, "library": name == DECODE}
        return Entrant(name, "contenders_loader:decode_alone", [share])

    def dali(self, name: str, function: str, **more: Any) -> Entrant:
        """DALI on the crops' files."""
        return Entrant(name, f"contenders_dali:{function}", [self._from_files("threads", more)])

    def torch(self, name: str, function: str, **more: Any) -> Entrant:
        """PyTorch's DataLoader on the crops' files."""
        return Entrant(name, f"contenders_torch:{function}", [self._from_files("workers", more)])

    def _from_files(self, workers: str, more: dict[str, Any]) -> dict[str, Any]:
        given = {"files": self.files, "labels": self.labels, "batch": self.batch}
        return {**given, workers: THREADS, **more}


def run(
    record: Record,
    title: str,
    entrants: list[Entrant],
    limits: Mapping[str, float | None],
    given: Options,
) -> None:
    """A race of ours, the first entrant, against the rivals that have limits."""
    if not record.wanted(title):
        return
    result = race(title, entrants, given)
    ours = entrants[0].name
    record.add(result, *(speed_row(result, ours, rival, x) for rival, x in limits.items()))


def races(record: Record, field: Field, given: Options) -> None:
    """The outputs of the loader, each beside its rivals."""
    stats = str(field.stats)
    smoke = given.smoke
    rivals = [] if smoke else [
        field.ffcv(FLIP, flip=True), field.dali(DALI, "uint8"),
        field.torch(TORCHVISION, "decode_jpeg"),
    ]  # fmt: skip
    run(
        record, "loader, uint8 from JPEG",
        [field.ours(OURS, UINT8), field.decode(DECODE, THREADS), *rivals],
        {DECODE: 0.95, FLIP: 1.6, DALI: 1.4, TORCHVISION: 2.2}, given,
    )  # fmt: skip
    if smoke:
        return
    run(
        record, "loader, float32 with mean and colour",
        [
            field.ours(OURS, {}),
            field.torch(TUTORIAL, "tutorial", stats=stats, own_colours=True),
            field.torch(SHORT, "tutorial", stats=stats, own_colours=False),
            field.dali(DALI_FUSED, "floats", stats=stats, mean_image=False),
            field.dali(DALI_IMAGE, "floats", stats=stats, mean_image=True),
        ],
        {TUTORIAL: 4.5, SHORT: None, DALI_FUSED: 1.4, DALI_IMAGE: 1.4}, given,
    )  # fmt: skip
    if field.raw is not None:
        run(
            record, "loader, uint8 from raw",
            [field.ours(RAW, UINT8, raw=True), field.ffcv(FLIP, flip=True, raw=True),
             field.dali(DALI, "uint8")],
            {FLIP: 5.0, DALI: 5.0}, given,
        )  # fmt: skip


def memory(record: Record, field: Field, given: Options) -> None:
    """What an epoch adds to the process, over the batches ready and the consumer's one."""
    title = "loader, memory"
    if given.smoke or not record.wanted(title):
        return
    share = dict(field.ours(OURS, {}).shares[0])
    # The first lap of its process: later ones find the memory of earlier ones.
    once = replace(given, rounds=1)
    entrant = Entrant(OURS, "contenders_loader:ours_memory", [share])
    result = race(title, [entrant], once, warm_up=False)
    record.add(result)
    if not result.laps:
        return
    facts = [lap.facts[0] for lap in result.laps[OURS]]
    held = (BATCHES_AHEAD + 1) * max(fact["batch"] for fact in facts) / 2**20
    added = statistics.median(fact["added"] for fact in facts) / 2**20
    rival = f"{BATCHES_AHEAD} batches ahead and the consumer's"
    ratio = held / added
    record.rows.append(Row(title, rival, added, held, "MB", ratio, len(facts), 1 / 1.5))


def stages(record: Record, field: Field, given: Options) -> None:
    """Where the time goes, per image and on one core: differences of whole epochs."""
    title = "loader, stages on one core"
    if given.smoke or not record.wanted(title):
        return
    entrants = [
        field.decode(DECODE, 1),
        field.decode(OUR_DECODE, 1),
        field.ours("crop", UINT8 | PLAIN, threads=1),
        field.ours("crop, mirror", UINT8, threads=1),
        field.ours("crop, mean, float32", PLAIN, threads=1),
        field.ours("crop, mirror, mean, colour", {}, threads=1),
    ]
    result = race(title, entrants, given)
    record.add(result)
    steps = (
        ("decode by libjpeg-turbo", DECODE, None),
        ("decode", OUR_DECODE, None),
        ("crop and all checks, beyond decoding", "crop", OUR_DECODE),
        ("mirror, of half the images", "crop, mirror", "crop"),
        ("mean and float32 instead of uint8", "crop, mean, float32", "crop"),
        ("mirror and colour, in float32", "crop, mirror, mean, colour", "crop, mean, float32"),
    )
    table = {name: _microseconds(result, last, first) for name, last, first in steps}
    record.details["stages_us_per_image"] = table
    print("microseconds per image and core")
    for name, value in table.items():
        print(f"  {name:<40}", "" if value is None else f"{value:8.1f}")


def _microseconds(result: Race, last: str, first: str | None) -> float | None:
    if last not in result.laps or (first is not None and first not in result.laps):
        return None
    value = 1e6 / rate(result.laps[last])
    return round(value - (1e6 / rate(result.laps[first]) if first else 0.0), 2)


def decoders(record: Record, field: Field, given: Options) -> None:
    """Decoding alone in one thread: our decoder over two versions of libjpeg-turbo."""
    title = "decode, one thread"
    if not record.wanted(title):
        return
    ours, system, newer = "ours", "the system's libjpeg-turbo", "simplejpeg's libjpeg-turbo"
    files = field.files[: 8 if given.smoke else 2_000]
    share: dict[str, Any] = {"files": files, "threads": 1}
    entrants = [
        Entrant(ours, "contenders_loader:decode_alone", [share | {"library": False}]),
        Entrant(system, "contenders_loader:decode_alone", [share | {"library": True}]),
        Entrant(newer, "contenders_loader:decode_newer", [{"files": files}]),
    ]
    result = race(title, entrants, given)
    for rival in (system, newer):
        record.add(result, speed_row(result, ours, rival, None, f"{title}: over {rival}"))


def betons(crops: Crops, folder: Path, smoke: bool) -> tuple[Path, Path | None]:
    """The crops as a JPEG beton and as a raw one, built once per folder."""
    jobs = 1 if smoke else None
    paths = {kind: folder / f"{kind}.beton" for kind in ("jpeg", "raw")}
    for kind, path in paths.items():
        if not (smoke and kind == "raw") and not path.exists():
            build(crops.folder, crops.stats, path, kind, jobs)
    return paths["jpeg"], None if smoke else paths["raw"]


def main() -> int:
    """Runs the races that ``--only`` leaves."""
    given = options(__doc__.splitlines()[0] if __doc__ else "")
    with work_folder(given) as work:
        record = Record("loader", given)
        images = photographs(given, work)
        count = SMOKE_CROPS if given.smoke else CROPS
        crops = make_crops(images, work, count, jobs=1 if given.smoke else None)
        jpeg, raw = betons(crops, crops.stats.parent, given.smoke)
        field = Field(crops, jpeg, raw, given.smoke)
        record.details = {
            "images": images.kind, "crops": count, "mean_bytes": round(crops.mean_bytes),
            "batch": field.batch, "workers": THREADS,
        }  # fmt: skip
        races(record, field, given)
        memory(record, field, given)
        stages(record, field, given)
        decoders(record, field, given)
        return record.finish()


if __name__ == "__main__":
    sys.exit(main())
