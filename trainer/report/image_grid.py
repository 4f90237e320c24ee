"""Images and kernels -> one image of tiles."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_KERNEL_PX = 40


def grid(tiles: NDArray[np.uint8], columns: int, border_px: int = 1) -> NDArray[np.uint8]:
    """Tiles (N, H, W, 3) uint8 -> an image (rows, columns, 3) of them on white, row by row.

    ``columns`` tiles side by side, fewer where N is smaller; ``border_px`` between the tiles
    and around them.
    """
    import numpy as np

    count, height, width, _ = tiles.shape
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    high, wide = height + border_px, width + border_px
    image = np.full((border_px + rows * high, border_px + columns * wide, 3), 255, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        top, left = border_px + index // columns * high, border_px + index % columns * wide
        image[top : top + height, left : left + width] = tile
    return image


def kernel_grid(weights: NDArray[np.floating[Any]], columns: int) -> NDArray[np.uint8]:
    """First-layer kernels (K, C, h, w), C being 1 or 3 -> an image (H, W, 3) uint8.

    Each kernel is divided by its largest magnitude; zero is mid-grey. Kernels are enlarged
    by a whole factor to at least 40 px. Values that are not finite count as zero. Raises
    ValueError for other shapes or columns below 1.
    """
    import numpy as np

    if weights.ndim != 4 or weights.shape[1] not in (1, 3) or weights.size == 0 or columns < 1:
        raise ValueError(f"cannot draw kernels of shape {weights.shape} in {columns} columns")
    kernels = np.nan_to_num(weights.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    tiles = _around_grey(kernels, np.abs(kernels).max(axis=(1, 2, 3), keepdims=True))
    factor = max(1, math.ceil(_KERNEL_PX / min(tiles.shape[1:3])))
    return grid(tiles.repeat(factor, axis=1).repeat(factor, axis=2), columns)


def sample_grid(images: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Network inputs (B, 3, S, S) around zero -> an image (H, W, 3) uint8 of all of them.

    Zero, the mean, is mid-grey; the largest magnitude of the batch is black or white.
    """
    import numpy as np

    tiles = _around_grey(images.astype(np.float64), np.abs(images).max(keepdims=True))
    return grid(tiles, math.ceil(math.sqrt(len(tiles))))


def _around_grey(
    values: NDArray[np.floating[Any]], largest: NDArray[np.floating[Any]]
) -> NDArray[np.uint8]:
    """(N, C, h, w) float -> (N, h, w, 3) uint8: -largest is 0, zero is 128, largest is 255."""
    import numpy as np

    grey = np.rint(127.5 + 127.5 * values / np.where(largest > 0, largest, 1.0)).astype(np.uint8)
    count, _, height, width = values.shape
    return np.broadcast_to(grey.transpose(0, 2, 3, 1), (count, height, width, 3))
