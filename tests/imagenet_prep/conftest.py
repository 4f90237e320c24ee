"""One small beton, built once, for the tests that look at it or damage a copy; and a bucket."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imagenet_prep.beton import build as beton
from imagenet_prep.core.files import file_digest
from imagenet_prep.dataset.classes import Classes
from imagenet_prep.dataset.manifest import Manifest, source_digest
from imagenet_prep.dataset.statistics import Stats, save_stats
from imagenet_prep.stats import moments as stats
from tests.kit.store import Store, emptied, serving

_SIZE_PX = 96
_CLASSES = Classes(("ant", "bee", "cat"), {"ant": "an ant"})


@dataclass(frozen=True)
class Made:
    """A folder of crops, what belongs to it, and the beton that was built from it."""

    cropped: Path
    classes: Classes
    crops: list[tuple[str, int]]
    stats: Stats
    stats_digest: str
    out: Path
    manifest: Manifest

    def build(self, out: Path, **changes: Any) -> Manifest:
        arguments: dict[str, Any] = {
            "stats": self.stats,
            "stats_digest": self.stats_digest,
            "classes": _CLASSES,
            "crops": self.crops,
            "jobs": 1,
        }
        arguments |= changes
        return beton.build_beton(self.cropped, arguments.pop("split", "train"), out, **arguments)


def write_crops(folder: Path, count: int) -> list[tuple[str, int]]:
    """Smooth JPEG crops with a long comment each, so that few fill a page; the last one grey."""
    y, x = np.mgrid[0:_SIZE_PX, 0:_SIZE_PX]
    crops = []
    for index in range(count):
        label = index % len(_CLASSES)
        path = f"train/{_CLASSES.names[label]}/{index}.JPEG"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        waves = [np.sin((x * (c + 1) + y * (index % 7)) / 25 + index) for c in range(3)]
        image = Image.fromarray(np.uint8(127 + 60 * np.stack(waves, axis=-1)))
        if index == count - 1:
            image = image.convert("L")
        comment = bytes([index]) * (17_000 + 50 * index)
        image.save(folder / path, "JPEG", quality=90, comment=comment)
        crops.append((path, label))
    return crops


def pil_pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="session")
def made_beton(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A beton of 110 samples in two data pages."""
    folder = tmp_path_factory.mktemp("beton")
    crops = write_crops(folder / "cropped", 110)
    pixels = np.stack([pil_pixels(folder / "cropped" / path) for path, _ in crops])
    source = source_digest((path, file_digest(folder / "cropped" / path)) for path, _ in crops)
    found = stats.finish(stats.moments_of(pixels), source)
    save_stats(folder / "stats.npz", found)
    digest = file_digest(folder / "stats.npz")
    out = folder / "out" / "train.beton"
    arguments: dict[str, Any] = {"stats": found, "stats_digest": digest, "classes": _CLASSES}
    manifest = beton.build_beton(folder / "cropped", "train", out, crops=crops, jobs=1, **arguments)
    return Made(folder / "cropped", _CLASSES, crops, found, digest, out, manifest)


@pytest.fixture
def beton_copy(made_beton: Made, tmp_path: Path) -> Made:
    """The same with a folder of its own, to be damaged."""
    shutil.copytree(made_beton.cropped, tmp_path / "cropped")
    shutil.copytree(made_beton.out.parent, tmp_path / "out")
    return dataclasses.replace(
        made_beton, cropped=tmp_path / "cropped", out=tmp_path / "out" / "train.beton"
    )


@pytest.fixture(scope="module")
def bucket_server() -> Iterator[Store]:
    """A store on this machine."""
    for package in ("s3fs", "moto.server"):
        pytest.importorskip(package)
    with serving() as store:
        yield store


@pytest.fixture
def store(bucket_server: Store) -> Iterator[Store]:
    """An empty bucket, and a server that does no harm yet."""
    with emptied(bucket_server) as store:
        yield store
