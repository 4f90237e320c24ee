"""The plain definitions of what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.loader.views import Views, picture_basis


@pytest.mark.parametrize("grey", [False, True])
def test_a_picture_s_own_colour_noise_has_its_own_covariance(grey: bool) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    pixels[:20, :, 1] = pixels[:20, :, 0]  # two channels go together
    if grey:
        pixels[:] = pixels[:, :, :1]
    basis = picture_basis(pixels, Views(20, 20, lighting=0.1, lighting_mode="image"))
    covariance = np.cov(pixels.reshape(-1, 3).T.astype(float), bias=True)
    assert np.allclose(basis @ basis.T, 0.01 * covariance, atol=1e-6)


def test_a_picture_of_one_colour_gets_no_noise() -> None:
    pixels = np.full((8, 8, 3), (9, 80, 200), np.uint8)
    basis = picture_basis(pixels, Views(8, 8, lighting=0.1, lighting_mode="image"))
    assert not basis.any()
