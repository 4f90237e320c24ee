"""What is random about a sample, and the plain NumPy definition of a sample's pixels.

Where a sample's crop lies, whether it is mirrored, its colour shift: a pure function of
(seed, epoch, sample index), a counter-based hash and no generator with state. The kernels
in ``ops`` are a second writing of the same, constants included; tests hold the two equal
(places, mirrors and uint8 pixels exactly, float32 pixels to 1e-3 of a level).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MASK = (1 << 64) - 1
# splitmix64 (Steele, Lea, Flood 2014): the increment and the two multipliers of its mixer.
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
# The numbers of a sample's draws. A change of any of them changes every run's pixels.
_Y, _X, _MIRROR, _NORMAL, _ORDER, _SHARE, _RATIO = 0, 1, 2, 3, 7, 8, 9
# Sides of a crop of drawn area are in ratio 3:4 to 4:3.
_LOG_RATIO = float(np.log(4 / 3))


@dataclass(frozen=True)
class Views:
    """What is made of a picture: a window, at a random place or in the centre, resampled.

    The window is a square of ``crop_px``; with ``random`` and ``scale_min`` below 1 it has
    instead a drawn share of the picture's area, from ``scale_min`` to 1. It is resampled
    to ``out_px`` where it is not that size. ``lighting`` is the standard deviation of the
    colour noise in units of the data set's own along each of its colour directions; 0 is
    none. ``seed`` counts modulo 2⁶⁴.
    """

    crop_px: int
    out_px: int
    random: bool
    scale_min: float = 1.0
    mirror: bool = False
    lighting: float = 0.0
    seed: int = 0

    @property
    def resamples(self) -> bool:
        """Whether windows are anything else than copied."""
        return self.out_px != self.crop_px or (self.random and self.scale_min < 1)


@dataclass(frozen=True)
class Draws:
    """The random part of B samples: y, x, height, width int64 (B,), the window in pixels;
    mirror bool (B,); normals float64 (B, 3), one per colour direction."""

    y: NDArray[np.int64]
    x: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    mirror: NDArray[np.bool_]
    normals: NDArray[np.float64]


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's mixer on an array: a bijection of 64-bit words."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    return z ^ (z >> np.uint64(31))


def words(seed: int, epoch: int, indices: NDArray[Any], number: int) -> NDArray[np.uint64]:
    """Draw ``number`` of the samples ``indices`` (B,) in an epoch -> B random 64-bit words."""
    golden = np.uint64(_GOLDEN)
    key = _mixed(np.full(1, seed & MASK, np.uint64) + golden)
    key = _mixed((key ^ np.uint64(epoch)) + golden)
    keys = _mixed((key ^ np.asarray(indices, np.uint64)) + golden)
    return _mixed(keys + np.uint64(((number + 1) * _GOLDEN) & MASK))


def _unit(word: NDArray[np.uint64]) -> NDArray[np.float64]:
    """64 random bits -> a number in [0, 1) of 53."""
    return (word >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _below(word: NDArray[np.uint64], bound: NDArray[np.int64]) -> NDArray[np.int64]:
    """64 random bits -> a whole number in [0, bound), uniform to 2⁻³²."""
    high = (word >> np.uint64(32)) * bound.astype(np.uint64)
    return (high >> np.uint64(32)).astype(np.int64)


def draws(views: Views, epoch: int, indices: NDArray[Any], side_px: int) -> Draws:
    """(seed, epoch, sample indices (B,)) -> Draws for square pictures of ``side_px``.

    Windows lie anywhere where they fit, uniformly. A drawn window has an area uniform
    between ``scale_min`` and 1 of the picture's, and a ratio of sides that is
    log-uniform over what fits and lies between 3:4 and 4:3. The normals are Box and
    Muller's. Without ``views.random``: the centre, not mirrored, no colour.
    """
    count = len(indices)
    height = width = np.full(count, views.crop_px)
    if not views.random:
        place = (side_px - height) // 2
        return Draws(
            place, place, height, width, np.zeros(count, np.bool_), np.zeros((count, 3))
        )  # fmt: skip
    word = [words(views.seed, epoch, indices, number) for number in range(_RATIO + 1)]
    if views.scale_min < 1:
        share = views.scale_min + (1 - views.scale_min) * _unit(word[_SHARE])
        reach = np.minimum(_LOG_RATIO, -np.log(share))
        ratio = np.exp(reach * (2 * _unit(word[_RATIO]) - 1))
        height = _sides(side_px * np.sqrt(share / ratio), side_px)
        width = _sides(side_px * np.sqrt(share * ratio), side_px)
    y = _below(word[_Y], side_px - height + 1)
    x = _below(word[_X], side_px - width + 1)
    mirror = (word[_MIRROR] >> np.uint64(63)).astype(np.bool_) & views.mirror
    radius = [np.sqrt(-2 * np.log(_unit(word[k]) + 2.0**-53)) for k in (_NORMAL, _NORMAL + 2)]
    angle = [2 * np.pi * _unit(word[k]) for k in (_NORMAL + 1, _NORMAL + 3)]
    normals = [
        radius[0] * np.cos(angle[0]),
        radius[0] * np.sin(angle[0]),
        radius[1] * np.cos(angle[1]),
    ]
    return Draws(y, x, height, width, mirror, np.stack(normals, axis=1))


def _sides(side: NDArray[np.float64], most_px: int) -> NDArray[np.int64]:
    return np.clip(np.floor(side + 0.5), 1, most_px).astype(np.int64)


def epoch_order(seed: int, epoch: int, samples: int) -> NDArray[np.uint64]:
    """The order of an epoch: the sample indices sorted by their hash, a seeded permutation."""
    keys = words(seed, epoch, np.arange(samples, dtype=np.uint64), _ORDER)
    return np.argsort(keys, kind="stable").astype(np.uint64)


def colour_basis(
    eigenvectors: NDArray[np.float64], eigenstdev: NDArray[np.float64], lighting: float
) -> NDArray[np.float64]:
    """Columns: a colour direction times its standard deviation times ``lighting`` (levels).

    ``basis @ normals`` is a picture's colour shift. The 2012 code uses the standard
    deviation; the paper's formula, read on variances, gives shifts of 1,483 levels.
    """
    return np.ascontiguousarray(eigenvectors * eigenstdev * lighting)


def cut(picture: NDArray[Any], drawn: Draws, index: int) -> NDArray[Any]:
    """Picture (H, W, 3) -> sample ``index``'s window of it, mirrored if that was drawn."""
    y, x = drawn.y[index], drawn.x[index]
    window = picture[y : y + drawn.height[index], x : x + drawn.width[index]]
    return window[:, ::-1] if drawn.mirror[index] else window


def resampling(length: int, out: int) -> NDArray[np.float64]:
    """The matrix (out, length) that resamples a line: a triangle filter, antialiased.

    As PIL's and torch's antialiased bilinear: the triangle is as wide as an output pixel
    where that is larger than an input pixel, and its weights sum to one.
    """
    scale = length / out
    support = max(scale, 1.0)
    centre = (np.arange(out) + 0.5) * scale
    distance = np.abs(np.arange(length) + 0.5 - centre[:, None]) / support
    weights = np.maximum(1 - distance, 0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def numpy_sample(
    picture: NDArray[np.uint8],
    mean: NDArray[np.float32],
    basis: NDArray[np.float64],
    views: Views,
    drawn: Draws,
    index: int,
) -> NDArray[np.float64]:
    """The definition of a sample: its window of (picture - mean), mirrored with it,
    resampled, plus its colour shift -> (out, out, 3) in levels."""
    window = cut(picture.astype(np.float64) - mean, drawn, index)
    if views.resamples:
        rows = resampling(window.shape[0], views.out_px)
        columns = resampling(window.shape[1], views.out_px)
        window = np.einsum("ih,hwc,jw->ijc", rows, window, columns, optimize=True)
    return np.asarray(window + basis @ drawn.normals[index])
