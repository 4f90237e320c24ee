"""Views of a sample and what is drawn for each: crop, mirror, colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.hashing import words

# The numbers of a sample's draws. A change of any of them changes every run's pixels.
_Y, _X, _MIRROR, _NORMAL, _ORDER, _SHARE, _RATIO = 0, 1, 2, 3, 7, 8, 9
# The places of the five crops of a 256 px picture as fractions of the room that a crop leaves
# free: the order of the 2012 code. Ten views are these and then their mirror images.
_FIVE = ((0.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 0.0), (1.0, 1.0))

KINDS = ("random", "resized", "centre", "five", "ten")
MEANS = ("image", "centre", "channel", "none")
LIGHTINGS = ("deviation", "variance", "image", "off")
LEAST_DEVIATION = 1e-4
"""Below so many levels the colours of a picture do not differ."""
DTYPES = ("float32", "bfloat16", "float16", "uint8")


@dataclass(frozen=True)
class Views:
    """What is made of a picture: one of KINDS of windows, and what happens to its pixels.

    Windows: a square of ``crop_px`` anywhere (``random``), in the ``centre``, in the four
    corners and the centre (``five``), these and their mirror images (``ten``); ``resized``
    windows have a drawn share of the picture's area, within ``scale``, and a drawn ratio of
    width to height, within ``ratio``. A window is resampled to ``out_px`` where it is not
    that size. ``mirror``: every other drawn window is turned from left to right.

    Pixels (0-255 levels): (window - mean + shift) · gain. ``mean`` is one of MEANS: the mean
    image at the window's own place, its ``centre`` wherever the window is (the 2012 code),
    its average per channel, or none. ``shift`` is the picture's colour noise by one of
    LIGHTINGS, ``lighting`` times: the data set's ``deviation`` along each of its colour
    directions (the 2012 code), the ``variance`` (the paper's formula to the letter: far too
    much on this scale), ``image``: the picture's own along its own directions (a
    tutorial). With ``scaled``, gain is one over the channel's standard deviation, else 1.
    ``dtype`` uint8 leaves the window's pixels as they are. ``seed`` counts modulo 2⁶⁴.
    """

    crop_px: int
    out_px: int
    kind: str = "random"
    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    mirror: bool = False
    mean: str = "image"
    lighting: float = 0.0
    lighting_mode: str = "deviation"
    scaled: bool = False
    dtype: str = "float32"
    seed: int = 0

    @property
    def drawn(self) -> bool:
        """Whether the windows are drawn and differ from epoch to epoch."""
        return self.kind in ("random", "resized")

    @property
    def resamples(self) -> bool:
        """Whether windows are anything else than copied."""
        return self.out_px != self.crop_px or self.kind == "resized"

    @property
    def count(self) -> int:
        """Views of each picture."""
        return {"five": 5, "ten": 10}.get(self.kind, 1)

    def places(self, side_px: int) -> NDArray[np.int64]:
        """(V, 3) int64: y, x and mirror of the windows that are not drawn."""
        room = side_px - self.crop_px
        if self.count == 1:
            return np.array([[room // 2, room // 2, 0]], np.int64)
        corners = [(int(room * y), int(room * x)) for y, x in _FIVE]
        turns = (0, 1) if self.kind == "ten" else (0,)
        return np.array([(y, x, turn) for turn in turns for y, x in corners], np.int64)


@dataclass(frozen=True)
class Draws:
    """The random part of B samples: y, x, height, width int64 (B,), the window in pixels;
    mirror bool (B,); normals float64 (B, 3), one per colour direction.

    Of views that are not drawn, B counts samples times views, and the normals are zeros.
    """

    y: NDArray[np.int64]
    x: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    mirror: NDArray[np.bool_]
    normals: NDArray[np.float64]


def _unit(word: NDArray[np.uint64]) -> NDArray[np.float64]:
    """64 random bits -> a number in [0, 1) of 53."""
    return (word >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _below(word: NDArray[np.uint64], bound: NDArray[np.int64]) -> NDArray[np.int64]:
    """64 random bits -> a whole number in [0, bound), uniform to 2⁻³²."""
    high = (word >> np.uint64(32)) * bound.astype(np.uint64)
    return (high >> np.uint64(32)).astype(np.int64)


def draws(views: Views, epoch: int, indices: NDArray[Any], side_px: int) -> Draws:
    """(seed, epoch, sample indices (B,)) -> Draws for square pictures of ``side_px``.

    Windows lie anywhere where they fit, uniformly. A resized window has an area uniform
    within ``views.scale`` of the picture's, and a ratio of width to height that is
    log-uniform over what fits and lies within ``views.ratio``. The normals are Box and
    Muller's.
    """
    if not views.drawn:
        place = np.tile(views.places(side_px), (len(indices), 1))
        count = len(place)
        side = np.full(count, views.crop_px)
        turned = place[:, 2].astype(np.bool_)
        return Draws(place[:, 0], place[:, 1], side, side, turned, np.zeros((count, 3)))
    height = width = np.full(len(indices), views.crop_px)
    word = [words(views.seed, epoch, indices, number) for number in range(_RATIO + 1)]
    if views.kind == "resized":
        least, most = views.scale
        share = least + (most - least) * _unit(word[_SHARE])
        low = np.maximum(np.log(views.ratio[0]), np.log(share))
        high = np.minimum(np.log(views.ratio[1]), -np.log(share))
        ratio = np.exp(low + (high - low) * _unit(word[_RATIO]))
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
    eigenvectors: NDArray[np.float64], eigenstdev: NDArray[np.float64], views: Views
) -> NDArray[np.float64]:
    """(3, 3): ``basis @ normals`` is a picture's colour shift, in levels.

    Columns: a colour direction times its standard deviation, or its variance, times
    ``views.lighting``. Zeros for lighting that is off, and for the picture's own.
    """
    if views.lighting_mode in ("off", "image"):
        return np.zeros((3, 3))
    power = 2 if views.lighting_mode == "variance" else 1
    return np.ascontiguousarray(eigenvectors * eigenstdev**power * views.lighting)


def picture_basis(picture: NDArray[np.uint8], views: Views) -> NDArray[np.float64]:
    """Picture (H, W, 3), its covariance C -> the basis of ``lighting_mode`` image: l · L, C = L Lᵀ.

    A tutorial adds V (α √λ) with α ~ N(0, l), where V and λ are the eigenvectors and
    eigenvalues of the picture's own covariance. V √λ n and L n are distributed alike for
    normal n, and L, Cholesky's factor, needs no eigenvectors. Directions in which a picture
    has no colours get none.
    """
    pixels = picture.reshape(-1, 3).astype(np.float64)
    c = np.cov(pixels.T, bias=True)
    factor = np.zeros((3, 3))
    for column in range(3):
        rest = c[column:, column] - factor[column:, :column] @ factor[column, :column]
        root = np.sqrt(max(rest[0], 0.0))
        if root > LEAST_DEVIATION:
            factor[column:, column] = rest / root
    return factor * views.lighting


def mean_of(views: Views, mean: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean image (S, S, 3) -> what ``views.mean`` subtracts, where the window is drawn."""
    if views.dtype == "uint8" or views.mean == "none":
        return np.zeros_like(mean)
    if views.mean == "channel":
        average = mean.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
        return np.broadcast_to(average, mean.shape).copy()
    return mean


def gain_of(views: Views, channel_std: NDArray[np.float64]) -> NDArray[np.float32]:
    """(3,) float32: what pixels are multiplied with. A channel without any spread keeps 1."""
    if not views.scaled or views.dtype == "uint8":
        return np.ones(3, np.float32)
    return np.asarray(1 / np.where(channel_std > 0, channel_std, 1), np.float32)


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
    gain: NDArray[np.float32],
    views: Views,
    drawn: Draws,
    index: int,
) -> NDArray[np.float64]:
    """The definition of a view, float64 (out, out, 3) in levels times ``gain``.

    The window of (picture - mean), mirrored with it, resampled, plus the colour shift, times
    the gain. ``mean`` is ``mean_of``'s; the centre of it is never mirrored. For uint8 the
    result is rounded to whole levels, ties to even.
    """
    y, x = drawn.y[index], drawn.x[index]
    height, width = drawn.height[index], drawn.width[index]
    window = cut(picture.astype(np.float64), drawn, index)
    if views.mean == "centre":
        top, left = (mean.shape[0] - height) // 2, (mean.shape[1] - width) // 2
        window = window - mean[top : top + height, left : left + width]
    else:
        own = mean[y : y + height, x : x + width]
        window = window - (own[:, ::-1] if drawn.mirror[index] else own)
    if views.resamples:
        rows = resampling(window.shape[0], views.out_px)
        columns = resampling(window.shape[1], views.out_px)
        window = np.einsum("ih,hwc,jw->ijc", rows, window, columns, optimize=True)
    if views.dtype == "uint8":
        return np.asarray(np.clip(np.rint(window), 0, 255))
    if views.lighting_mode == "image":
        basis = picture_basis(picture, views)
    return np.asarray((window + basis @ drawn.normals[index]) * gain)
