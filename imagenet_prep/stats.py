"""Pictures -> mergeable exact moments -> mean image, colour covariance and its eigenbasis.

Pure: values in, values out. Every sum is an integer, so neither the order nor the
grouping of the pictures changes a bit of the result; only ``finish`` leaves the integers,
and it rounds once. Units: 0-255 levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.artifacts import Stats

_CENTRE = 128
# Largest number of pictures whose pixel sums fit a uint16: 257 * 255 = 65535.
_UINT16_PICTURES = 257
# Levels minus 128 have products of at most 2^14, so 2^10 of them add up to at most 2^24,
# below which float32 holds every integer: the matrix product is exact in any order.
_EXACT_ROWS = 1 << 10
# Four pixels side by side in a row: a 12-wide product keeps the matrix unit busier than
# a 3-wide one and costs a third of its time, although it uses only the diagonal blocks.
_PIXELS_PER_ROW = 4
# Pixels converted at a time: 64k * 3 float32 stay in the cache.
_SLAB_PIXELS = 1 << 16


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


def moments_of(images: NDArray[np.uint8]) -> Moments:
    """Pictures (N, S, S, 3) uint8 -> their Moments, exactly.

    Raises ValueError for another shape or dtype.
    """
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise ValueError(f"expected pictures of shape (N, S, S, 3), not {images.shape}")
    if images.dtype != np.uint8:
        raise ValueError(f"expected uint8 pictures, not {images.dtype}")
    images = np.ascontiguousarray(images)
    total = np.zeros(images.shape[1:], np.uint64)
    for start in range(0, len(images), _UINT16_PICTURES):
        total += np.add.reduce(images[start : start + _UINT16_PICTURES], axis=0, dtype=np.uint16)
    return Moments(total, _products(images.reshape(-1, 3), total), len(images))


def _products(pixels: NDArray[np.uint8], total: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Pixels (P, 3) uint8 and their sums per position -> the sum of p pᵀ, (3, 3) uint64.

    With q = p - 128: Σ pᵢpⱼ = Σ qᵢqⱼ + 128 (Σ pᵢ + Σ pⱼ) - 128² P.
    """
    block = _EXACT_ROWS * _PIXELS_PER_ROW
    whole = len(pixels) - len(pixels) % block
    centred = np.zeros((3, 3), np.int64)
    for start in range(0, whole, _SLAB_PIXELS):
        part = pixels[start : min(start + _SLAB_PIXELS, whole)]
        rows = part.reshape(-1, _EXACT_ROWS, 3 * _PIXELS_PER_ROW)
        q = np.subtract(rows, np.float32(_CENTRE), dtype=np.float32)
        wide = np.matmul(q.transpose(0, 2, 1), q).sum(axis=0, dtype=np.float64)
        for at in range(0, 3 * _PIXELS_PER_ROW, 3):
            centred += wide[at : at + 3, at : at + 3].astype(np.int64)
    # The rest, below one block: far from 2^53, so float64 is exact.
    q64 = np.subtract(pixels[whole:], np.float64(_CENTRE), dtype=np.float64)
    centred += (q64.T @ q64).astype(np.int64)
    sums = total.sum(axis=(0, 1), dtype=np.uint64).astype(np.int64)
    moved = _CENTRE * (sums[:, None] + sums[None, :]) - _CENTRE**2 * len(pixels)
    products: NDArray[np.uint64] = (centred + moved).astype(np.uint64)
    return products


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both sets together; associative and commutative to the bit.

    Raises ValueError when the pictures have different sizes.
    """
    if a.size_px != b.size_px:
        raise ValueError(f"pictures of {a.size_px} px do not add up with {b.size_px} px")
    return Moments(a.sum + b.sum, a.products + b.products, a.count + b.count)


def finish(moments: Moments, source: str) -> Stats:
    """Moments of at least one picture and the digest of their source -> Stats.

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
    )
