"""The device's half of the pipeline equals the plain definition; here on CPU tensors."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer.augment import normalise
from trainer.draws import Draws, Views, cut, draws, numpy_sample

BASIS = np.array([[1.5, -2.0, 8.0], [0.5, 3.0, 7.0], [-2.0, -1.0, 9.0]])


def tensors(drawn: Draws) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    shift = (drawn.normals @ BASIS.T).astype(np.float32)
    y, x, mirror, shifts = map(torch.from_numpy, (drawn.y, drawn.x, drawn.mirror, shift))
    return y, x, mirror, shifts


def case(side: int, views: Views, count: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    rng = np.random.default_rng(side)
    pictures = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    pictures[::2] = pictures[::2, ..., :1]
    return pictures, rng.uniform(0, 255, (side, side, 3)).astype(np.float32)


@settings(deadline=None)
@given(
    st.integers(1, 30), st.data(), st.integers(0, 5), st.booleans(), st.booleans(),
    st.integers(0, 2**60),
)  # fmt: skip
def test_the_expression_equals_the_definition(
    side: int, data: st.DataObject, count: int, random: bool, mirror: bool, seed: int
) -> None:
    crop = data.draw(st.integers(1, side))
    views = Views(crop, crop, random, mirror=mirror, lighting=0.1, seed=seed)
    pictures, mean = case(side, views, count)
    drawn = draws(views, 3, np.arange(count), side)
    crops = np.zeros((count, crop, crop, 3), np.uint8)
    want = np.zeros((count, crop, crop, 3))
    for i, picture in enumerate(pictures):
        crops[i] = cut(picture, drawn, i)
        want[i] = numpy_sample(picture, mean, BASIS, views, drawn, i)
    got = normalise(torch.from_numpy(crops), *tensors(drawn), torch.from_numpy(mean))
    assert got.dtype == torch.float32
    assert got.shape == (count, 3, crop, crop)
    assert got.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(got.permute(0, 2, 3, 1), want, atol=1e-3, rtol=0)


def test_the_result_lies_in_the_memory_that_was_given() -> None:
    views = Views(5, 5, True, mirror=True, lighting=0.1)
    pictures, mean = case(9, views, 2)
    drawn = draws(views, 0, np.arange(2), 9)
    crops = torch.from_numpy(np.stack([cut(p, drawn, i) for i, p in enumerate(pictures)]))
    out = torch.empty(2, 5, 5, 3)
    got = normalise(crops, *tensors(drawn), torch.from_numpy(mean), out)
    assert got.data_ptr() == out.data_ptr()
    assert torch.equal(got, normalise(crops, *tensors(drawn), torch.from_numpy(mean)))
