"""The options of a loader, and whether they, the files and the machine fit together."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from imagenet_prep.core.errors import Progress, ToolError, UsageError, quiet
from imagenet_prep.dataset.beton_tables import REBUILD, BetonInfo
from imagenet_prep.dataset.shards import Betons
from imagenet_prep.dataset.statistics import Stats
from trainer.device import usable_cpus
from trainer.loader.cpu import MOST_THREADS
from trainer.loader.order import ORDERS
from trainer.views.views import DTYPES, KINDS, LAYOUTS, LIGHTINGS, MEANS, Views

DECODES = ("auto", "gpu", "cpu")
RESIDENTS = ("auto", "on", "off")


@dataclass(frozen=True, eq=False)
class Reading:
    """How a beton is read, whatever is made of its images.

    ``order`` is "shuffle", "pages" (shuffled ``pages_at_once`` pages at a time, for sets beyond
    memory; it depends on the pages, so on the number of shards) or "sequential". ``rank`` of
    ``ranks`` processes takes its part of the one order (see ``order.rank_batches``). ``indices``
    are the samples of a subset, None for all. ``jobs`` is the number of threads, None for one
    per core. ``batches_ahead`` batches wait ready. ``decode``: where JPEGs are decoded for a
    CUDA device, "auto" for the device wherever it can. ``resident``: whether compressed images
    stay on the device after their first use, "auto" where they fit into half of its free
    memory. ``copy``: batches are copies, to keep. ``verify`` reads all files first and
    compares their digests. ``progress`` shows the making of a missing row index.
    """

    batch_size: int = 128
    drop_last: bool = False
    indices: NDArray[np.uint64] | None = None
    order: str = "shuffle"
    pages_at_once: int = 16
    rank: int = 0
    ranks: int = 1
    jobs: int | None = None
    device: str = "cpu"
    decode: str = "auto"
    resident: str = "auto"
    layout: str = "channels_last"
    batches_ahead: int = 3
    copy: bool = False
    verify: bool = False
    progress: Progress = quiet


def usable_device(name: str) -> torch.device:
    """``cpu`` or ``cuda[:n]`` -> the device; UsageError if this machine has none of that name."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise _wrong("device", f"device {name!r} is unknown; use cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise _wrong("device", f"device {name!r}: batches are made for cpu and cuda only")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise _wrong("device", f"device {name!r}: no usable CUDA device here; use cpu")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def check_decoding(reading: Reading, device: torch.device) -> None:
    """UsageError where ``reading`` asks for decoding on a device, and ``device`` or its other
    options do not allow it."""
    here = device.type == "cpu" and os.environ.get("NUMBA_ENABLE_CUDASIM") != "1"
    if reading.decode == "gpu" and here:
        raise _wrong("decode", "decode is 'gpu'; it needs a CUDA device (device='cuda')")
    if reading.resident == "on" and (here or reading.decode == "cpu"):
        raise _wrong(
            "resident",
            "resident is 'on'; it needs images that are decoded on a CUDA device: device='cuda' "
            "and decode='auto' or 'gpu'",
        )


def usable_threads(jobs: int | None) -> int:
    """The threads to use; numba raises above the cores that this process may use."""
    if jobs is not None and jobs < 1:
        raise _wrong("jobs", f"jobs is {jobs}; it must be at least 1")
    most = min(usable_cpus(), MOST_THREADS)
    return most if jobs is None else min(jobs, most)


def _wrong(option: str, message: str) -> UsageError:
    return UsageError(f"loader.{option}", message)


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise _wrong(option, f"{option} is {value!r}; it is one of {', '.join(known)}")


def check_views(views: Views) -> None:
    """UsageError naming the first option of ``views`` that is invalid."""
    for name, value in (("crop_size", views.crop_px), ("out_size", views.out_px)):
        if value < 1:
            raise _wrong(name, f"{name} is {value}; it must be at least 1")
    _one_of("view", views.kind, KINDS)
    _one_of("lighting_mode", views.lighting_mode, LIGHTINGS)
    _one_of("dtype", views.dtype, DTYPES)
    if isinstance(views.mean, str):
        _one_of("mean", views.mean, MEANS)
    for name, numbers in (("mean", views.mean), ("std", views.std)):
        if numbers is None or isinstance(numbers, str):
            continue
        if len(numbers) != 3 or not all(0 <= number <= 255 for number in numbers):
            raise _wrong(name, f"{name} is {numbers}; give three levels of 0-255")
        if 0 < max(numbers) <= 1:
            raise _wrong(name, f"{name} is {numbers}; levels are 0-255 here, so multiply by 255")
    least, most = views.scale
    if not 0 < least <= most <= 1:
        raise _wrong("scale", f"scale is {least} to {most}; fractions above 0, at most 1")
    low, high = views.ratio
    if not 0 < low <= 1 <= high < math.inf:
        raise _wrong("ratio", f"ratio is {low} to {high}; it must include 1")
    if not 0 <= views.lighting < math.inf:
        raise _wrong("lighting", f"lighting is {views.lighting}; it must be at least 0")


def check_reading(reading: Reading, samples: int) -> None:
    """UsageError naming the first option of ``reading`` that is invalid."""
    for name in ("batch_size", "pages_at_once", "ranks", "batches_ahead"):
        value = getattr(reading, name)
        if value < 1:
            raise _wrong(name, f"{name} is {value}; it must be at least 1")
    if not 0 <= reading.rank < reading.ranks:
        raise _wrong("rank", f"rank is {reading.rank}; it counts from 0 to {reading.ranks - 1}")
    _one_of("order", reading.order, ORDERS)
    _one_of("decode", reading.decode, DECODES)
    _one_of("resident", reading.resident, RESIDENTS)
    _one_of("layout", reading.layout, LAYOUTS)
    chosen = reading.indices
    if chosen is not None and not (
        chosen.ndim == 1 and len(chosen) and int(chosen.max()) < samples
        and len(np.unique(chosen)) == len(chosen)
    ):  # fmt: skip
        raise _wrong("indices", f"indices must be different sample numbers below {samples}")
    left = samples if chosen is None else len(chosen)
    if reading.drop_last and left < reading.batch_size * reading.ranks:
        raise _wrong(
            "drop_last",
            f"drop_last leaves nothing of {left} samples in batches of {reading.batch_size} on "
            f"{reading.ranks} ranks; use smaller batches",
        )


def check_fit(beton: Betons, info: BetonInfo, stats: Stats, views: Views) -> None:
    """ToolError or UsageError unless betons, tables, statistics and crop size fit together."""
    manifest = beton.manifest
    if (manifest.samples, manifest.size_px) != (info.samples, info.side_px):
        raise ToolError(
            "beton.manifest_differs",
            f"{beton}: has {info.samples} images of {info.side_px} px, its manifest has "
            f"{manifest.samples} of {manifest.size_px} px; {REBUILD}",
        )
    if info.label_max >= len(manifest.classes):
        raise ToolError(
            "beton.manifest_differs",
            f"{beton}: has label {info.label_max}, its manifest names {len(manifest.classes)} "
            f"classes; {REBUILD}",
        )
    if stats.mean.shape[:2] != (info.side_px, info.side_px):
        raise ToolError(
            "stats.size_differs",
            f"{beton}: has images of {info.side_px} px, the statistics are of {stats.size_px} px; "
            "use the statistics made from the same crops",
        )
    if views.crop_px > info.side_px:
        raise _wrong(
            "crop_size",
            f"crop_size is {views.crop_px}, the images of {beton} have {info.side_px} px; choose "
            f"a smaller one, for example --crop-size {info.side_px * 7 // 8}",
        )
