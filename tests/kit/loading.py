"""What the loader's tests share: a short loader, its batches, and the definition's result."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from imagenet_prep.dataset.statistics import Stats
from tests.kit.views import draws, numpy_sample
from trainer.loader.loader import Batch, BetonLoader, eval_loader, train_loader
from trainer.views.views import colour_basis, gain_of, mean_of

Sample = Any
Damaged = Callable[[Callable[[bytearray], Any]], Sample]
TRAIN: dict[str, Any] = {"batch_size": 8, "crop_size": 51, "seed": 3, "jobs": 1}


def train(sample: Sample, **changes: Any) -> BetonLoader:
    return train_loader(sample.path, sample.stats, **(TRAIN | changes))


def kept(batches: BetonLoader) -> list[Batch]:
    """The epoch's batches, cloned: the loader's own are valid until the next one."""
    return [Batch(b.images.clone(), b.labels.clone(), b.indices.clone()) for b in batches]


def open_betons(folder: Path) -> int:
    """How many betons of this folder the process has open; skips where a system does not show."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("the system does not show a process its descriptors")
    gc.collect()
    names = []
    for entry in descriptors.iterdir():
        with contextlib.suppress(FileNotFoundError):  # other threads open and close files
            names.append(entry.readlink())
    return sum(name.parent == folder and name.suffix == ".beton" for name in names)


def pixels(batches: list[Batch]) -> NDArray[np.float32]:
    """(N, [V,] S, S, 3) of all batches in the samples' file order."""
    images = torch.cat([b.images for b in batches]).movedim(-3, -1)
    order = torch.argsort(torch.cat([b.indices for b in batches]))
    return np.asarray(images[order])


def expected(sample: Sample, batches: BetonLoader, epoch: int) -> NDArray[np.float64]:
    """What the plain definition gives, in file order."""
    views = batches.views
    stats: Stats = sample.stats
    basis = colour_basis(stats.eigenvectors, stats.eigenstdev, views)
    mean, gain = mean_of(views, stats.mean), gain_of(views, stats.channel_std)
    drawn = draws(views, epoch, np.arange(len(sample.images)), stats.size_px)
    made = [
        numpy_sample(image, mean, basis, gain, views, drawn, i * views.count + v)
        for i, image in enumerate(sample.images)
        for v in range(views.count)
    ]
    return np.stack(made).reshape(len(sample.images), -1, *made[0].shape)[
        :, 0 if views.count == 1 else slice(None)
    ]


ON_DEVICE: list[dict[str, Any]] = [
    {"dtype": "uint8"},
    {"dtype": "uint8", "layout": "space_to_depth", "mirror": False},
    {"lighting_mode": "variance", "layout": "channels_first"},
    {"mean": "centre", "scaled": True, "lighting_mode": "image", "dtype": "float16"},
    {"mean": (120.0, 110.0, 100.0), "std": (60.0, 58.0, 57.0), "layout": "space_to_depth"},
    {"view": "resized", "out_size": 7, "mean": "centre"},
    {"dtype": "bfloat16", "layout": "space_to_depth", "mean": "channel"},
    {"view": "five", "dtype": "bfloat16", "layout": "channels_first"},
    {"view": "ten", "out_size": 6, "batch_size": 4},
]
"""Options of a loader that between them use every view, mean, noise, dtype and layout."""


def any_loader(path: Any, options: dict[str, Any]) -> BetonLoader:
    """A loader for training or for evaluation, as the view asks for."""
    if options.get("view") in ("centre", "five", "ten"):
        return eval_loader(path, **{k: v for k, v in options.items() if k != "seed"})
    return train_loader(path, **options)


def assert_same_on_the_device(
    path: Any, options: dict[str, Any], device: dict[str, Any], epochs: int = 2
) -> None:
    """The batches of some epochs are those of the CPU: uint8 to the bit, floats to 1e-3 of a
    level (halves: or to their own precision), in the same memory format."""
    close = {"bfloat16": 2**-8, "float16": 2**-11}.get(options.get("dtype", "float32"), 1e-6)
    exact = options.get("dtype") == "uint8" and options.get("view") != "resized"
    with any_loader(path, options) as host, any_loader(path, options | device) as ours:
        assert ours.decode == "gpu"
        for _ in range(epochs):
            for wanted, found in zip(host, ours, strict=True):
                images = found.images.cpu()
                assert images.dtype == wanted.images.dtype
                assert images.shape == wanted.images.shape
                assert images.stride() == wanted.images.stride()
                assert torch.equal(found.labels.cpu(), wanted.labels)
                assert torch.equal(found.indices, wanted.indices)
                off = (images.double() - wanted.images.double()).abs()
                allowed = 0.0 if exact else 1e-3 + close * wanted.images.double().abs()
                assert bool((off <= allowed).all()), float(off.max())
