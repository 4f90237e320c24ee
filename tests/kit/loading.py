"""What the loader's tests share: a short loader, its batches, and what the definition says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imagenet_prep.dataset.statistics import Stats
from tests.kit.views import draws, numpy_sample
from trainer.loader.loader import Batch, BetonLoader, train_loader
from trainer.loader.views import colour_basis, gain_of, mean_of

Sample = Any
Damaged = Callable[[Callable[[bytearray], Any]], Sample]
TRAIN: dict[str, Any] = {"batch_size": 8, "crop_size": 51, "seed": 3, "jobs": 1}


def train(sample: Sample, **changes: Any) -> BetonLoader:
    return train_loader(sample.path, sample.stats, **(TRAIN | changes))


def kept(batches: BetonLoader) -> list[Batch]:
    """The epoch's batches, cloned: the loader's own are valid until the next one."""
    return [Batch(b.images.clone(), b.labels.clone(), b.indices.clone()) for b in batches]


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
    drawn = draws(views, epoch, np.arange(len(sample.pictures)), stats.size_px)
    made = [
        numpy_sample(picture, mean, basis, gain, views, drawn, i * views.count + v)
        for i, picture in enumerate(sample.pictures)
        for v in range(views.count)
    ]
    return np.stack(made).reshape(len(sample.pictures), -1, *made[0].shape)[
        :, 0 if views.count == 1 else slice(None)
    ]
