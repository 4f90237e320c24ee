"""What is random about a sample: its window, flip and colour noise, from (seed, epoch, sample).

Draws come from a counter-based hash (``hashing.words``), not from a generator with state.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.dataset.statistics import Stats
from trainer.hashing import MASK
from trainer.numba_ext import kernel
from trainer.views.views import Views, colour_basis

# The numbers of a sample's draws; order.py has 7 and 10. A change changes every run's pixels.
_Y, _X, _MIRROR, _NORMAL, _SHARE, _RATIO = 0, 1, 2, 3, 8, 9
_INDEPENDENT, _ALTERNATING = 1, 2
_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Draws:
    """The random part of a batch of square images of ``side_px``; ``draw`` fills the arrays.

    ``windows`` int32 (B, V, 5): y, x, height, width, mirror of each view; ``normals`` float64
    (B, 3): standard normals times ``lighting``; ``shifts`` float32 (B, 3): the colour shifts in
    levels (zeros for lighting_mode "image", which depends on the pixels). ``epoch`` and
    ``lighting`` hold for the next batch.
    """

    def __init__(self, views: Views, stats: Stats, side_px: int, batch_size: int) -> None:
        self.views, self.stats, self.side_px, self.epoch = views, stats, side_px, 0
        self.windows = np.zeros((batch_size, views.count, 5), np.int32)
        self.normals = np.zeros((batch_size, 3))
        self.shifts = np.zeros((batch_size, 3), np.float32)
        self._basis = np.zeros((3, 3))
        self.lighting = views.lighting
        places = views.places(side_px)
        self.windows[:, :, :2], self.windows[:, :, 4] = places[:, :2], places[:, 2]
        self.windows[:, :, 2:4] = views.crop_px

    @property
    def lighting(self) -> float:
        """How strong the colour noise is."""
        return self.views.lighting

    @lighting.setter
    def lighting(self, value: float) -> None:
        self.views = replace(self.views, lighting=value)
        self._basis = colour_basis(self.stats.eigenvectors, self.stats.eigenstdev, self.views)

    def draw(self, indices: NDArray[np.uint64]) -> None:
        """Sample indices (n,), n <= B -> the first n rows of the arrays."""
        views, n = self.views, len(indices)
        if not views.drawn:  # the windows are fixed and there is no colour noise
            return
        ratio = (math.log(views.ratio[0]), math.log(views.ratio[1]))
        draw_batch(
            np.array([views.seed & MASK, self.epoch], np.uint64), indices, self.side_px,
            views.crop_px, views.kind == "resized",
            views.mirror * (_ALTERNATING if views.alternate else _INDEPENDENT),
            np.array([*views.scale, *ratio, views.lighting]), self._basis,
            self.windows[:n, 0], self.normals[:n], self.shifts[:n],
        )  # fmt: skip


@kernel
def _mix(z: Any) -> Any:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    return z ^ (z >> np.uint64(31))


@kernel
def _word(key: Any, number: Any) -> Any:
    """Draw ``number`` of a sample's key: 64 random bits."""
    return _mix(key + np.uint64(number + 1) * np.uint64(_GOLDEN))


@kernel
def _below(bits: Any, bound: Any) -> Any:
    """64 random bits -> a whole number in [0, bound), uniform to 2**-32."""
    return np.int64(((bits >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@kernel
def _unit(bits: Any) -> Any:
    """64 random bits -> a number in [0, 1)."""
    return np.float64(bits >> np.uint64(11)) * 2.0**-53


@kernel
def _side(length: Any, most: Any) -> Any:
    return min(max(np.int64(np.floor(length + 0.5)), 1), most)


@kernel
def draw_batch(
    control: Any, indices: Any, side: Any, crop: Any, resized: Any, mirror: Any, numbers: Any,
    basis: Any, windows: Any, normals: Any, shifts: Any,
) -> None:  # fmt: skip
    """(seed, epoch) and sample indices (n,) -> windows (n, 5), normals (n, 3), shifts (n, 3).

    ``mirror``: 0, _INDEPENDENT or _ALTERNATING (two epochs have one draw, and the second one its
    opposite). ``numbers``: least and largest area fraction, log of the least and largest ratio of
    width to height, lighting. Windows are uniform over where they fit; a resized one has an area
    uniform within the scale, and a ratio log-uniform over what fits; normals are Box and Muller's.
    """
    golden = np.uint64(_GOLDEN)
    of_epoch = _mix((_mix(control[0] + golden) ^ control[1]) + golden)
    odd = control[1] & np.uint64(1)
    of_pair = _mix((_mix(control[0] + golden) ^ (control[1] - odd)) + golden)
    for i in range(len(indices)):
        key = _mix((of_epoch ^ np.uint64(indices[i])) + golden)
        height, width = crop, crop
        if resized:
            share = numbers[0] + (numbers[1] - numbers[0]) * _unit(_word(key, _SHARE))
            low = max(numbers[2], np.log(share))
            high = min(numbers[3], -np.log(share))
            ratio = np.exp(low + (high - low) * _unit(_word(key, _RATIO)))
            height = _side(side * np.sqrt(share / ratio), side)
            width = _side(side * np.sqrt(share * ratio), side)
        windows[i, 0] = _below(_word(key, _Y), side - height + 1)
        windows[i, 1] = _below(_word(key, _X), side - width + 1)
        windows[i, 2], windows[i, 3] = height, width
        if mirror == _ALTERNATING:
            of_both = _mix((of_pair ^ np.uint64(indices[i])) + golden)
            windows[i, 4] = _word(of_both, _MIRROR) >> np.uint64(63) != odd
        else:
            windows[i, 4] = mirror and _word(key, _MIRROR) >> np.uint64(63) != np.uint64(0)
        first = np.sqrt(-2 * np.log(_unit(_word(key, _NORMAL)) + 2.0**-53))
        second = np.sqrt(-2 * np.log(_unit(_word(key, _NORMAL + 2)) + 2.0**-53))
        angle = 2 * np.pi * _unit(_word(key, _NORMAL + 1))
        a, b = first * np.cos(angle), first * np.sin(angle)
        c = second * np.cos(2 * np.pi * _unit(_word(key, _NORMAL + 3)))
        for k in range(3):
            shifts[i, k] = basis[k, 0] * a + basis[k, 1] * b + basis[k, 2] * c
        normals[i, 0], normals[i, 1], normals[i, 2] = (
            numbers[4] * a, numbers[4] * b, numbers[4] * c
        )  # fmt: skip
