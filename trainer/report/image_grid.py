"""Images and kernels -> one image of tiles."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_TILE_PX = 40


def kernel_grid(weights: NDArray[np.floating[Any]], columns: int) -> NDArray[np.uint8]:
    """First-layer kernels (K, C, h, w), C being 1 or 3 -> a picture (H, W, 3) uint8.

    Every kernel is divided by its own largest magnitude and shown around mid-grey,
    enlarged by a whole factor to at least 40 px, with white borders of 1 px. What is
    not finite counts as zero. Raises ValueError for other shapes or columns below 1.
    """
    import numpy as np

    if weights.ndim != 4 or weights.shape[1] not in (1, 3) or weights.size == 0 or columns < 1:
        raise ValueError(f"kernels of shape {weights.shape} in {columns} columns are no picture")
    kernels = np.nan_to_num(weights.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    largest = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True)
    grey = np.rint(127.5 + 127.5 * kernels / np.where(largest > 0, largest, 1.0)).astype(np.uint8)
    tiles = np.broadcast_to(grey.transpose(0, 2, 3, 1), (*grey.shape[:1], *grey.shape[2:], 3))
    factor = max(1, math.ceil(_TILE_PX / min(tiles.shape[1:3])))
    tiles = tiles.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, _ = tiles.shape
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    shape = (1 + rows * (height + 1), 1 + columns * (width + 1), 3)
    picture = np.full(shape, 255, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        top = 1 + index // columns * (height + 1)
        left = 1 + index % columns * (width + 1)
        picture[top : top + height, left : left + width] = tile
    return picture


def sample_grid(images: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Network inputs (B, 3, S, S) around zero -> a picture (H, W, 3) uint8 of them all.

    Zero, the mean, is mid-grey; the largest magnitude of the batch is black or white.
    """
    import numpy as np

    count, _, side, _ = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    largest = float(np.abs(images).max()) or 1.0
    shown = np.rint(127.5 + 127.5 * images.astype(np.float64) / largest).astype(np.uint8)
    picture = np.full((rows * (side + 1) + 1, columns * (side + 1) + 1, 3), 255, dtype=np.uint8)
    for index, image in enumerate(shown.transpose(0, 2, 3, 1)):
        top = 1 + index // columns * (side + 1)
        left = 1 + index % columns * (side + 1)
        picture[top : top + side, left : left + side] = image
    return picture
