"""The first layer, 11 x 11 by 4, as a 3 x 3 convolution over squares of 4 x 4 pixels.

Tensor cores multiply three input channels badly and 48 well. A square's pixels become channels
in the order (row, column, colour), colour fastest; the kernel gets a row and a column of zeros.
Weights are stored in their 11 x 11 form everywhere else.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SIDE = 4


def squares(side: int, padding: int) -> int:
    """Squares along a side of an image of ``side`` px that is padded by ``padding``."""
    return (side + 2 * padding - 11) // SIDE + 3


def space_to_depth(images: Tensor, padding: int = 0) -> Tensor:
    """(B, C, S, S) -> (B, 16 C, n, n), channels last, n = ``squares(S, padding)``.

    The image is padded by ``padding`` and, at the right and the bottom, to 4 n pixels; rows and
    columns that no kernel reaches are cut off.
    """
    count, channels, height, width = images.shape
    high, wide = squares(height, padding), squares(width, padding)
    right, low = SIDE * wide - width - padding, SIDE * high - height - padding
    padded = functional.pad(images, (padding, right, padding, low))
    parts = padded.reshape(count, channels, high, SIDE, wide, SIDE).permute(0, 3, 5, 1, 2, 4)
    cells = parts.reshape(count, SIDE * SIDE * channels, high, wide)
    return cells.contiguous(memory_format=torch.channels_last)


def stem_weight(weight: Tensor) -> Tensor:
    """(O, C, 11, 11) -> (O, 16 C, 3, 3), channels last: the same filters over squares."""
    filters, channels = weight.shape[:2]
    parts = functional.pad(weight, (0, 1, 0, 1)).reshape(filters, channels, 3, SIDE, 3, SIDE)
    cells = parts.permute(0, 3, 5, 1, 2, 4).reshape(filters, SIDE * SIDE * channels, 3, 3)
    return cells.contiguous(memory_format=torch.channels_last)


def depth_to_space(cells: Tensor, side: int) -> Tensor:
    """(B, 16 C, n, n) -> (B, C, side, side): the images that ``space_to_depth`` was given,
    without padding."""
    count, channels, high, wide = cells.shape
    parts = cells.reshape(count, SIDE, SIDE, channels // SIDE**2, high, wide)
    images = parts.permute(0, 3, 4, 1, 5, 2).reshape(count, -1, SIDE * high, SIDE * wide)
    return images[..., :side, :side]
