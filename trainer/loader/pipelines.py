"""Views and a beton -> FFCV's pipelines for one device; what cannot be is one sentence."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any

import torch

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.dataset.shards import Betons
from imagenet_prep.dataset.statistics import Stats
from trainer.loader.engine import MOST_THREADS, CropDecoder, DeviceAugment, ffcv
from trainer.loader.tables import REBUILD, BetonInfo
from trainer.loader.views import DTYPES, KINDS, LIGHTINGS, MEANS, Views


def make_pipelines(
    info: BetonInfo,
    stats: Stats,
    views: Views,
    *,
    batch_size: int,
    jobs: int,
    device: torch.device,
    planes: bool = False,
) -> tuple[dict[str, list[Any]], CropDecoder, bool]:
    """FFCV's pipelines of the fields image and label; the decoder, which holds the epoch; and
    whether images come with their channels in front of rows and columns.

    On the CPU everything happens in the decoder's one pass. To another device travel uint8
    crops, and the rest happens there; resampled windows are made on the CPU always, because
    the mean image is subtracted before.
    """
    host = on_host(device)
    whole = host or views.resamples or views.dtype == "uint8"
    # The colour noise of windows that travel as uint8 is drawn all the same.
    decoder = CropDecoder(
        views if whole else replace(views, dtype="uint8"), stats, info.extents, info.side_px,
        batch_size=batch_size, jobs=jobs, planes=planes and host,
    )  # fmt: skip
    image: list[Any] = [decoder, ffcv.ToTensor()]
    label: list[Any] = [ffcv.IntDecoder(), ffcv.ToTensor()]
    if not host:
        image.append(ffcv.ToDevice(device))
        label.append(ffcv.ToDevice(device))
    if not whole:
        image.append(DeviceAugment(decoder, views, device))
    label.append(ffcv.Squeeze(1))
    return {"image": image, "label": label}, decoder, (planes and host) or not whole


def on_host(device: torch.device) -> bool:
    """Whether batches are used where they are made."""
    return device.type == "cpu"


def usable_device(name: str) -> torch.device:
    """``cpu`` or ``cuda[:n]`` -> the device; UsageError if this machine has none of that name."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {name!r}: unknown; it is cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r}: batches can be made for cpu and cuda only")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {name!r}: this machine has no usable CUDA device; use cpu")
    return device


def usable_threads(jobs: int | None) -> int:
    """The threads to use; numba raises above the cores that this process may use."""
    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs is {jobs}; it must be at least 1")
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    most = min(cores, MOST_THREADS)
    return most if jobs is None else min(jobs, most)


def check_views(views: Views) -> None:
    """UsageError naming the first option of ``views`` that cannot be."""
    for name, value in (("crop_size", views.crop_px), ("out_size", views.out_px)):
        if value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")
    for name, chosen, known in (
        ("view", views.kind, KINDS),
        ("mean", views.mean, MEANS),
        ("lighting_mode", views.lighting_mode, LIGHTINGS),
        ("dtype", views.dtype, DTYPES),
    ):
        if chosen not in known:
            raise UsageError(f"{name} is {chosen!r}; it is one of {', '.join(known)}")
    least, most = views.scale
    if not 0 < least <= most <= 1:
        raise UsageError(f"scale is {least} to {most}; they are shares: above 0, at most 1")
    low, high = views.ratio
    if not 0 < low <= 1 <= high < math.inf:
        raise UsageError(f"ratio is {low} to {high}; it must reach from at most 1 to at least 1")
    if not 0 <= views.lighting < math.inf:
        raise UsageError(f"lighting is {views.lighting}; it must be at least 0")


def check_fit(beton: Betons, info: BetonInfo, stats: Stats, views: Views) -> None:
    """The betons, their tables, the statistics and the crop size belong together, or a sentence."""
    manifest = beton.manifest
    if (manifest.samples, manifest.size_px) != (info.samples, info.side_px):
        raise ToolError(
            f"{beton}: has {info.samples} pictures of {info.side_px} px where its manifest says "
            f"{manifest.samples} of {manifest.size_px} px; {REBUILD}"
        )
    if info.label_max >= len(manifest.classes):
        raise ToolError(
            f"{beton}: has label {info.label_max} where its manifest names "
            f"{len(manifest.classes)} classes; {REBUILD}"
        )
    if stats.mean.shape[:2] != (info.side_px, info.side_px):
        raise ToolError(
            f"{beton}: has pictures of {info.side_px} px where the statistics are of pictures "
            f"of {stats.size_px} px; use the statistics that were made from its crops"
        )
    if views.crop_px > info.side_px:
        raise UsageError(
            f"crop_size is {views.crop_px} where the pictures of {beton} have {info.side_px} px; "
            f"choose a smaller one, for example --crop-size {info.side_px * 7 // 8}"
        )
