"""The variants of the speedup benchmark, their groups, and the seconds of an ImageNet epoch.

Pure: nothing here trains, reads a file or looks at a clock.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tools.bench.harness import Lap

IMAGENET_SAMPLES = 1_281_167
# Entrants of a race at once: each holds a network, its gradients and momentum (0.7 GB).
AT_ONCE = 3
NAIVE, COMPILED, TRAINER = "naive loop", "compiled", "trainer run"


@dataclass(frozen=True)
class Published:
    """Hours of an ImageNet epoch that others published, with the hardware."""

    change: str
    hardware: str
    hours: float


# danipari/alexnet, 2025: a blog with the times of its own series.
TUTORIAL = (
    Published("naive loop", "a CPU", 44.0),
    Published("the same on a GPU", "GTX 1050", 7.0),
    Published("workers, pinned memory", "GTX 1050", 1.75),
    Published("a newer GPU", "RTX 3090", 0.18),
)


@dataclass(frozen=True)
class Variant:
    """One step of the series: all of the one before it, and ``change``.

    ``feed`` is where batches come from (``speedup_variants.FEEDS``), ``network`` what is trained
    (the fields of ``speedup_variants.Network``; for the trainer, those of ``Ours``). ``batches``
    are those of a lap, on a CPU and on a GPU: enough for some seconds of work. ``cuda`` variants
    need a GPU.
    """

    name: str
    change: str
    feed: str
    batches: tuple[int, int]
    network: Mapping[str, Any] = field(default_factory=dict)
    cuda: bool = False


def variants(precision: str) -> tuple[Variant, ...]:
    """The series from the bottom, for CPU and GPU; ``precision`` is the fastest that the machine
    has in hardware, see ``trainer.device.choose_precision``. Where that is float32 there is a
    variant of channels-last alone."""
    lrn = {"our_lrn": True}
    last: dict[str, Any] = {**lrn, "channels_last": True, "precision": precision}
    half = precision != "float32"
    return (
        Variant(NAIVE, "PIL from original sizes, no workers, eager float32, library's LRN",
             "originals", (2, 4)),
        Variant("cropped once", "crops of 256 px on the disk, made beforehand", "crops", (2, 8)),
        Variant("workers", "a loading process per core, pinned memory on a GPU", "workers",
             (2, 32)),
        Variant("beton", "one file, FFCV's own pipeline", "ffcv", (2, 128)),
        Variant("our loader", "trainer.loader on the CPU: crop, flip, colour, mean", "ours",
             (2, 128)),
        Variant("decoding on the GPU", "trainer.loader with its kernels for JPEG", "decoded",
             (2, 128), cuda=True),
        Variant("our LRN", "exact and fused", "last", (2, 128), lrn),
        Variant("half precision, channels-last" if half else "channels-last",
             f"{precision}, channels last" if half else "channels last alone, in float32",
             "last", (4, 128), last),
        Variant(COMPILED, "torch.compile", "last", (4, 128), {**last, "compiled": True}),
        Variant("blocks", "the trainer's own fused blocks and optimiser, no CUDA graph",
             "trainer", (4, 128), {"graph": False, "precision": precision}, cuda=True),
        Variant(TRAINER, "the trainer's own step; on a GPU one CUDA graph", "trainer", (6, 256),
             {"graph": True, "precision": precision}),
    )  # fmt: skip


def groups(series: Sequence[Variant], at_once: int = AT_ONCE) -> list[list[Variant]]:
    """The series in parts that run in turns; neighbours share a variant, so that every two that
    follow one another are measured side by side."""
    if at_once < 2:
        raise ValueError("two variants at least are compared")
    step = at_once - 1
    return [list(series[at : at + at_once]) for at in range(0, max(1, len(series) - 1), step)]


@dataclass(frozen=True)
class Measured:
    """A variant's figure: images per second (the median lap), the seconds of an epoch of
    ImageNet at that rate with the least and the most of any lap, the images and laps that
    it rests on, and how many times as fast as the first variant it is."""

    name: str
    change: str
    images_per_second: float
    seconds: float
    least_s: float
    most_s: float
    images: int
    laps: int
    times: float


def measure(series: Iterable[Variant], laps: Mapping[str, Sequence[Lap]]) -> list[Measured]:
    """Every variant that ran -> its figure, in order."""
    found: list[Measured] = []
    first: float | None = None
    for variant in series:
        of = laps.get(variant.name)
        if not of:
            continue
        rates = sorted(lap.count / lap.wall_s for lap in of)
        rate = statistics.median(rates)
        first = rate if first is None else first
        found.append(
            Measured(
                variant.name,
                variant.change,
                rate,
                IMAGENET_SAMPLES / rate,
                IMAGENET_SAMPLES / rates[-1],
                IMAGENET_SAMPLES / rates[0],
                sum(lap.count for lap in of),
                len(of),
                rate / first,
            )
        )
    return found


def duration(seconds: float) -> str:
    """``158400`` -> ``44 h``; minutes below two hours, seconds below two minutes."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"


def lines(found: Sequence[Measured]) -> list[str]:
    """The series as aligned text."""
    head = ("variant", "s for ImageNet", "", "images/s", "times", "images measured", "change")
    rows = [
        (
            one.name, f"{one.seconds:,.0f}", duration(one.seconds),
            f"{one.images_per_second:,.4g}", f"{one.times:.2f}", f"{one.images:,}", one.change,
        )
        for one in found
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    left = {0, 6}
    return [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]
