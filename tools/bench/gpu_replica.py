"""A beton of as many samples as ImageNet out of a small one: its pages again and again."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from imagenet_prep.beton.format import (
    METADATA_START,
    SAMPLE,
    data_start_for,
    read_index,
    start_bytes,
)
from imagenet_prep.core.files import publish
from imagenet_prep.dataset.beton_tables import TABLE
from imagenet_prep.dataset.manifest import load_manifest, save_manifest
from imagenet_prep.dataset.names import stats_beside
from imagenet_prep.jpeg.index import load_index, mcu_rows, rows_beside, save_index

_CHUNK_BYTES = 1 << 24


def copies_that_fit(beton: Path, samples: int, folder: Path, share: float = 0.9) -> int:
    """How many times the pages of ``beton`` have to be written for ``samples`` samples, or as
    often as they go into ``share`` of what is free in ``folder``; at least once."""
    manifest = load_manifest(beton)
    wanted = -(-samples // manifest.samples)
    room = int(share * shutil.disk_usage(folder).free) - samples * (SAMPLE.itemsize + 64)
    return max(1, min(wanted, room // manifest.bytes))


def replicate(beton: Path, target: Path, samples: int, copies: int) -> None:
    """``beton``'s samples in turn until there are ``samples``, in a beton of its own.

    The pages are written ``copies`` times; sample i + n·copies (of n in the small one) lies
    where sample i does, so that with fewer copies than needed the table points at the same
    bytes again. Our loader reads such a file; a stock one may want each place once.
    """
    index, manifest = read_index(beton), load_manifest(beton)
    page, n = index.page_size, len(index.samples)
    first = data_start_for(n, page)
    length = (manifest.bytes - n * TABLE.itemsize) - first  # of the pages with data
    start = data_start_for(samples, page)
    number = np.arange(samples)
    turn = (number // n % copies).astype(np.uint64)
    moved = np.uint64(start) + turn * np.uint64(length) - np.uint64(first)
    rows, table = index.samples[number % n], index.table[number % n]
    rows["image"]["data_ptr"] += moved
    table["ptr"] += moved
    table["sample_id"] = number.astype(np.uint64)
    table_start = start + copies * length
    head = (start_bytes(samples, page, table_start) + rows.tobytes()).ljust(start, b"\0")
    assert len(head) == start >= METADATA_START + samples * SAMPLE.itemsize
    with publish(target) as temporary, temporary.open("wb") as file:
        file.write(head)
        for _ in range(copies):
            _append(beton, first, length, file)
        file.write(table.tobytes())
        size = file.tell()
    shutil.copyfile(stats_beside(beton), stats_beside(target))
    keys = tuple(itertools.islice(itertools.cycle(manifest.keys), samples))
    save_manifest(target, replace(manifest, samples=samples, keys=keys, bytes=size, pages=()))


def replicate_rows(beton: Path, target: Path, samples: int) -> None:
    """The row index of what ``replicate`` made: that of ``beton`` again and again."""
    digest = bytes.fromhex(load_manifest(beton).digest)
    once = load_index(rows_beside(beton), digest)
    turns = -(-samples // len(once.images))
    images = np.tile(once.images, turns)[:samples]
    counts = mcu_rows(images)
    images["row"] = np.cumsum(counts) - counts
    rows = int(counts.sum())
    whole = replace(
        once,
        images=images,
        positions=np.tile(once.positions, turns)[:rows],
        predictors=np.tile(once.predictors, (turns, 1))[:rows],
    )
    with publish(rows_beside(target)) as temporary:
        save_index(temporary, whole, digest)


def _append(source: Path, first: int, length: int, target: IO[bytes]) -> None:
    """Copies ``length`` bytes from byte ``first`` of ``source`` to the end of ``target``."""
    with source.open("rb", buffering=0) as file:
        file.seek(first)
        left = length
        while left:
            part = file.read(min(left, _CHUNK_BYTES))
            if not part:
                raise OSError(f"{source} became shorter while it was read")
            target.write(part)
            left -= len(part)
