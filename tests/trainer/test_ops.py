"""The draws are what they claim to be, and the compiled kernels equal their definition."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from trainer import ops
from trainer.draws import (
    Views,
    colour_basis,
    cut,
    draws,
    epoch_order,
    numpy_sample,
    resampling,
    words,
)
from trainer.engine import CropDecoder

U64 = st.integers(0, 2**64 - 1)
SEEDS = st.integers(0, 2**63)
BASIS = colour_basis(np.linalg.qr(np.arange(9.0).reshape(3, 3) ** 2)[0], np.array([9, 30, 99]), 0.1)
# A change of the hash changes every run's pixels: a decision, not an accident.
PINNED: dict[str, list[Any]] = {
    "y": [13, 1, 9, 2],
    "x": [16, 5, 16, 25],
    "mirror": [False, True, False, False],
    "order": [7, 3, 5, 2, 1, 6, 4, 0],
}


def run(decoder: CropDecoder, data: NDArray[np.uint8], indices: NDArray[np.uint64]) -> NDArray[Any]:
    """The batch of ``indices`` as FFCV would have it made, of a file with the bytes ``data``."""
    side = decoder.views.out_px
    # A value that no picture has: what is not written shows.
    out = np.full((len(indices), side, side, 3), 77, decoder.dtype)
    result: NDArray[Any] = decoder.generate_code()(indices, out, None, (data,))
    return result


def raw_extents(count: int, side: int) -> NDArray[np.int64]:
    size = 3 * side * side
    return np.array([[i * size, size, 1] for i in range(count)], np.int64)


@st.composite
def cases(draw: st.DrawFn, resampled: bool) -> tuple[NDArray[np.uint8], Views, int]:
    """(pictures (N, side, side, 3), some of them grey; views; epoch)."""
    side = draw(st.integers(1, 24))
    crop = draw(st.integers(1, side))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    pictures = rng.integers(0, 256, (draw(st.integers(1, 5)), side, side, 3), np.uint8)
    pictures[::2] = pictures[::2, ..., :1]
    views = Views(
        crop_px=crop,
        out_px=draw(st.integers(1, 30)) if resampled else crop,
        random=draw(st.booleans()),
        scale_min=draw(st.sampled_from((0.05, 0.4, 0.99, 1.0))) if resampled else 1.0,
        mirror=draw(st.booleans()),
        lighting=0.1,
        seed=draw(SEEDS),
    )
    return pictures, views, draw(st.integers(0, 1000))


@settings(deadline=None, max_examples=60)
@given(cases(resampled=False), st.sampled_from((1, 2)))
def test_uint8_crops_equal_the_definition_exactly(
    case: tuple[NDArray[np.uint8], Views, int], jobs: int
) -> None:
    pictures, views, epoch = case
    count, side = pictures.shape[:2]
    decoder = CropDecoder(views, raw_extents(count, side), side, batch_size=count, jobs=jobs)
    decoder.epoch = epoch
    indices = np.arange(count, dtype=np.uint64)[::-1].copy()
    got = run(decoder, pictures.reshape(-1), indices)
    drawn = draws(views, epoch, indices, side)
    want = [cut(pictures[k], drawn, i) for i, k in enumerate(indices)]
    np.testing.assert_array_equal(got, want)
    assert decoder.fault(count) is None


@settings(deadline=None, max_examples=100)
@given(st.booleans().flatmap(lambda flag: cases(resampled=flag)), st.sampled_from((1, 2)))
def test_float_samples_equal_the_definition(
    case: tuple[NDArray[np.uint8], Views, int], jobs: int
) -> None:
    pictures, views, epoch = case
    count, side = pictures.shape[:2]
    mean = np.random.default_rng(side).uniform(0, 255, (side, side, 3)).astype(np.float32)
    decoder = CropDecoder(
        views, raw_extents(count, side), side, batch_size=count, jobs=jobs, mean=mean, basis=BASIS
    )
    decoder.epoch = epoch
    indices = np.arange(count, dtype=np.uint64)
    got = run(decoder, pictures.reshape(-1), indices)
    drawn = draws(views, epoch, indices, side)
    want = [numpy_sample(p, mean, BASIS, views, drawn, i) for i, p in enumerate(pictures)]
    np.testing.assert_allclose(got, want, atol=1e-3, rtol=0)


@settings(deadline=None)
@given(SEEDS, st.integers(0, 2**40), U64, st.integers(1, 40), st.sampled_from((0.08, 0.5, 1.0)))
def test_compiled_draws_equal_the_definition(
    seed: int, epoch: int, index: int, side: int, scale_min: float
) -> None:
    views = Views((side + 1) // 2, side, True, scale_min, True, 0.1, seed)
    decoder = CropDecoder(
        views, raw_extents(1, side), side, batch_size=1, jobs=1,
        mean=np.zeros((side, side, 3), np.float32), basis=BASIS,
    )  # fmt: skip
    # Numba's words come back as Python's whole numbers, and would go in again as signed.
    key = np.uint64(ops._key(np.uint64(seed), np.uint64(epoch), np.uint64(index)))
    drawn = draws(views, epoch, np.array([index], np.uint64), side)
    place = (drawn.y[0], drawn.x[0], drawn.height[0], drawn.width[0], drawn.mirror[0])
    assert ops._place(decoder._job, key) == place
    np.testing.assert_allclose(ops._normals(key), drawn.normals[0], atol=1e-6, rtol=0)
    assert 0 <= drawn.y[0] <= side - drawn.height[0]
    assert 0 <= drawn.x[0] <= side - drawn.width[0]


def test_the_hash_is_splitmix64() -> None:
    # The first outputs of the published generator, seeded with 0: its state is a counter.
    stream = [int(ops._word(np.uint64(0), np.int64(n))) for n in range(3)]
    assert stream == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_the_draws_of_a_release_do_not_change() -> None:
    drawn = draws(Views(227, 227, True, mirror=True, seed=1), 2, np.arange(4), 256)
    assert drawn.y.tolist() == PINNED["y"]
    assert drawn.x.tolist() == PINNED["x"]
    assert drawn.mirror.tolist() == PINNED["mirror"]
    assert epoch_order(1, 2, 8).tolist() == PINNED["order"]


def test_offsets_and_mirrors_are_uniform() -> None:
    drawn = draws(Views(227, 227, True, mirror=True, seed=5), 3, np.arange(100_000), 256)
    for values, cells in ((drawn.y, 30), (drawn.x, 30), (drawn.mirror.astype(int), 2)):
        counts = np.bincount(values, minlength=cells)
        expected = 100_000 / cells
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        assert len(counts) == cells
        # The mean is cells - 1, the variance twice that: five deviations away is no accident.
        assert chi_squared < cells - 1 + 5 * np.sqrt(2 * (cells - 1)) + 5


def test_colour_draws_are_independent_standard_normals() -> None:
    normals = draws(Views(227, 227, True, seed=5), 3, np.arange(100_000), 256).normals
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


def test_drawn_windows_have_the_areas_and_ratios_that_were_asked_for() -> None:
    drawn = draws(Views(200, 131, True, scale_min=0.35, seed=1), 0, np.arange(20_000), 256)
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


@pytest.mark.parametrize(("length", "out"), [(227, 131), (151, 131), (100, 131), (7, 7), (9, 1)])
def test_resampling_is_torchs_antialiased_bilinear(length: int, out: int) -> None:
    torch = pytest.importorskip("torch")
    line = np.random.default_rng(length).uniform(0, 255, length)
    want = torch.nn.functional.interpolate(
        torch.from_numpy(line)[None, None, None], size=(1, out), mode="bilinear", antialias=True
    )
    np.testing.assert_allclose(resampling(length, out) @ line, want[0, 0, 0], atol=1e-3)


def encoded(side: tuple[int, int], **options: Any) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.new("RGB", side, (9, 99, 199)).save(buffer, "JPEG", **options)
    return np.frombuffer(buffer.getvalue(), np.uint8)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"\xff\xc0" * 40}])
def test_the_size_is_read_from_the_frame_header(options: dict[str, Any]) -> None:
    assert ops.jpeg_size(encoded((300, 17), **options)[None].copy()) == (17, 300)


def test_fill_bytes_before_a_marker_are_skipped() -> None:
    data = encoded((40, 30)).tobytes()
    padded = data[:2] + b"\xff\xff\xff" + data[2:]
    assert ops.jpeg_size(np.frombuffer(padded, np.uint8)[None].copy()) == (30, 40)


@settings(deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_have_a_size_or_none(data: bytes, begins_well: bool) -> None:
    data = (b"\xff\xd8\xff" if begins_well else b"") + data
    height, width = ops.jpeg_size(np.frombuffer(data, np.uint8)[None].copy())
    assert 0 <= height < 65536
    assert 0 <= width < 65536


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_sample_that_does_not_decode_is_reported_with_its_reason(jobs: int) -> None:
    good = encoded((16, 16), quality=95)
    short = good.copy()
    short[len(good) // 2 :] = 0
    other = encoded((8, 8))
    data = np.concatenate([good, short, other, np.zeros(50, np.uint8)])
    sizes = [len(good), len(short), len(other), 50]
    starts = np.cumsum([0, *sizes[:-1]])
    extents = np.array([[a, n, 0] for a, n in zip(starts, sizes, strict=True)], np.int64)
    decoder = CropDecoder(Views(16, 16, False), extents, 16, batch_size=3, jobs=jobs)
    expected = [None, ops.STATUS_CORRUPT, ops.STATUS_SIZE, ops.STATUS_SIZE]
    for index, status in enumerate(expected):
        out = run(decoder, data, np.array([0, 0, index], np.uint64))
        fault = decoder.fault(3)
        assert fault == (None if status is None else (2, ops.FAULTS[status]))
        assert fault is None or (out[2] == 77).all()


def test_setting_the_epoch_changes_the_draws_without_a_new_function() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4, 20, 20, 3), np.uint8)
    views = Views(9, 9, True, mirror=True)
    decoder = CropDecoder(views, raw_extents(4, 20), 20, batch_size=4, jobs=1)
    code = decoder.generate_code()
    indices = np.arange(4, dtype=np.uint64)
    made = []
    for epoch in (0, 1, 0):
        decoder.epoch = epoch
        out = np.zeros((4, 9, 9, 3), np.uint8)
        made.append(code(indices, out, None, (pictures.reshape(-1),)))
    assert not np.array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[2])
