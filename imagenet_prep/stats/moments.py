"""Pictures -> mergeable exact moments -> mean image, colour covariance and its eigenbasis.

Pure: values in, values out. Every sum is an integer, so neither the order nor the
grouping of the pictures changes a bit of the result; only ``finish`` leaves the integers,
and it rounds once. Units: 0-255 levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.dataset.statistics import Stats
from imagenet_prep.stats.coverage import Coverage
from imagenet_prep.stats.kernel import MAX_PIXELS, PIXELS_AT_ONCE, PRODUCTS, add_pixels

# Largest number of pictures whose pixel sums fit a uint16: 257 * 255 = 65535.
_UINT16_PICTURES = 257


@dataclass(frozen=True, eq=False, slots=True)
class Moments:
    """Exact sums over ``count`` pictures of S x S pixels.

    sum (S, S, 3) uint64, per pixel and channel; products (3, 3) uint64, the sum of
    p pᵀ over all pixels p = (r, g, b) of all pictures.
    """

    sum: NDArray[np.uint64]
    products: NDArray[np.uint64]
    count: int

    @property
    def size_px(self) -> int:
        """The side of the pictures."""
        return int(self.sum.shape[0])


def empty(size_px: int) -> Moments:
    """The moments of no pictures: the neutral element of ``merge``."""
    shape = (size_px, size_px, 3)
    return Moments(np.zeros(shape, np.uint64), np.zeros((3, 3), np.uint64), 0)


class Accumulator:
    """Adds pictures up one at a time, while each is still in the processor's cache."""

    def __init__(self, size_px: int) -> None:
        pixels = size_px**2
        # Two channels each, side by side: (red, blue) and (green, the byte that is not used).
        self._pairs = np.zeros((2, pixels + PIXELS_AT_ONCE, 2), np.uint16)
        self._products = np.zeros(len(PRODUCTS), np.uint64)
        self._sum = np.zeros((size_px, size_px, 3), np.uint64)
        self._tail = np.zeros((PIXELS_AT_ONCE, 4), np.uint8)
        self._waiting = 0
        self._count = 0
        self._add = add_pixels()
        self._addresses = tuple(pair.ctypes.data for pair in self._pairs)

    def add(self, picture: NDArray[np.uint8]) -> None:
        """Counts a picture (S, S, 4) uint8: red, green, blue and one byte of any value.

        Raises ValueError for another shape, or where it is not in one piece.
        """
        size = self._sum.shape[0]
        if picture.shape != (size, size, 4) or picture.dtype != np.uint8:
            raise ValueError(f"expected uint8 of shape {(size, size, 4)}, not {picture.shape}")
        if not picture.flags.c_contiguous:
            raise ValueError("expected a picture in one piece of memory")
        if self._waiting == _UINT16_PICTURES:
            self._empty_pairs()
        pixels = size**2
        whole = pixels - pixels % PIXELS_AT_ONCE
        address = picture.ctypes.data
        for start in range(0, whole, MAX_PIXELS):
            self._call(address + 4 * start, min(whole - start, MAX_PIXELS), start)
        if pixels > whole:
            self._tail[: pixels - whole] = picture.reshape(-1, 4)[whole:]
            self._call(self._tail.ctypes.data, PIXELS_AT_ONCE, whole)
        self._waiting += 1
        self._count += 1

    def _call(self, pixels: int, count: int, start: int) -> None:
        red_blue, green = (address + 4 * start for address in self._addresses)
        self._add(pixels, count, red_blue, green, self._products.ctypes.data)

    def _empty_pairs(self) -> None:
        """Moves the 16-bit sums to the 64-bit ones, before they overflow."""
        size = self._sum.shape[0]
        red_blue, green = self._pairs[:, : size * size].reshape(2, size, size, 2)
        self._sum[..., 0::2] += red_blue
        self._sum[..., 1] += green[..., 0]
        self._pairs[:] = 0
        self._waiting = 0

    def moments(self) -> Moments:
        """The Moments of all pictures so far; of the size's, where there were none."""
        self._empty_pairs()
        products = np.empty((3, 3), np.uint64)
        for pair, value in zip(PRODUCTS, self._products, strict=True):
            i, j = ("rgb".index(channel) for channel in pair)
            products[i, j] = products[j, i] = value
        return Moments(self._sum.copy(), products, self._count)


def moments_of(images: NDArray[np.uint8]) -> Moments:
    """Pictures (N, S, S, 3) uint8 -> their Moments, exactly.

    Raises ValueError for another shape or dtype.
    """
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise ValueError(f"expected pictures of shape (N, S, S, 3), not {images.shape}")
    if images.dtype != np.uint8:
        raise ValueError(f"expected uint8 pictures, not {images.dtype}")
    total = Accumulator(images.shape[1])
    pixels = np.zeros((*images.shape[1:3], 4), np.uint8)
    for image in images:
        pixels[..., :3] = image
        total.add(pixels)
    return total.moments()


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both sets together; associative and commutative to the bit.

    Raises ValueError when the pictures have different sizes.
    """
    if a.size_px != b.size_px:
        raise ValueError(f"pictures of {a.size_px} px do not add up with {b.size_px} px")
    return Moments(a.sum + b.sum, a.products + b.products, a.count + b.count)


def finish(moments: Moments, source: str, coverage: Coverage = ()) -> Stats:
    """Moments of at least one picture, the digest of their source and its coverage -> Stats.

    Each channel mean and covariance is one correctly rounded quotient of exact integers:
    with n pixels, T = Σ p and P = Σ p pᵀ, the covariance is (n Pᵢⱼ - Tᵢ Tⱼ) / n²,
    the population's, as the colour noise of Krizhevsky et al. (2012) takes it.
    Raises ValueError for moments of no pictures.
    """
    if moments.count < 1:
        raise ValueError("statistics of no pictures are not defined")
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
