"""The device's half of the pipeline equals the plain definition; here on CPU tensors."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.kit.samples import made_stats
from tests.kit.views import Draws, cut, draws, numpy_sample
from trainer.loader.device import normalise
from trainer.loader.views import Views, gain_of, mean_of

BASIS = np.array([[1.5, -2.0, 8.0], [0.5, 3.0, 7.0], [-2.0, -1.0, 9.0]])


def tensors(drawn: Draws, count: int, views: Views, side: int) -> tuple[torch.Tensor, ...]:
    """placed, shift, mean and gain, as the loader hands them over."""
    stats = made_stats(side)
    placed = np.stack([drawn.y, drawn.x, drawn.height, drawn.width, drawn.mirror], axis=1)
    placed = placed.astype(np.int32).reshape(count, -1, 5)
    shift = (drawn.normals.reshape(count, -1, 3)[:, :1].sum(axis=1) @ BASIS.T).astype(np.float32)
    arrays = (placed, shift, mean_of(views, stats.mean), gain_of(views, stats.channel_std))
    return tuple(map(torch.from_numpy, arrays))


def some_images(side: int, count: int) -> NDArray[np.uint8]:
    images = np.random.default_rng(side).integers(0, 256, (count, side, side, 3), np.uint8)
    images[::2] = images[::2, ..., :1]
    return images


@settings(deadline=None)
@given(
    st.integers(1, 30), st.data(), st.integers(1, 5), st.booleans(), st.booleans(),
    st.sampled_from(("random", "centre", "five", "ten")),
    st.sampled_from(("image", "centre", "channel", "none")), st.integers(0, 2**60),
)  # fmt: skip
def test_the_expression_equals_the_definition(
    side: int,
    data: st.DataObject,
    count: int,
    mirror: bool,
    scaled: bool,
    kind: str,
    mean: str,
    seed: int,
) -> None:
    crop = data.draw(st.integers(1, side))
    views = Views(crop, crop, kind, mirror=mirror, mean=mean, scaled=scaled, seed=seed)
    images = some_images(side, count)
    drawn = draws(views, 3, np.arange(count), side)
    placed, shift, local, gain = tensors(drawn, count, views, side)
    crops = np.zeros((count, views.count, crop, crop, 3), np.uint8)
    want = np.zeros(crops.shape)
    for i, image in enumerate(images):
        for v in range(views.count):
            at = i * views.count + v
            crops[i, v] = cut(image, drawn, at)
            want[i, v] = numpy_sample(image, local.numpy(), BASIS, gain.numpy(), views, drawn, at)
    got = normalise(
        torch.from_numpy(crops), placed, shift, local, gain, centre=views.mean == "centre"
    )
    assert got.dtype == torch.float32
    assert got.shape == (count, views.count, 3, crop, crop)
    np.testing.assert_allclose(got.movedim(2, -1), want, atol=1e-3, rtol=1e-6)
