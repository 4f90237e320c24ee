"""The definition of a view in plain NumPy, which all back ends are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.hashing import words
from trainer.views.kernels import LEAST_DEVIATION
from trainer.views.views import Views

_Y, _X, _MIRROR, _NORMAL, _SHARE, _RATIO = 0, 1, 2, 3, 8, 9


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
    """(seed, epoch, sample indices (B,)) -> Draws for square images of ``side_px``.

    Windows lie anywhere where they fit, uniformly. A resized window has an area uniform
    within ``views.scale`` of the image's, and a ratio of width to height that is
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
    if views.alternate and epoch % 2:
        mirror = ~draws(views, epoch - 1, indices, side_px).mirror & views.mirror
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


def own_basis(image: NDArray[np.uint8], views: Views) -> NDArray[np.float64]:
    """Image (H, W, 3), its covariance C -> the basis of ``lighting_mode`` image: l · L, C = L Lᵀ.

    A tutorial adds V (α √λ) with α ~ N(0, l), where V and λ are the eigenvectors and
    eigenvalues of the image's own covariance. V √λ n and L n are distributed alike for
    normal n, and L, Cholesky's factor, needs no eigenvectors. Directions in which an image
    has no colours get none.
    """
    pixels = image.reshape(-1, 3).astype(np.float64)
    c = np.cov(pixels.T, bias=True)
    factor = np.zeros((3, 3))
    for column in range(3):
        rest = c[column:, column] - factor[column:, :column] @ factor[column, :column]
        root = np.sqrt(max(rest[0], 0.0))
        if root > LEAST_DEVIATION:
            factor[column:, column] = rest / root
    return factor * views.lighting


def cut(image: NDArray[Any], drawn: Draws, index: int) -> NDArray[Any]:
    """Image (H, W, 3) -> sample ``index``'s window of it, mirrored if that was drawn."""
    y, x = drawn.y[index], drawn.x[index]
    window = image[y : y + drawn.height[index], x : x + drawn.width[index]]
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
    image: NDArray[np.uint8],
    mean: NDArray[np.float32],
    basis: NDArray[np.float64],
    gain: NDArray[np.float32],
    views: Views,
    drawn: Draws,
    index: int,
) -> NDArray[np.float64]:
    """The definition of a view, float64 (out, out, 3) in levels times ``gain``.

    The window of (image - mean), mirrored with it, resampled, plus the colour shift, times
    the gain. ``mean`` is ``mean_of``'s; the centre of it is never mirrored. For uint8 the
    result is rounded to whole levels, ties to even.
    """
    y, x = drawn.y[index], drawn.x[index]
    height, width = drawn.height[index], drawn.width[index]
    window = cut(image.astype(np.float64), drawn, index)
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
        basis = own_basis(image, views)
    return np.asarray((window + basis @ drawn.normals[index]) * gain)
