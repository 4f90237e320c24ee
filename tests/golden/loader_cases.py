"""Digests of what the loader's randomness and arithmetic give: orders, draws, uint8 pixels.

A change of any of them changes every run's batches, and what a checkpoint resumes into.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.beton import build as beton
from imagenet_prep.core.files import file_digest
from imagenet_prep.dataset.beton_tables import inspect_beton
from imagenet_prep.dataset.classes import Classes
from imagenet_prep.dataset.manifest import source_digest
from imagenet_prep.dataset.statistics import Stats, save_stats
from imagenet_prep.stats import moments as stats
from tests.kit.views import draws
from trainer.hashing import words
from trainer.loader.loader import BetonLoader, eval_loader, train_loader
from trainer.loader.order import ORDERS, sample_order
from trainer.views.views import Views

SEEDS = (0, 3, 2**63 + 1)
EPOCHS = (0, 1, 89)
SAMPLES = 1000
IMAGES, SIDE_PX = 12, 64
CLASSES = Classes(("ant", "bee", "cat"), {})


def digest(*arrays: NDArray[Any]) -> str:
    """64 bits of the SHA-256 of arrays of whole numbers, as 16 hexadecimal digits."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).astype("<i8").tobytes())
    return found.hexdigest()[:16]


def orders() -> Iterator[tuple[str, str]]:
    """Each order of an epoch of 1,000 samples on pages of seven."""
    pages = np.arange(SAMPLES) // 7
    for kind in ORDERS:
        for seed in SEEDS:
            found = [sample_order(kind, seed, epoch, pages, 5) for epoch in EPOCHS]
            yield f"order {kind} seed {seed}", digest(*found)


def windows() -> Iterator[tuple[str, str]]:
    """The drawn windows and mirrors, and the colour draws to a millionth."""
    indices = np.arange(SAMPLES, dtype=np.uint64)
    for seed in SEEDS:
        for kind, scale in (("random", (1.0, 1.0)), ("resized", (0.08, 1.0))):
            views = Views(227, 227, kind, scale, mirror=True, seed=seed)
            drawn = [draws(views, epoch, indices, 256) for epoch in EPOCHS]
            parts = [a for d in drawn for a in (d.y, d.x, d.height, d.width, d.mirror)]
            yield f"windows {kind} seed {seed}", digest(*parts)
        normals = [np.rint(d.normals * 1e6) for d in drawn]
        yield f"colour seed {seed}", digest(*normals)


def images() -> NDArray[np.uint8]:
    """(N, S, S, 3) uint8 noise, from whole numbers alone: the same on every machine."""
    count = IMAGES * SIDE_PX * SIDE_PX * 3
    noise = words(11, 0, np.arange(count, dtype=np.uint64), 0) >> np.uint64(56)
    return noise.astype(np.uint8).reshape(IMAGES, SIDE_PX, SIDE_PX, 3)


def raw_beton(folder: Path) -> tuple[Path, Stats]:
    """A beton that holds ``images`` as they are, in file order, independent of any JPEG library."""
    from PIL import Image

    crops = [(f"train/{CLASSES.names[i % 3]}/{i}.JPEG", i % 3) for i in range(IMAGES)]
    made = images()
    for key, _ in crops:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE_PX, SIDE_PX)).save(folder / key)
    source = source_digest((key, file_digest(folder / key)) for key, _ in crops)
    exact = stats.finish(stats.moments_of(made), source)
    save_stats(folder / "stats.npz", exact)
    path = folder / "train.beton"
    beton.build_beton(
        folder, "train", path, stats=exact, classes=CLASSES, crops=crops, jobs=1, format="raw",
        stats_digest=file_digest(folder / "stats.npz"),
    )  # fmt: skip
    extents = inspect_beton(path).extents
    with path.open("r+b") as file:
        for (offset, size, *_), image in zip(extents.tolist(), made, strict=True):
            assert size == image.nbytes
            file.seek(offset)
            file.write(image.tobytes())
    return path, exact


def in_file_order(batches: BetonLoader) -> NDArray[np.int64]:
    """The epoch's uint8 pixels, by the samples' place in the file."""
    found = {
        int(index): image.numpy().copy()
        for batch in batches
        for index, image in zip(batch.indices, batch.images, strict=True)
    }
    return np.stack([found[index] for index in sorted(found)])


def pixels() -> Iterator[tuple[str, str]]:
    """What comes out of the compiled loader as uint8, two epochs of each kind of view."""
    options: dict[str, Any] = {"batch_size": 5, "crop_size": 51, "dtype": "uint8"}
    with tempfile.TemporaryDirectory() as folder:
        path, exact = raw_beton(Path(folder))
        for kind in ("random", "resized"):
            with train_loader(path, exact, view=kind, seed=3, **options) as batches:
                made = [in_file_order(batches) for _ in range(2)]
            yield f"pixels {kind} seed 3", digest(*made)
        for kind in ("centre", "five", "ten"):
            with eval_loader(path, exact, view=kind, **options) as batches:
                yield f"pixels {kind}", digest(in_file_order(batches))


def cases() -> dict[str, str]:
    """Name -> digest of every case."""
    return dict([*orders(), *windows(), *pixels()])
