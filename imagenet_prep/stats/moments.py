"""Images -> mergeable exact moments -> mean image, colour covariance and its eigenbasis.

Pure: values in, values out. Every sum is an integer, so neither the order nor the
grouping of the images changes a bit of the result; only ``finish`` leaves the integers,
and it rounds once. Units: 0-255 levels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.core.compiled import kept
from imagenet_prep.dataset.statistics import Stats

# Largest number of images whose pixel sums fit a uint16: 257 * 255 = 65535.
_UINT16_IMAGES = 257
_PRODUCTS = ("rr", "rg", "rb", "gg", "gb", "bb")
MAX_PIXELS = 1 << 16
"""Pixels of one call of the loop: 2^16 * 255 * 255 < 2^32."""

Words = NDArray[np.uint32]
AddPixels = Callable[[Words, Words, Words, NDArray[np.uint64]], None]
"""``add(pixels, red_blue, green, products)``, the first three of the same length.

``pixels`` are words of the bytes red, green, blue and one that is ignored. ``red_blue`` and
``green`` hold pairs of 16-bit sums, of (red, blue) and of (green, the fourth byte), so they are
exact for 257 images. ``products`` are six uint64 in the order of _PRODUCTS.
"""


@dataclass(frozen=True, eq=False, slots=True)
class Moments:
    """Exact sums over ``count`` images of S x S pixels.

    sum (S, S, 3) uint64, per pixel and channel; products (3, 3) uint64, the sum of
    p pᵀ over all pixels p = (r, g, b) of all images. On its way from a worker ``sum`` may
    be of a smaller type.
    """

    sum: NDArray[np.unsignedinteger]
    products: NDArray[np.uint64]
    count: int

    @property
    def size_px(self) -> int:
        """The side of the images."""
        return int(self.sum.shape[0])


def empty(size_px: int) -> Moments:
    """The moments of no images: the neutral element of ``merge``."""
    shape = (size_px, size_px, 3)
    return Moments(np.zeros(shape, np.uint64), np.zeros((3, 3), np.uint64), 0)


@functools.cache
def add_pixels() -> AddPixels:
    """The compiled loop.

    NumPy takes eight times as long per image. LLVM vectorises the loop because every sum is of
    32 bits: two channels of 16 bits side by side, or one product.
    """
    import numba

    made: AddPixels = kept(numba.njit(nogil=True)(_add))
    return made


def _add(pixels: Any, red_blue: Any, green: Any, products: Any) -> None:
    rr = rg = rb = gg = gb = bb = np.uint32(0)
    for i in range(len(pixels)):
        pixel = pixels[i]
        even = pixel & np.uint32(0x00FF00FF)
        odd = (pixel >> np.uint32(8)) & np.uint32(0x00FF00FF)
        red_blue[i] += even
        green[i] += odd
        r, g, b = pixel & np.uint32(255), odd & np.uint32(255), even >> np.uint32(16)
        # numba widens sums to 64 bits; cut back to 32, LLVM adds eight at a time.
        rr = np.uint32(rr + r * r)
        rg = np.uint32(rg + r * g)
        rb = np.uint32(rb + r * b)
        gg = np.uint32(gg + g * g)
        gb = np.uint32(gb + g * b)
        bb = np.uint32(bb + b * b)
    for k, total in enumerate((rr, rg, rb, gg, gb, bb)):
        products[k] += total


class Accumulator:
    """Adds images up one at a time, while each is still in the processor's cache."""

    def __init__(self, size_px: int) -> None:
        self._size_px = size_px
        # Pairs of 16-bit sums: (red, blue) and (green, the fourth byte).
        self._pairs = np.zeros((2, size_px**2), np.uint32)
        self._products = np.zeros(len(_PRODUCTS), np.uint64)
        self._sum = np.zeros((size_px, size_px, 3), np.uint64)
        self._waiting = 0
        self._count = 0
        self._add = add_pixels()

    def add(self, image: NDArray[np.uint8]) -> None:
        """Adds an image (S, S, 4) uint8: red, green, blue and one byte of any value.

        Raises ValueError for another shape, or an array that is not contiguous.
        """
        shape = (self._size_px, self._size_px, 4)
        if image.shape != shape or image.dtype != np.uint8 or not image.flags.c_contiguous:
            raise ValueError(f"expected contiguous uint8 of shape {shape}, not {image.shape}")
        if self._waiting == _UINT16_IMAGES:
            self._empty_pairs()
        words = image.view(np.uint32).reshape(-1)
        for start in range(0, len(words), MAX_PIXELS):
            part = slice(start, start + MAX_PIXELS)
            red_blue, green = self._pairs[:, part]
            self._add(words[part], red_blue, green, self._products)
        self._waiting += 1
        self._count += 1

    def _empty_pairs(self) -> None:
        """Moves the 16-bit sums to the 64-bit ones, before they overflow."""
        size = self._size_px
        red_blue, green = self._pairs.view(np.uint16).reshape(2, size, size, 2)
        self._sum[..., 0::2] += red_blue
        self._sum[..., 1] += green[..., 0]
        self._pairs[:] = 0
        self._waiting = 0

    def moments(self) -> Moments:
        """The Moments of all images so far; of the size's, where there were none."""
        self._empty_pairs()
        products = np.empty((3, 3), np.uint64)
        for pair, value in zip(_PRODUCTS, self._products, strict=True):
            i, j = ("rgb".index(channel) for channel in pair)
            products[i, j] = products[j, i] = value
        return Moments(self._sum.copy(), products, self._count)


def moments_of(images: NDArray[np.uint8]) -> Moments:
    """Images (N, S, S, 3) uint8 -> their Moments, exactly.

    Raises ValueError for another shape or dtype.
    """
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise ValueError(f"expected images of shape (N, S, S, 3), not {images.shape}")
    if images.dtype != np.uint8:
        raise ValueError(f"expected uint8 images, not {images.dtype}")
    total = Accumulator(images.shape[1])
    pixels = np.zeros((*images.shape[1:3], 4), np.uint8)
    for image in images:
        pixels[..., :3] = image
        total.add(pixels)
    return total.moments()


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both sets together; associative and commutative to the bit.

    Raises ValueError when the images have different sizes.
    """
    if a.size_px != b.size_px:
        raise ValueError(f"images of {a.size_px} px do not add up with {b.size_px} px")
    total = np.add(a.sum, b.sum, dtype=np.uint64)
    return Moments(total, a.products + b.products, a.count + b.count)


def finish(moments: Moments, source: str, coverage: tuple[str, ...] = ()) -> Stats:
    """Moments of at least one image, the digest of their source and its coverage -> Stats.

    Each channel mean and covariance is one correctly rounded quotient of exact integers:
    with n pixels, T = Σ p and P = Σ p pᵀ, the covariance is (n Pᵢⱼ - Tᵢ Tⱼ) / n²,
    the population's, as the colour noise of Krizhevsky et al. (2012) takes it.
    Raises ValueError for moments of no images.
    """
    if moments.count < 1:
        raise ValueError("statistics of no images are not defined")
    pixels = moments.count * moments.size_px**2
    totals = [int(value) for value in moments.sum.sum(axis=(0, 1), dtype=np.uint64)]
    covariance = np.empty((3, 3), np.float64)
    for i in range(3):
        for j in range(3):
            scaled = pixels * int(moments.products[i, j]) - totals[i] * totals[j]
            covariance[i, j] = scaled / pixels**2
    values, vectors = np.linalg.eigh(covariance)
    # A direction without any spread can come out a hair below zero.
    values = np.maximum(values, 0.0)
    largest = np.abs(vectors).argmax(axis=0)
    # Adding zero turns -0.0 into 0.0.
    vectors = vectors * np.where(vectors[largest, range(3)] < 0, -1.0, 1.0) + 0.0
    return Stats(
        mean=(moments.sum / np.float64(moments.count)).astype(np.float32),
        sum=moments.sum,
        products=moments.products,
        count=moments.count,
        channel_mean=np.array([total / pixels for total in totals], np.float64),
        channel_std=np.sqrt(np.diag(covariance)),
        covariance=covariance,
        eigenvalues=values,
        eigenstdev=np.sqrt(values),
        eigenvectors=vectors,
        source=source,
        coverage=coverage,
    )
