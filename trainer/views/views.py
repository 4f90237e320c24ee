"""Views of a sample: which windows are cut and what happens to their pixels. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The corners and the centre as fractions of the free space, in the order of the 2012 code. Ten
# views are these and then their mirror images.
_FIVE = ((0.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 0.0), (1.0, 1.0))

KINDS = ("random", "resized", "centre", "five", "ten")
MEANS = ("image", "centre", "channel", "none")
LIGHTINGS = ("deviation", "variance", "image", "off")
DTYPES = ("float32", "bfloat16", "float16", "uint8")
LAYOUTS = ("channels_last", "channels_first", "space_to_depth")


@dataclass(frozen=True)
class Views:
    """What is made of an image: one of KINDS of windows, and what happens to their pixels.

    Windows: a square of ``crop_px`` anywhere (``random``), in the ``centre``, in the four
    corners and the centre (``five``), these and their mirror images (``ten``); ``resized``
    windows have a random area, a fraction within ``scale`` of the image's, and a random ratio
    of width to height within ``ratio``. A window of another size is resampled to ``out_px``.
    ``mirror``: half of the random windows are flipped horizontally; with ``alternate`` those of
    an odd epoch are the ones that were not flipped in the epoch before it.

    Pixels (levels 0-255): (window - mean + shift) * gain. ``mean`` is one of MEANS (the mean
    image at the window's own place, its ``centre`` wherever the window is (the 2012 code), its
    average per channel, or none), or three numbers. ``shift`` is the image's colour noise by
    one of LIGHTINGS, times ``lighting``: the data set's ``deviation`` along each of its colour
    directions (the 2012 code), the ``variance`` (the paper's formula taken literally: far too
    strong at this scale), or ``image``: the image's own deviation along its own directions.
    ``gain`` is one over ``std`` (three numbers), or with ``scaled`` over the data set's
    standard deviation per channel, else 1. ``dtype`` uint8 keeps the pixels as they are.
    ``seed`` counts modulo 2**64.
    """

    crop_px: int
    out_px: int
    kind: str = "random"
    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    mirror: bool = False
    mean: str | tuple[float, ...] = "image"
    lighting: float = 0.0
    lighting_mode: str = "deviation"
    scaled: bool = False
    std: tuple[float, ...] | None = None
    dtype: str = "float32"
    seed: int = 0
    alternate: bool = False

    @property
    def drawn(self) -> bool:
        """Whether the windows are random and differ from epoch to epoch."""
        return self.kind in ("random", "resized")

    @property
    def resamples(self) -> bool:
        """Whether windows are resampled."""
        return self.out_px != self.crop_px or self.kind == "resized"

    @property
    def count(self) -> int:
        """Views of each image."""
        return {"five": 5, "ten": 10}.get(self.kind, 1)

    def places(self, side_px: int) -> NDArray[np.int64]:
        """(V, 3) int64: y, x and mirror of the windows that are not random."""
        free = side_px - self.crop_px
        if self.count == 1:
            return np.array([[free // 2, free // 2, 0]], np.int64)
        corners = [(int(free * y), int(free * x)) for y, x in _FIVE]
        turns = (0, 1) if self.kind == "ten" else (0,)
        return np.array([(y, x, turn) for turn in turns for y, x in corners], np.int64)


def colour_basis(
    eigenvectors: NDArray[np.float64], eigenstdev: NDArray[np.float64], views: Views
) -> NDArray[np.float64]:
    """(3, 3): ``basis @ normals`` is an image's colour shift, in levels.

    Columns: a colour direction times its standard deviation, or its variance, times
    ``views.lighting``. Zeros for lighting that is off, and for the image's own.
    """
    if views.lighting_mode in ("off", "image"):
        return np.zeros((3, 3))
    power = 2 if views.lighting_mode == "variance" else 1
    return np.ascontiguousarray(eigenvectors * eigenstdev**power * views.lighting)


def mean_of(views: Views, mean: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean image (S, S, 3) -> what ``views.mean`` subtracts at each pixel of an image."""
    if views.dtype == "uint8" or views.mean == "none":
        return np.zeros_like(mean)
    if views.mean == "channel":
        average = mean.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
        return np.broadcast_to(average, mean.shape).copy()
    if not isinstance(views.mean, str):
        return np.broadcast_to(np.array(views.mean, np.float32), mean.shape).copy()
    return mean


def gain_of(views: Views, channel_std: NDArray[Any]) -> NDArray[np.float32]:
    """(3,) float32: what pixels are multiplied with. A channel without any spread keeps 1."""
    if views.dtype == "uint8" or not (views.scaled or views.std):
        return np.ones(3, np.float32)
    spread = np.array(views.std, np.float64) if views.std else channel_std
    return np.asarray(1 / np.where(spread > 0, spread, 1), np.float32)
