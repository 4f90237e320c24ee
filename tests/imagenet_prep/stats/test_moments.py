"""Moments are exact integers, merge in any grouping, and give the textbook's statistics."""

from __future__ import annotations

from fractions import Fraction
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from imagenet_prep.stats import moments as stats
from imagenet_prep.stats.moments import MAX_PIXELS, Moments


def noise(count: int, size_px: int, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size_px, size_px, 3), np.uint8)


def plain_moments(images: NDArray[np.uint8]) -> Moments:
    """The definition, pixel by pixel."""
    size = images.shape[1]
    total = np.zeros((size, size, 3), np.uint64)
    products = np.zeros((3, 3), np.uint64)
    for image in images:
        for y in range(size):
            for x in range(size):
                pixel = image[y, x].astype(np.uint64)
                total[y, x] += pixel
                products += np.outer(pixel, pixel)
    return Moments(total, products, len(images))


def assert_same(a: Moments, b: Moments) -> None:
    assert a.count == b.count
    assert a.sum.dtype == b.sum.dtype == np.uint64
    assert a.products.dtype == b.products.dtype == np.uint64
    assert np.array_equal(a.sum, b.sum)
    assert np.array_equal(a.products, b.products)


def assert_same_stats(a: Moments, b: Moments) -> None:
    first, second = stats.finish(a, "s"), stats.finish(b, "s")
    for name in ("mean", "covariance", "channel_mean", "eigenvalues", "eigenvectors"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes(), name


@given(
    count=st.integers(0, 4),
    size_px=st.integers(1, 9),
    low=st.integers(0, 255),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_moments_equal_a_plain_double_loop(count: int, size_px: int, low: int, seed: int) -> None:
    images = np.maximum(noise(count, size_px, seed), np.uint8(low))
    assert_same(stats.moments_of(images), plain_moments(images))


@pytest.mark.parametrize(("count", "size_px"), [(3, 256), (2, 227), (1, 64), (5, 63), (300, 17)])
def test_moments_equal_integer_matrix_products_at_real_sizes(count: int, size_px: int) -> None:
    images = noise(count, size_px, seed=count)
    pixels = images.reshape(-1, 3).astype(np.int64)
    moments = stats.moments_of(images)
    assert np.array_equal(moments.products, (pixels.T @ pixels).astype(np.uint64))
    assert np.array_equal(moments.sum, images.sum(axis=0, dtype=np.uint64))


@pytest.mark.parametrize("level", [0, 1, 127, 128, 255])
def test_moments_are_exact_at_the_extremes(level: int) -> None:
    """All-equal images make the largest sums that the fast paths meet."""
    images = np.full((600, 32, 32, 3), level, np.uint8)
    moments = stats.moments_of(images)
    assert np.unique(moments.sum).tolist() == [600 * level]
    assert np.unique(moments.products).tolist() == [600 * 32 * 32 * level**2]


def test_an_image_larger_than_one_call_of_the_loop_is_exact() -> None:
    """White images have the largest sums, and 256 px is the largest side of one call."""
    assert MAX_PIXELS == 256**2
    for size_px in (256, 257, 600):
        image = np.full((1, size_px, size_px, 3), 255, np.uint8)
        moments = stats.moments_of(image)
        assert np.unique(moments.sum).tolist() == [255]
        assert np.unique(moments.products).tolist() == [size_px**2 * 255**2]


@pytest.mark.parametrize("size_px", [1, 2, 3, 5, 8])
def test_the_fourth_byte_of_a_pixel_does_not_count(size_px: int) -> None:
    images = noise(300, size_px, seed=size_px)
    total = stats.Accumulator(size_px)
    for image in images:
        padded = np.dstack([image, np.full((size_px, size_px), 255, np.uint8)])
        total.add(padded)
    assert_same(total.moments(), stats.moments_of(images))


def test_an_accumulator_goes_on_after_it_was_asked() -> None:
    images = noise(5, 6, seed=5)
    padded = np.zeros((5, 6, 6, 4), np.uint8)
    padded[..., :3] = images
    total = stats.Accumulator(6)
    assert_same(total.moments(), stats.empty(6))
    for count, image in enumerate(padded, 1):
        total.add(image)
        assert_same(total.moments(), plain_moments(images[:count]))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((6, 6, 3), np.uint8),
        np.zeros((6, 5, 4), np.uint8),
        np.zeros((7, 7, 4), np.uint8),
        np.zeros((6, 6, 4), np.uint16),
        np.zeros((6, 12, 4), np.uint8)[:, ::2],
    ],
)
def test_another_image_than_the_accumulators_is_refused(image: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="expected"):
        stats.Accumulator(6).add(image)


@given(
    cuts=st.lists(st.integers(0, 12), max_size=6),
    order=st.permutations(range(12)),
    left_first=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_merging_any_grouping_in_any_order_gives_the_same_bits(
    cuts: list[int], order: list[int], left_first: bool
) -> None:
    images = noise(12, 6, seed=2)
    bounds = [0, *sorted(cuts), 12]
    shuffled = images[np.array(order)]
    parts = [stats.moments_of(shuffled[a:b]) for a, b in pairwise(bounds)]
    if left_first:
        together = reduce(stats.merge, parts, stats.empty(6))
    else:
        together = reduce(lambda later, part: stats.merge(part, later), reversed(parts))
    assert_same(together, stats.moments_of(images))
    assert_same_stats(together, stats.moments_of(images))


@given(seeds=st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99)))
@settings(max_examples=20, deadline=None)
def test_merge_is_associative_and_commutative(seeds: tuple[int, int, int]) -> None:
    a, b, c = (stats.moments_of(noise(2, 5, seed)) for seed in seeds)
    assert_same(stats.merge(stats.merge(a, b), c), stats.merge(a, stats.merge(b, c)))
    assert_same(stats.merge(a, b), stats.merge(b, a))
    assert_same(stats.merge(a, stats.empty(5)), a)


def test_mean_and_covariance_are_the_exact_quotients() -> None:
    images = noise(5, 12, seed=3)
    found = stats.finish(stats.moments_of(images), "somewhere")
    pixels = [[int(v) for v in pixel] for pixel in images.reshape(-1, 3)]
    n = len(pixels)
    means = [Fraction(sum(pixel[i] for pixel in pixels), n) for i in range(3)]
    for i in range(3):
        assert found.channel_mean[i] == float(means[i])
        for j in range(3):
            products = Fraction(sum(pixel[i] * pixel[j] for pixel in pixels), n)
            assert found.covariance[i, j] == float(products - means[i] * means[j])
    assert np.array_equal(found.mean, images.mean(axis=0, dtype=np.float64).astype(np.float32))
    assert np.allclose(found.channel_std, images.reshape(-1, 3).std(axis=0), rtol=1e-12)
    assert found.count == 5
    assert found.source == "somewhere"


def test_a_spread_far_below_the_mean_is_not_lost() -> None:
    """One level in one of 16 million pixels: float64 sums of squares would give noise."""
    total = np.full((256, 256, 3), 256 * 255, np.uint64)
    total[0, 0] -= np.uint64(1)
    n = 256 * 256 * 256
    products = np.full((3, 3), (n - 1) * 255**2 + 254**2, np.uint64)
    found = stats.finish(Moments(total, products, 256), "")
    assert found.covariance[0, 0] == float(Fraction(1, n) - Fraction(1, n * n))


def test_eigenvectors_rebuild_the_covariance_with_fixed_signs() -> None:
    images = noise(3, 16, seed=4)
    images[..., 1] = images[..., 0] // 2 + images[..., 1] // 4
    found = stats.finish(stats.moments_of(images), "")
    vectors, values = found.eigenvectors, found.eigenvalues
    assert np.allclose(vectors @ np.diag(values) @ vectors.T, found.covariance, atol=1e-8)
    assert np.allclose(vectors.T @ vectors, np.eye(3), atol=1e-12)
    assert (np.diff(values) >= 0).all()
    assert np.array_equal(found.eigenstdev, np.sqrt(values))
    for column in vectors.T:
        assert column[np.abs(column).argmax()] > 0


def test_images_of_one_colour_have_finite_directions() -> None:
    found = stats.finish(stats.moments_of(np.full((2, 4, 4, 3), 77, np.uint8)), "")
    assert (found.eigenstdev == 0).all()
    assert np.isfinite(found.eigenvectors).all()
    assert (found.mean == 77).all()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((1, 4, 5, 3), np.uint8),
        np.zeros((1, 4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.float32),
    ],
)
def test_other_shapes_and_types_are_refused(images: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="expected"):
        stats.moments_of(images)


def test_sizes_do_not_mix_and_nothing_has_no_statistics() -> None:
    with pytest.raises(ValueError, match="4 px do not add up with 5 px"):
        stats.merge(stats.empty(4), stats.empty(5))
    with pytest.raises(ValueError, match="no images"):
        stats.finish(stats.empty(4), "")
