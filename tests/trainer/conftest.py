"""Small betons for the loader's tests, made as a user makes them."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from imagenet_prep.beton import build as beton
from imagenet_prep.core.files import file_digest
from imagenet_prep.dataset.classes import Classes
from imagenet_prep.dataset.manifest import Manifest, save_manifest, source_digest
from imagenet_prep.dataset.statistics import Stats, save_stats
from imagenet_prep.stats import moments as stats

CLASSES = Classes(("ant", "bee", "cat"), {})


@dataclass(frozen=True)
class Sample:
    """A beton, its manifest and statistics, and the pixels of its samples in file order."""

    path: Path
    manifest: Manifest
    stats: Stats
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def smooth_image(side: int, seed: int) -> NDArray[np.uint8]:
    """A smooth colourful image (side, side, 3); every third is grey."""
    y, x = np.mgrid[0:side, 0:side] / side
    rng = np.random.default_rng(seed)
    planes = []
    for _ in range(3):
        a, b, c = rng.uniform(-6, 6, 3)
        planes.append(128 + 60 * np.sin(a * x + b * y + c) + 60 * np.sin(9 * x * y + a))
    pixels = np.clip(np.stack(planes, axis=-1), 0, 255).astype(np.uint8)
    return np.repeat(pixels[..., :1], 3, axis=2) if seed % 3 == 0 else pixels


def jpeg(pixels: NDArray[np.uint8], quality: int = 90, progressive: bool = False) -> bytes:
    """(S, S, 3) -> JPEG bytes; a grey image is written as a grey JPEG."""
    image = Image.fromarray(pixels)
    if (pixels == pixels[..., :1]).all():
        image = image.convert("L")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, progressive=progressive)
    return buffer.getvalue()


def decoded(data: bytes) -> NDArray[np.uint8]:
    """JPEG bytes -> (S, S, 3) uint8 RGB, by Pillow."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def make_beton(
    folder: Path,
    count: int,
    side: int,
    quality: int = 90,
    format: str = "jpeg",
    progressive: bool = False,
    names: Classes = CLASSES,
) -> Sample:
    """``count`` images of ``side`` px -> ``train.beton`` with all that belongs to it."""
    cropped = folder / "cropped"
    crops, written = [], {}
    for index in range(count):
        label = index % len(names)
        key = f"train/{names.names[label]}/{index}.JPEG"
        (cropped / key).parent.mkdir(parents=True, exist_ok=True)
        written[key] = jpeg(smooth_image(side, index), quality, progressive)
        (cropped / key).write_bytes(written[key])
        crops.append((key, label))
    pixels = {key: decoded(data) for key, data in written.items()}
    source = source_digest((key, file_digest(cropped / key)) for key, _ in crops)
    exact = stats.finish(stats.moments_of(np.stack(list(pixels.values()))), source)
    save_stats(folder / "stats.npz", exact)
    digest = file_digest(folder / "stats.npz")
    path = folder / "train.beton"
    manifest = beton.build_beton(
        cropped, "train", path, stats=exact, stats_digest=digest, classes=names,
        crops=crops, jobs=1, format=format,
    )  # fmt: skip
    labels = dict(crops)
    return Sample(
        path,
        manifest,
        exact,
        np.stack([pixels[key] for key in manifest.keys]),
        np.array([labels[key] for key in manifest.keys]),
    )


@pytest.fixture(autouse=True)
def same_numbers() -> Iterator[None]:
    """Each test draws the same numbers, with the thread count that it found: stock FFCV changes
    PyTorch's, with which sums change in their last bit."""
    torch.manual_seed(0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small_beton(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """25 images of 64 px."""
    return make_beton(tmp_path_factory.mktemp("small"), 25, 64)


@pytest.fixture(scope="session")
def full_beton(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """6 images of 256 px."""
    return make_beton(tmp_path_factory.mktemp("full"), 6, 256)


@pytest.fixture
def damaged(tmp_path: Path, small_beton: Sample) -> Callable[..., Sample]:
    """A factory of copies of ``small_beton`` with bytes changed behind its manifest's back.

    ``damaged(change)``: ``change`` gets the file's bytes as a bytearray and alters it; the
    manifest's ``bytes`` follow the new length, so that only the loader's own checks are left.
    """

    def make(change: Callable[[bytearray], Any]) -> Sample:
        data = bytearray(small_beton.path.read_bytes())
        change(data)
        path = tmp_path / "damaged.beton"
        path.write_bytes(data)
        os.utime(path, (0, 0))  # so that any later change shows in its time
        manifest = dataclasses.replace(small_beton.manifest, bytes=len(data))
        save_manifest(path, manifest)
        return dataclasses.replace(small_beton, path=path, manifest=manifest)

    return make


@pytest.fixture(scope="session")
def tiny_network() -> Iterator[str]:
    """The name of a member of the family that trains in no time; there for the session."""
    from tests.kit.short_run import SPEC
    from trainer.network.alexnet import NETWORKS

    NETWORKS["tiny"] = SPEC
    yield "tiny"
    del NETWORKS["tiny"]
