"""A beton or its shards -> batches for training or evaluation: the same pixels every time.

For any training script; nothing else of the trainer is needed:

    import torch, torchvision
    from trainer.loader import train_loader

    model = torchvision.models.resnet50()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with train_loader("train.beton", batch_size=256, view="resized", crop_size=224,
                      mean="channel", scaled=True, lighting=0.0) as batches:
        for epoch in range(90):
            batches.set_epoch(epoch)
            for images, labels in batches:
                loss = torch.nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad(), loss.backward(), optimizer.step()
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_prep.core.errors import Progress, UsageError, quiet
from imagenet_prep.dataset.shards import Betons
from imagenet_prep.dataset.statistics import Stats
from trainer.loader.beton_loader import Batch, BetonLoader
from trainer.loader.checks import Reading
from trainer.views.views import Views

__all__ = ["Batch", "BetonLoader", "eval_loader", "train_loader"]
Numbers = Sequence[float]


def train_loader(
    beton: Path | str | Betons,
    stats: Stats | None = None,
    *,
    batch_size: int = 128,
    view: str = "random",
    crop_size: int = 227,
    out_size: int | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    mirror: bool = True,
    alternate: bool = False,
    mean: str | Numbers = "image",
    std: Numbers | None = None,
    lighting: float = 0.1,
    lighting_mode: str = "deviation",
    scaled: bool = False,
    dtype: str = "float32",
    layout: str = "channels_last",
    order: str = "shuffle",
    pages_at_once: int = 16,
    seed: int = 0,
    drop_last: bool = False,
    indices: Any = None,
    rank: int = 0,
    ranks: int = 1,
    jobs: int | None = None,
    device: str = "cpu",
    decode: str = "auto",
    resident: str = "auto",
    batches_ahead: int = 3,
    copy: bool = False,
    verify: bool = False,
    progress: Progress = quiet,
) -> BetonLoader:
    """Random windows of all samples in a seeded order, each sample once per epoch.

    Pixels are a function of (seed, epoch, sample): the same for any ``jobs``, ``ranks``,
    ``device`` and ``decode``, and where an epoch is resumed. ``beton`` is a file or, for
    shards, a pattern (``train-*.beton``); ``stats`` None takes those beside it. ``view`` to
    ``dtype`` are described in ``views.Views``, the others in ``checks.Reading``. ``layout``:
    images (B, 3, S, S) in either memory format, or "space_to_depth": (B, 48, S/4, S/4), see
    ``cpu.shape_of``. Raises ToolError or UsageError; see ``BetonLoader``.
    """
    views = Views(
        crop_size, crop_size if out_size is None else out_size, view, scale, ratio, mirror,
        _levels(mean), lighting, lighting_mode, scaled, _levels(std), dtype, seed, alternate,
    )  # fmt: skip
    if not views.drawn:
        raise UsageError("loader.view", f"view is {view!r}; for training use random or resized")
    reading = Reading(
        batch_size, drop_last, _subset(indices), order, pages_at_once, rank, ranks, jobs, device,
        decode, resident, layout, batches_ahead, copy, verify, progress,
    )  # fmt: skip
    return BetonLoader(beton, stats, views, reading)


def eval_loader(
    beton: Path | str | Betons,
    stats: Stats | None = None,
    *,
    batch_size: int = 128,
    view: str = "centre",
    crop_size: int = 227,
    out_size: int | None = None,
    mean: str | Numbers = "image",
    std: Numbers | None = None,
    scaled: bool = False,
    dtype: str = "float32",
    layout: str = "channels_last",
    drop_last: bool = False,
    indices: Any = None,
    rank: int = 0,
    ranks: int = 1,
    jobs: int | None = None,
    device: str = "cpu",
    decode: str = "auto",
    resident: str = "auto",
    batches_ahead: int = 3,
    copy: bool = False,
    verify: bool = False,
    progress: Progress = quiet,
) -> BetonLoader:
    """Fixed windows of all samples in file order: "centre", "five" (the corners and the
    centre) or "ten" (these and their mirror images), the same in every epoch.

    Options are those of ``train_loader``; images of several views are (B, V, 3, S, S).
    """
    views = Views(
        crop_size, crop_size if out_size is None else out_size, view, mean=_levels(mean),
        scaled=scaled, std=_levels(std), lighting_mode="off", dtype=dtype,
    )  # fmt: skip
    if views.drawn:
        raise UsageError("loader.view", f"view is {view!r}; for evaluation use centre, five or ten")
    reading = Reading(
        batch_size, drop_last, _subset(indices), "sequential", 1, rank, ranks, jobs, device,
        decode, resident, layout, batches_ahead, copy, verify, progress,
    )  # fmt: skip
    return BetonLoader(beton, stats, views, reading)


def _levels(value: Any) -> Any:
    """A word, None or numbers -> the same, numbers as a tuple of floats."""
    return value if value is None or isinstance(value, str) else tuple(map(float, value))


def _subset(indices: Any) -> Any:
    """Sample numbers of any kind -> uint64 (n,); None for all."""
    if indices is None:
        return None
    found = np.asarray(indices)
    if found.dtype.kind not in "iu" or (found.size and found.min() < 0):
        raise UsageError("loader.indices", "indices must be sample numbers of at least 0")
    return found.astype(np.uint64)
