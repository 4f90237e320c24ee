"""The draws are what they claim to be, and the compiled kernels equal their definition."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.kit.samples import made_stats, memory_file
from trainer import numba_ext as primitives
from trainer.hashing import words
from trainer.loader import kernels as ops
from trainer.loader.engine import CropDecoder
from trainer.loader.views import (
    KINDS,
    LIGHTINGS,
    MEANS,
    Views,
    colour_basis,
    draws,
    epoch_order,
    gain_of,
    mean_of,
    numpy_sample,
    resampling,
)

U64 = st.integers(0, 2**64 - 1)
SEEDS = st.integers(0, 2**63)


def run(decoder: CropDecoder, data: NDArray[np.uint8], indices: NDArray[np.uint64]) -> NDArray[Any]:
    """The batch of ``indices`` as FFCV would have it made, of a file with the bytes ``data``."""
    # A value that no picture has: what is not written shows.
    out = np.full((len(indices), *decoder.shape), 77, decoder.dtype)
    with memory_file(data.tobytes()) as decoder.files[0]:
        result: NDArray[Any] = decoder.generate_code()(indices, out, None, None)
    return result


def raw_extents(count: int, side: int) -> NDArray[np.int64]:
    size = 3 * side * side
    return np.array([[i * size, size, 1, 0] for i in range(count)], np.int64)


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.uint8], Views, int]:
    """(pictures (N, side, side, 3), some of them grey; views; epoch)."""
    side = draw(st.integers(1, 24))
    crop = draw(st.integers(1, side))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    pictures = rng.integers(0, 256, (draw(st.integers(1, 5)), side, side, 3), np.uint8)
    pictures[::2] = pictures[::2, ..., :1]
    least = draw(st.sampled_from((0.05, 0.4, 0.99, 1.0)))
    views = Views(
        crop_px=crop,
        out_px=draw(st.sampled_from((crop, 1, 7, 30))),
        kind=draw(st.sampled_from(KINDS)),
        scale=(least, draw(st.sampled_from((least, 1.0)))),
        ratio=draw(st.sampled_from(((3 / 4, 4 / 3), (0.2, 1.0), (1.0, 1.0)))),
        mirror=draw(st.booleans()),
        mean=draw(st.sampled_from(MEANS)),
        lighting=draw(st.sampled_from((0.0, 0.1))),
        lighting_mode=draw(st.sampled_from(LIGHTINGS)),
        scaled=draw(st.booleans()),
        seed=draw(SEEDS),
    )
    return pictures, views, draw(st.integers(0, 1000))


def wanted(
    pictures: NDArray[np.uint8], views: Views, epoch: int, indices: NDArray[np.uint64]
) -> NDArray[np.float64]:
    """The definition of every view of the samples ``indices``: (B, V, out, out, 3)."""
    side = pictures.shape[1]
    stats = made_stats(side)
    basis = colour_basis(stats.eigenvectors, stats.eigenstdev, views)
    mean, gain = mean_of(views, stats.mean), gain_of(views, stats.channel_std)
    drawn = draws(views, epoch, indices, side)
    rows = [
        numpy_sample(pictures[k], mean, basis, gain, views, drawn, i * views.count + v)
        for i, k in enumerate(indices)
        for v in range(views.count)
    ]
    return np.stack(rows).reshape(len(indices), views.count, *rows[0].shape)


def made(
    pictures: NDArray[np.uint8],
    views: Views,
    epoch: int,
    indices: NDArray[np.uint64],
    jobs: int = 1,
    planes: bool = False,
) -> NDArray[Any]:
    """What the kernels make of them: (B, V, out, out, 3) of the stored dtype."""
    count, side = pictures.shape[:2]
    decoder = CropDecoder(
        views, made_stats(side), raw_extents(count, side), side, batch_size=count, jobs=jobs,
        planes=planes,
    )  # fmt: skip
    decoder.epoch = epoch
    got = run(decoder, pictures.reshape(-1), indices)
    assert decoder.fault(count) is None
    if planes:
        got = np.moveaxis(got, -3, -1)
    return got.reshape(len(indices), views.count, *got.shape[-3:])


@settings(deadline=None, max_examples=60)
@given(cases(), st.sampled_from((1, 2)), st.booleans())
def test_uint8_views_equal_the_definition_exactly(
    case: tuple[NDArray[np.uint8], Views, int], jobs: int, planes: bool
) -> None:
    pictures, views, epoch = case
    views = replace(views, dtype="uint8", mean="none", lighting_mode="off")
    indices = np.arange(len(pictures), dtype=np.uint64)[::-1].copy()
    got = made(pictures, views, epoch, indices, jobs, planes)
    want = wanted(pictures, views, epoch, indices)
    if views.resamples:  # sums in float32: at a half of a level they may round the other way
        plain = replace(views, dtype="float32", scaled=False)
        exact = wanted(pictures, plain, epoch, indices)
        assert np.abs(got - np.clip(exact, 0, 255)).max() <= 0.5 + 1e-3
    else:
        np.testing.assert_array_equal(got, want)


@settings(deadline=None, max_examples=150)
@given(cases(), st.sampled_from((1, 2)), st.booleans())
def test_float_views_equal_the_definition(
    case: tuple[NDArray[np.uint8], Views, int], jobs: int, planes: bool
) -> None:
    pictures, views, epoch = case
    indices = np.arange(len(pictures), dtype=np.uint64)
    got = made(pictures, views, epoch, indices, jobs, planes)
    want = wanted(pictures, views, epoch, indices)
    # The literal variance gives values of thousands of levels, with float32's own precision.
    np.testing.assert_allclose(got, want, atol=1e-3, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(cases(), st.sampled_from(("bfloat16", "float16")), st.booleans())
def test_halves_are_the_rounded_floats(
    case: tuple[NDArray[np.uint8], Views, int], dtype: str, planes: bool
) -> None:
    pictures, views, epoch = case
    indices = np.arange(len(pictures), dtype=np.uint64)
    floats = made(pictures, views, epoch, indices)
    halves = made(pictures, replace(views, dtype=dtype), epoch, indices, planes=planes)
    want = torch.from_numpy(floats).to(getattr(torch, dtype))
    got = torch.from_numpy(np.ascontiguousarray(halves)).view(getattr(torch, dtype))
    assert torch.equal(got, want)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
@settings(deadline=None)
def test_conversion_to_halves_is_torchs(values: list[float]) -> None:
    floats = np.array(values, np.float32)
    bits = floats.view(np.uint32)
    got = {
        "float16": [int(primitives.float16_bits(b, f)) for b, f in zip(bits, floats, strict=True)],
        "bfloat16": [int(primitives.bfloat16_bits(b)) for b in bits],
    }
    for name, halves in got.items():
        want = torch.from_numpy(floats).to(getattr(torch, name)).view(torch.uint16)
        assert halves == want.tolist()


def test_the_five_and_ten_views_lie_where_the_2012_code_puts_them() -> None:
    five = [(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)]
    places = Views(224, 224, "ten").places(256).tolist()
    assert places == [[y, x, 0] for y, x in five] + [[y, x, 1] for y, x in five]
    assert Views(224, 224, "five").places(256).tolist() == places[:5]
    assert Views(227, 227, "centre").places(256).tolist() == [[14, 14, 0]]


@settings(deadline=None)
@given(SEEDS, st.integers(0, 2**40), U64, st.integers(1, 40), st.sampled_from((0.08, 0.5, 1.0)))
def test_compiled_draws_equal_the_definition(
    seed: int, epoch: int, index: int, side: int, least: float
) -> None:
    views = Views((side + 1) // 2, side, "resized", (least, 1.0), mirror=True, seed=seed)
    decoder = CropDecoder(views, made_stats(side), raw_extents(1, side), side, batch_size=1, jobs=1)
    # Numba's words come back as Python's whole numbers, and would go in again as signed.
    key = np.uint64(primitives.sample_key(np.uint64(seed), np.uint64(epoch), np.uint64(index)))
    drawn = draws(views, epoch, np.array([index], np.uint64), side)
    place = (drawn.y[0], drawn.x[0], drawn.height[0], drawn.width[0], drawn.mirror[0])
    assert ops._place(decoder._job, key, 0) == place
    np.testing.assert_allclose(primitives.normals(key), drawn.normals[0], atol=1e-6, rtol=0)
    assert 0 <= drawn.y[0] <= side - drawn.height[0]
    assert 0 <= drawn.x[0] <= side - drawn.width[0]


def test_the_hash_is_splitmix64() -> None:
    # The first outputs of the published generator, seeded with 0: its state is a counter.
    stream = [int(primitives.word(np.uint64(0), np.int64(n))) for n in range(3)]
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


def test_drawn_windows_have_the_areas_and_ratios_that_were_asked_for() -> None:
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


@pytest.mark.parametrize(("length", "out"), [(227, 131), (151, 131), (100, 131), (7, 7), (9, 1)])
def test_resampling_is_torchs_antialiased_bilinear(length: int, out: int) -> None:
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
    extents = np.array([[a, n, 0, 0] for a, n in zip(starts, sizes, strict=True)], np.int64)
    extents = np.concatenate([extents, [[len(data) - 9, 10, 0, 0], [len(data), 768, 1, 0]]])
    views = Views(16, 16, "centre", dtype="uint8")
    decoder = CropDecoder(views, made_stats(16), extents, 16, batch_size=3, jobs=jobs)
    expected = [None, ops.STATUS_CORRUPT, ops.STATUS_SIZE, ops.STATUS_SIZE, *[ops.STATUS_SHORT] * 2]
    for index, status in enumerate(expected):
        out = run(decoder, data, np.array([0, 0, index], np.uint64))
        fault = decoder.fault(3)
        assert fault == (None if status is None else (2, ops.FAULTS[status]))
        assert fault is None or (out[2] == 77).all()


def test_setting_the_epoch_changes_the_draws_without_a_new_function() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4, 20, 20, 3), np.uint8)
    views = Views(9, 9, mirror=True, dtype="uint8")
    decoder = CropDecoder(views, made_stats(20), raw_extents(4, 20), 20, batch_size=4, jobs=1)
    code = decoder.generate_code()
    indices = np.arange(4, dtype=np.uint64)
    batches = []
    for epoch in (0, 1, 0):
        decoder.epoch = epoch
        out = np.zeros((4, 9, 9, 3), np.uint8)
        with memory_file(pictures.tobytes()) as decoder.files[0]:
            batches.append(code(indices, out, None, None))
    assert not np.array_equal(batches[0], batches[1])
    np.testing.assert_array_equal(batches[0], batches[2])


def test_the_colour_noise_of_imagenet_deviates_by_12_levels_along_its_main_direction() -> None:
    deviations = np.array([19.72, 37.09, 121.78])  # of cuda-convnet2's statistics, in levels
    directions = np.linalg.qr(np.arange(9.0).reshape(3, 3) ** 2)[0]
    views = Views(227, 227, lighting=0.1)
    basis = colour_basis(directions, deviations, views)
    normals = draws(views, 0, np.arange(100_000, dtype=np.uint64), 256).normals
    along = (basis @ normals.T).T @ directions
    assert along.std(axis=0) == pytest.approx(deviations * 0.1, rel=0.01)
    assert along[:, 2].std() == pytest.approx(12.2, abs=0.15)
