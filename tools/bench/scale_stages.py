"""The bookkeeping of very large sets, stage by stage, over entries that are made up.

Each of PROCESSES is run in a process of its own by ``bench_scale`` and gives its stages one
after the other; the memory of a stage is the peak of its process until its end. What is made
up: the listing of a bucket with class folders (names, sizes and times as a server would tell
them), what came of each image, and the size of each crop. What is not: everything that this
project does with these. No file is looked at and no image is opened, so what a disk or a
server needs is not in these figures; making things up is.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench import plan as bench_plan

CLASSES = 21_841  # of ImageNet-21k
SHARD_SAMPLES = 200_000  # 4 GB of crops of 20 KB
RANKS, BATCH = 64, 256
_CROP_BYTES, _SETTINGS_PX = 20_444, 256


Measured = Iterator[tuple[str, dict[str, Any]]]
"""(stage, what ``measured`` returns for it), one after the other."""


class Start:
    """When a stage began, by the clock and in processor seconds."""

    def __init__(self) -> None:
        self.wall_s, self.cpu_s = time.perf_counter(), time.process_time()


def measured(start: Start, count: int, held: int) -> dict[str, Any]:
    """Seconds since ``start``, those of the processor, peak memory in GB; ``count``, the entries
    that were worked on, and ``held``, those that lay in memory."""
    cpu_s = time.process_time() - start.cpu_s
    return {**bench_plan.measured(start.wall_s, count), "cpu_s": cpu_s, "held": held}


@dataclass(frozen=True)
class Case:
    """So many entries, in so many parts of which one is measured, in a folder of their own."""

    count: int
    parts: int
    folder: Path

    @property
    def part(self) -> Any:
        """The part that is measured; None where there is one alone."""
        from imagenet_prep.dataset.journal import Part

        return Part(1, self.parts) if self.parts > 1 else None

    @property
    def journal(self) -> Path:
        """Where its journal is."""
        from imagenet_prep.dataset.journal import journal_name

        return self.folder / journal_name(self.part)


def _found(count: int) -> Iterator[Any]:
    """``count`` images in class folders, as a layout finds them, in the order of listing."""
    from imagenet_prep.containers.source import found
    from imagenet_prep.storage.byte_range import Place

    classes = min(CLASSES, max(1, count // 50))
    for label in range(classes):
        name = f"n{label:08d}"
        for index in range(len(range(label, count, classes))):
            inside = f"{name}/{name}_{index:07d}.JPEG"
            # Sizes and times without a pattern that could be packed too well.
            chance = (label * 1_000_003 + index) * 2_654_435_761 % (1 << 32)
            seen = f"{60_000 + chance % 100_000} {1_600_000_000_000_000_000 + chance * 1_000_003}"
            place = Place(f"s3://bucket/train/{inside}", seen=seen)
            yield found(f"train/{inside}", "train", name, inside, place)


def _collection(count: int) -> Any:
    from imagenet_prep.containers.source import Finding
    from imagenet_prep.sources.scan import Scan

    names = {f"n{label:08d}" for label in range(min(CLASSES, max(1, count // 50)))}
    by_class = itertools.groupby(_found(count), key=lambda source: source.class_name)
    finding = Finding((list(group) for _, group in by_class), {"train": names})
    return Scan(Path("bucket"), "folders", finding, None, "")


def _settings() -> Any:
    from imagenet_prep.dataset.crop_settings import CropSettings

    return CropSettings()


def _plan(found: Any, case: Case) -> Any:
    """A plan in a folder whose crops all have the size in the journal."""
    from imagenet_prep.crop import plan as crop_plan

    crop_plan._bytes = lambda *_: _CROP_BYTES
    return crop_plan.plan_crops(found, case.folder, _settings().text())


@contextlib.contextmanager
def _scanned(case: Case) -> Iterator[Any]:
    """The scan of a made-up collection, with the journal of the case beside it."""
    from imagenet_prep.crop.plan import scanned
    from imagenet_prep.dataset.journal import attached

    with (
        scanned(_collection(case.count), case.part) as found,
        attached(found.connection, case.journal, "journal", create=True),
    ):
        yield found


def first_run(case: Case) -> Measured:
    """All of a first run but the images: what there is, what is to do, what became of it."""
    from imagenet_prep.crop.plan import todo
    from imagenet_prep.crop.run import RECORD, Outcome
    from imagenet_prep.dataset.journal import finish

    start = Start()
    with _scanned(case) as found:
        journal = found.connection
        listed = measured(start, found.of_all, case.count)
        yield "listing: labels, order, crop names", listed
        start = Start()
        plan = _plan(found, case)
        yield "plan of a first run", measured(start, plan.total, case.count)
        settings = _settings().text()
        start = Start()
        journal.execute("BEGIN")
        for source in todo(journal):
            made = Outcome(source.key, "", "", 500, 375, "RGB", _CROP_BYTES)
            journal.execute(RECORD, (*made, settings))
        finish(journal, plan.total, plan.of_all)
        journal.execute("COMMIT")
    size = case.journal.stat().st_size
    yield "journal, written", {**measured(start, plan.total, case.count), "bytes": size}


def read(case: Case) -> Measured:
    """The journal as the stages after ``crop`` read it: all good crops listed."""
    from imagenet_prep.dataset.journal import Crops
    from imagenet_prep.dataset.names import JOURNAL_NAME

    merged = case.folder / JOURNAL_NAME
    if case.part is not None:  # one part alone is not what they take
        os.link(case.journal, merged)
    start = Start()
    crops = Crops(case.folder)
    listed = sum(1 for _ in crops.rows("train", there=False))
    if case.part is not None:
        merged.unlink()
    yield "journal, read", measured(start, listed, listed)


def second_run(case: Case) -> Measured:
    """The plan of a run over what is done: all rows beside all sources."""
    start = Start()
    with _scanned(case) as found:
        plan = _plan(found, case)
    if plan.todo:
        raise RuntimeError("the second run finds something to do")
    yield "plan of a second run", measured(start, plan.total, case.count)


def resume(case: Case) -> Measured:
    """The plan of a run after one that was killed at half: half of the rows are missing."""
    from imagenet_prep.dataset.journal import opened

    with opened(case.journal) as journal:
        journal.execute("DELETE FROM source WHERE key IN (SELECT key FROM source ORDER BY key "
                        "LIMIT (SELECT count(*) / 2 FROM source))")  # fmt: skip
    start = Start()
    with _scanned(case) as found:
        plan = _plan(found, case)
    if not 0.4 < plan.kept / plan.total < 0.6:
        raise RuntimeError("half of the rows is not half of the sources")
    yield "resume at half", measured(start, plan.total, case.count)


def manifests(case: Case) -> Measured:
    """The manifests of a set of shards, written and read, all in memory at the end."""
    from imagenet_prep.dataset.manifest import Manifest, load_manifest, save_manifest
    from imagenet_prep.dataset.names import manifest_beside

    start = Start()
    kept, size = [], 0
    for shard, first in enumerate(range(0, case.count, SHARD_SAMPLES)):
        samples = min(SHARD_SAMPLES, case.count - first)
        beton = case.folder / f"train-{shard:05d}.beton"
        beton.write_bytes(b"")
        pages = tuple(f"{page:064x}" for page in range(samples * _CROP_BYTES // (8 << 20) + 1))
        keys = tuple(
            f"train/n{at % CLASSES:08d}/n{at % CLASSES:08d}_{at // CLASSES:07d}.JPEG"
            for at in range(first, first + samples)
        )
        save_manifest(
            beton,
            Manifest(
                samples, "train", _SETTINGS_PX, ("a",), {}, {"jpeg": samples}, 8 << 20, 0,
                "0" * 64, pages, "0" * 64, "0" * 64, {}, {}, keys,
            ),
        )  # fmt: skip
        kept.append(load_manifest(beton))
        size += manifest_beside(beton).stat().st_size
        beton.unlink()
        manifest_beside(beton).unlink()
    done = measured(start, sum(each.samples for each in kept), case.count)
    yield "manifests of all shards", {**done, "bytes": size}


def order(case: Case) -> Measured:
    """An epoch's order: the permutation, one rank's batches, and the same from its middle on."""
    import numpy as np

    from trainer.loader.order import rank_batches, sample_order, step_ends

    start = Start()
    batch = max(1, min(BATCH, case.count // (4 * RANKS)))
    pages = np.zeros(case.count, np.int64)
    found = sample_order("shuffle", 0, 3, pages, 64)
    ends = step_ends(case.count, batch, RANKS)
    batches = rank_batches(found, batch, RANKS - 1, RANKS)
    half = ends[len(ends) // 2 - 1]
    rest = rank_batches(found[half:], batch, RANKS - 1, RANKS)
    if ends[-1] != case.count or not np.array_equal(rest[-1], batches[-1]):
        raise RuntimeError("the epoch does not go on where it was")
    yield "order of an epoch, and resumed", measured(start, case.count, case.count)


PROCESSES = {
    "first run": first_run,
    "journal": read,
    "second run": second_run,
    "resume": resume,
    "manifests": manifests,
    "order": order,
}
