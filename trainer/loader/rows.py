"""The row index of a data set: read beside its betons, or made where it is missing."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.core.errors import Progress, ToolError
from imagenet_prep.core.files import publish
from imagenet_prep.dataset.beton_tables import BetonInfo
from imagenet_prep.dataset.shards import Betons
from imagenet_prep.jpeg.index import (
    Index,
    index_images,
    join,
    load_index,
    rows_beside,
    save_index,
)

_CHUNK = 1024


def open_rows(betons: Betons, info: BetonInfo, jobs: int, progress: Progress) -> Index:
    """The row index of all files of a set, in the order of their samples.

    Where one is missing or of another build of the file, it is made by ``jobs`` threads and kept
    beside the beton if that can be written. Raises ToolError where a beton cannot be read.
    """
    found = []
    for number, (path, manifest) in enumerate(zip(betons.paths, betons.manifests, strict=True)):
        source = bytes.fromhex(manifest.digest)
        try:
            found.append(load_index(rows_beside(path), source))
            continue
        except ToolError as error:
            if rows_beside(path).exists():
                logging.getLogger("trainer.loader").warning("%s", error)
        made = make_rows(path, info.extents[info.extents[:, 3] == number], info, jobs, progress)
        try:
            with publish(rows_beside(path)) as temporary:
                save_index(temporary, made, source)
        except OSError:
            pass  # a folder that cannot be written: made again for each loader
        found.append(made)
    return found[0] if len(found) == 1 else join(found)


def make_rows(
    path: Path, extents: NDArray[np.int64], info: BetonInfo, jobs: int, progress: Progress
) -> Index:
    """The samples of a beton, at ``extents`` (n, 4), -> their row index."""
    parts = [extents[at : at + _CHUNK] for at in range(0, len(extents), _CHUNK)]
    file = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(jobs) as pool:
            return join(list(_watched(pool, file, parts, info.side_px, progress)))
    except OSError as error:
        raise ToolError("beton.unreadable", f"{path}: cannot be read ({error.strerror})") from None
    finally:
        os.close(file)


def _watched(
    pool: ThreadPoolExecutor, file: int, parts: list[NDArray[np.int64]], side: int,
    progress: Progress,
) -> Iterator[Index]:  # fmt: skip
    done, total = 0, sum(map(len, parts))
    for index in pool.map(lambda part: _part(file, part, side), parts):
        done += len(index.images)
        progress("row index", done, total)
        yield index


def _part(file: int, extents: NDArray[np.int64], side: int) -> Index:
    sizes = extents[:, 1].copy()
    begins = np.cumsum(sizes) - sizes
    data = np.zeros(int(sizes.sum()) + 64, np.uint8)
    for at, begin, size in zip(
        extents[:, 0].tolist(), begins.tolist(), sizes.tolist(), strict=True
    ):
        found = os.pread(file, size, at)
        data[begin : begin + len(found)] = np.frombuffer(found, np.uint8)
    raw = np.where(extents[:, 2:3] == 1, side, 0) * np.ones((1, 2), np.int64)
    return index_images(data, begins, sizes, raw)
