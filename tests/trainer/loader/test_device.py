"""The device's half of the pipeline equals the plain definition; here on CPU tensors."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.kit.samples import made_stats
from trainer.loader.device import normalise
from trainer.loader.views import Draws, Views, cut, draws, gain_of, mean_of, numpy_sample

BASIS = np.array([[1.5, -2.0, 8.0], [0.5, 3.0, 7.0], [-2.0, -1.0, 9.0]])


def tensors(drawn: Draws, count: int, views: Views, side: int) -> tuple[torch.Tensor, ...]:
    """placed, shift, mean and gain, as the loader hands them over."""
    stats = made_stats(side)
    placed = np.stack([drawn.y, drawn.x, drawn.mirror], axis=1).reshape(count, -1, 3)
    shift = (drawn.normals.reshape(count, -1, 3)[:, :1].sum(axis=1) @ BASIS.T).astype(np.float32)
    arrays = (placed, shift, mean_of(views, stats.mean), gain_of(views, stats.channel_std))
    return tuple(map(torch.from_numpy, arrays))


def some_pictures(side: int, count: int) -> NDArray[np.uint8]:
    pictures = np.random.default_rng(side).integers(0, 256, (count, side, side, 3), np.uint8)
    pictures[::2] = pictures[::2, ..., :1]
    return pictures


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
    pictures = some_pictures(side, count)
    drawn = draws(views, 3, np.arange(count), side)
    placed, shift, local, gain = tensors(drawn, count, views, side)
    crops = np.zeros((count, views.count, crop, crop, 3), np.uint8)
    want = np.zeros(crops.shape)
    for i, picture in enumerate(pictures):
        for v in range(views.count):
            at = i * views.count + v
            crops[i, v] = cut(picture, drawn, at)
            want[i, v] = numpy_sample(picture, local.numpy(), BASIS, gain.numpy(), views, drawn, at)
    got = normalise(
        torch.from_numpy(crops), placed, shift, local, gain, centre=views.mean == "centre"
    )
    assert got.dtype == torch.float32
    assert got.shape == (count, views.count, 3, crop, crop)
    np.testing.assert_allclose(got.movedim(2, -1), want, atol=1e-3, rtol=1e-6)


def test_the_result_lies_in_the_memory_that_was_given_with_its_dtype() -> None:
    views = Views(5, 5, mirror=True)
    drawn = draws(views, 0, np.arange(2), 9)
    crops = np.stack([cut(p, drawn, i) for i, p in enumerate(some_pictures(9, 2))])
    inputs = torch.from_numpy(crops), *tensors(drawn, 2, views, 9)
    out = torch.empty(2, 5, 5, 3, dtype=torch.bfloat16)
    got = normalise(*inputs, out=out)
    assert got.data_ptr() == out.data_ptr()
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got, normalise(*inputs).to(torch.bfloat16))
