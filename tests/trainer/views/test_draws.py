"""The draws are what they claim to be; compiled and in plain NumPy they are the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.samples import made_stats
from tests.kit.views import draws, own_basis
from trainer.hashing import words
from trainer.loader.order import epoch_order
from trainer.views.draws import Draws, _word
from trainer.views.views import Views, colour_basis

U64 = st.integers(0, 2**64 - 1)
SEEDS = st.integers(0, 2**63)


def test_five_and_ten_views_lie_where_the_2012_code_puts_them() -> None:
    five = [(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)]
    places = Views(224, 224, "ten").places(256).tolist()
    assert places == [[y, x, 0] for y, x in five] + [[y, x, 1] for y, x in five]
    assert Views(224, 224, "five").places(256).tolist() == places[:5]
    assert Views(227, 227, "centre").places(256).tolist() == [[14, 14, 0]]


@settings(deadline=None)
@given(
    SEEDS, st.integers(0, 2**40), U64, st.integers(1, 40), st.sampled_from((0.08, 0.5, 1.0)),
    st.booleans(),
)  # fmt: skip
def test_compiled_draws_equal_the_definition(
    seed: int, epoch: int, index: int, side: int, least: float, alternate: bool
) -> None:
    views = Views(
        (side + 1) // 2, side, "resized", (least, 1.0), mirror=True, seed=seed, lighting=0.5,
        alternate=alternate,
    )  # fmt: skip
    stats, indices = made_stats(side), np.array([index], np.uint64)
    compiled = Draws(views, stats, side, 1)
    compiled.epoch = epoch
    compiled.draw(indices)
    drawn = draws(views, epoch, indices, side)
    place = [drawn.y[0], drawn.x[0], drawn.height[0], drawn.width[0], drawn.mirror[0]]
    assert compiled.windows[0, 0].tolist() == place
    np.testing.assert_allclose(compiled.normals, drawn.normals * 0.5, atol=1e-6, rtol=0)
    shift = colour_basis(stats.eigenvectors, stats.eigenstdev, views) @ drawn.normals[0]
    np.testing.assert_allclose(compiled.shifts[0], shift, atol=1e-4, rtol=0)
    assert 0 <= drawn.y[0] <= side - drawn.height[0]
    assert 0 <= drawn.x[0] <= side - drawn.width[0]


def test_the_hash_is_splitmix64() -> None:
    # The first outputs of the published generator, seeded with 0: its state is a counter.
    stream = [int(_word(np.uint64(0), np.int64(n))) for n in range(3)]
    assert stream == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_offsets_and_mirrors_are_uniform() -> None:
    drawn = draws(Views(227, 227, mirror=True, seed=5), 3, np.arange(100_000), 256)
    for values, cells in ((drawn.y, 30), (drawn.x, 30), (drawn.mirror.astype(int), 2)):
        counts = np.bincount(values, minlength=cells)
        expected = 100_000 / cells
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        assert len(counts) == cells
        # The mean is cells - 1, the variance twice that: five deviations away is no accident.
        assert chi_squared < cells - 1 + 5 * np.sqrt(2 * (cells - 1)) + 5


def test_alternating_flips_show_both_sides_in_two_epochs() -> None:
    views = Views(227, 227, mirror=True, alternate=True, seed=5)
    flips = [draws(views, epoch, np.arange(1000), 256).mirror for epoch in range(4)]
    assert (flips[0] ^ flips[1]).all() and (flips[2] ^ flips[3]).all()
    assert 300 < (flips[0] ^ flips[2]).sum() < 700  # another draw for the next pair
    assert 300 < flips[0].sum() < 700


def test_colour_draws_are_independent_standard_normals() -> None:
    normals = draws(Views(227, 227, seed=5), 3, np.arange(100_000), 256).normals
    with_neighbour = np.concatenate([normals, np.roll(normals[:, :1], 1, axis=0)], axis=1)
    correlation = np.corrcoef(with_neighbour.T)
    np.testing.assert_allclose(correlation, np.eye(4), atol=0.02)
    np.testing.assert_allclose(normals.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(normals.std(axis=0), 1, atol=0.02)
    assert abs((normals**4).mean() - 3) < 0.1


def test_neighbours_epochs_and_seeds_are_not_correlated() -> None:
    indices = np.arange(100_000)
    streams = [words(7, 4, indices, 0), words(7, 4, indices + 1, 0), words(7, 5, indices, 0),
               words(8, 4, indices, 0), words(7, 4, indices, 1)]  # fmt: skip
    correlation = np.corrcoef(np.stack(streams).astype(np.float64))
    np.testing.assert_allclose(correlation, np.eye(len(streams)), atol=0.02)


def test_drawn_windows_have_the_requested_areas_and_ratios() -> None:
    drawn = draws(Views(200, 131, "resized", (0.35, 1.0), seed=1), 0, np.arange(20_000), 256)
    share = drawn.height * drawn.width / 256**2
    ratio = drawn.width / drawn.height
    assert 0.345 < share.min() < 0.36
    assert share.max() > 0.99
    assert abs(share.mean() - (1 + 0.35) / 2) < 0.01
    assert 0.74 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.35
    assert abs(np.log(ratio).mean()) < 0.01


@given(SEEDS, st.integers(0, 100), st.integers(1, 300))
def test_an_epochs_order_is_a_permutation_of_its_own(seed: int, epoch: int, samples: int) -> None:
    order = epoch_order(seed, epoch, samples)
    assert sorted(order.tolist()) == list(range(samples))
    assert samples < 20 or order.tolist() != epoch_order(seed, epoch + 1, samples).tolist()
    assert samples < 20 or order.tolist() != epoch_order(seed + 1, epoch, samples).tolist()


def test_imagenets_colour_noise_deviates_by_12_levels() -> None:
    deviations = np.array([19.72, 37.09, 121.78])  # of cuda-convnet2's statistics, in levels
    directions = np.linalg.qr(np.arange(9.0).reshape(3, 3) ** 2)[0]
    stats = replace(made_stats(256), eigenvectors=directions, eigenstdev=deviations)
    compiled = Draws(Views(227, 227, lighting=0.1), stats, 256, 100_000)
    compiled.draw(np.arange(100_000, dtype=np.uint64))
    along = compiled.shifts.astype(np.float64) @ directions
    assert along.std(axis=0) == pytest.approx(deviations * 0.1, rel=0.01)
    assert along[:, 2].std() == pytest.approx(12.2, abs=0.15)


@pytest.mark.parametrize("grey", [False, True])
def test_a_image_s_own_colour_noise_has_its_own_covariance(grey: bool) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    pixels[:20, :, 1] = pixels[:20, :, 0]  # two channels go together
    if grey:
        pixels[:] = pixels[:, :, :1]
    basis = own_basis(pixels, Views(20, 20, lighting=0.1, lighting_mode="image"))
    covariance = np.cov(pixels.reshape(-1, 3).T.astype(float), bias=True)
    assert np.allclose(basis @ basis.T, 0.01 * covariance, atol=1e-6)


def test_a_image_of_one_colour_gets_no_noise() -> None:
    pixels = np.full((8, 8, 3), (9, 80, 200), np.uint8)
    basis = own_basis(pixels, Views(8, 8, lighting=0.1, lighting_mode="image"))
    assert not basis.any()
