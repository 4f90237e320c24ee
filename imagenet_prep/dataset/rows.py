"""The row index beside a beton: read, or made from any beton of FFCV's format and published."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np

from imagenet_prep.core.errors import Progress, ToolError, quiet
from imagenet_prep.core.files import publish
from imagenet_prep.core.threads import map_in_threads
from imagenet_prep.dataset.beton_tables import Images, read_images
from imagenet_prep.dataset.manifest import load_manifest
from imagenet_prep.dataset.names import manifest_beside
from imagenet_prep.jpeg.index import Index, index_images, join, load_index, rows_beside, save_index

_CHUNK = 256


def open_rows(path: Path, source: bytes, jobs: int, progress: Progress = quiet) -> Index:
    """A beton -> its row index: the file beside it, or where that is missing, damaged or of
    another build, one made by ``jobs`` threads and kept beside the beton if that can be written.

    ``source`` is ``source_of`` the beton. Raises ToolError where the beton cannot be read.
    """
    if rows_beside(path).exists():
        try:
            return load_index(rows_beside(path), source)
        except ToolError as error:
            import logging

            logging.getLogger("imagenet_prep.dataset").warning("%s", error)
    made = make_rows(path, jobs, progress)
    with contextlib.suppress(OSError):  # a folder that cannot be written: made again each time
        publish_rows(path, made, source)
    return made


def source_of(path: Path) -> bytes:
    """How an index names its beton (32 bytes): the digest in its manifest; without one,
    that of its tables."""
    if manifest_beside(path).exists():
        return bytes.fromhex(load_manifest(path).digest)
    return hashlib.sha256(read_images(path).places.tobytes()).digest()


def publish_rows(path: Path, index: Index, source: bytes) -> None:
    """Writes the index beside a beton, or nothing."""
    with publish(rows_beside(path)) as temporary:
        save_index(temporary, index, source)


def make_rows(path: Path, jobs: int, progress: Progress = quiet) -> Index:
    """Any beton -> the row index of its images, in the order of its samples.

    The same for any number of threads. Raises ToolError where the beton cannot be read.
    """
    images = read_images(path)
    count = len(images.places)
    parts = [slice(at, at + _CHUNK) for at in range(0, count, _CHUNK)]
    found: list[Index] = []
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for part in map_in_threads(lambda where: _indexed(file, images, where), parts, jobs=jobs):
            found.append(part)
            progress("row index", min(len(found) * _CHUNK, count), count)
    except OSError as error:
        raise ToolError("beton.unreadable", f"{path}: cannot be read ({error.strerror})") from None
    finally:
        os.close(file)
    return join(found)


def _indexed(file: int, images: Images, where: slice) -> Index:
    """The samples ``where`` of an open beton; raw ones are not read."""
    places, raw = images.places[where], images.raw[where]
    sizes = places[:, 1].copy()
    held = np.where(raw[:, 0] > 0, 0, sizes)
    begins = np.cumsum(held) - held
    data = np.zeros(int(held.sum()), np.uint8)
    view = memoryview(data.data)
    for at, begin, size in np.stack([places[:, 0], begins, held], axis=1).tolist():
        os.preadv(file, [view[begin : begin + size]], at)
    return index_images(data, begins, sizes, raw)
