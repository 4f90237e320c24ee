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

from tests.kit.samples import made_info, made_stats, memory_file
from tests.kit.views import draws, numpy_sample, resampling
from trainer import numba_ext
from trainer.loader.cpu import MOST_THREADS, Decoder
from trainer.loader.iterator import DamagedError
from trainer.views import kernels
from trainer.views.views import KINDS, LIGHTINGS, MEANS, Views, colour_basis, gain_of, mean_of

SEEDS = st.integers(0, 2**63)


STORED = {"uint8": "<u1", "float32": "<f4", "bfloat16": "<u2", "float16": "<u2"}


def run(
    decoder: Decoder, views: Views, data: NDArray[np.uint8], indices: NDArray[np.uint64],
    planes: bool = False,
) -> NDArray[Any]:  # fmt: skip
    """The batch of ``indices`` of a file with the bytes ``data``: (B, V, out, out, 3)."""
    size = views.out_px
    shape = (3, size, size) if planes else (size, size, 3)
    # A value that no image has: what is not written shows.
    out = np.full((len(indices), views.count, *shape), 77, STORED[views.dtype])
    with memory_file(data.tobytes()) as decoder.files[0]:
        decoder.run(indices, out.ctypes.data)
    return np.moveaxis(out, -3, -1) if planes else out


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.uint8], Views, int]:
    """(images (N, side, side, 3), some of them grey; views; epoch)."""
    side = draw(st.integers(1, 24))
    crop = draw(st.integers(1, side))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    images = rng.integers(0, 256, (draw(st.integers(1, 5)), side, side, 3), np.uint8)
    images[::2] = images[::2, ..., :1]
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
    return images, views, draw(st.integers(0, 1000))


def wanted(
    images: NDArray[np.uint8], views: Views, epoch: int, indices: NDArray[np.uint64]
) -> NDArray[np.float64]:
    """The definition of every view of the samples ``indices``: (B, V, out, out, 3)."""
    side = images.shape[1]
    stats = made_stats(side)
    basis = colour_basis(stats.eigenvectors, stats.eigenstdev, views)
    mean, gain = mean_of(views, stats.mean), gain_of(views, stats.channel_std)
    drawn = draws(views, epoch, indices, side)
    rows = [
        numpy_sample(images[k], mean, basis, gain, views, drawn, i * views.count + v)
        for i, k in enumerate(indices)
        for v in range(views.count)
    ]
    return np.stack(rows).reshape(len(indices), views.count, *rows[0].shape)


def made(
    images: NDArray[np.uint8],
    views: Views,
    epoch: int,
    indices: NDArray[np.uint64],
    jobs: int = 1,
    planes: bool = False,
) -> NDArray[Any]:
    """What the kernels make of them: (B, V, out, out, 3) of the stored dtype."""
    count, side = images.shape[:2]
    extents = [[i * 3 * side * side, 3 * side * side, 1, 0] for i in range(count)]
    decoder = Decoder(
        made_info(side, extents), made_stats(side), views, batch_size=count,
        jobs=min(jobs, MOST_THREADS),
        layout="channels_first" if planes else "channels_last",
    )  # fmt: skip
    decoder.draws.epoch = epoch
    return run(decoder, views, images.reshape(-1), indices, planes)


@settings(deadline=None, max_examples=60)
@given(cases(), st.sampled_from((1, 2)), st.booleans())
def test_uint8_views_equal_the_definition_exactly(
    case: tuple[NDArray[np.uint8], Views, int], jobs: int, planes: bool
) -> None:
    images, views, epoch = case
    views = replace(views, dtype="uint8", mean="none", lighting_mode="off")
    indices = np.arange(len(images), dtype=np.uint64)[::-1].copy()
    got = made(images, views, epoch, indices, jobs, planes)
    want = wanted(images, views, epoch, indices)
    if views.resamples:  # sums in float32: at a half of a level they may round the other way
        plain = replace(views, dtype="float32", scaled=False)
        exact = wanted(images, plain, epoch, indices)
        assert np.abs(got - np.clip(exact, 0, 255)).max() <= 0.5 + 1e-3
    else:
        np.testing.assert_array_equal(got, want)


@settings(deadline=None, max_examples=150)
@given(cases(), st.sampled_from((1, 2)), st.booleans())
def test_float_views_equal_the_definition(
    case: tuple[NDArray[np.uint8], Views, int], jobs: int, planes: bool
) -> None:
    images, views, epoch = case
    indices = np.arange(len(images), dtype=np.uint64)
    got = made(images, views, epoch, indices, jobs, planes)
    want = wanted(images, views, epoch, indices)
    # The literal variance gives values of thousands of levels, with float32's own precision.
    np.testing.assert_allclose(got, want, atol=1e-3, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(cases(), st.sampled_from(("bfloat16", "float16")), st.booleans())
def test_halves_are_the_rounded_floats(
    case: tuple[NDArray[np.uint8], Views, int], dtype: str, planes: bool
) -> None:
    images, views, epoch = case
    indices = np.arange(len(images), dtype=np.uint64)
    floats = made(images, views, epoch, indices)
    halves = made(images, replace(views, dtype=dtype), epoch, indices, planes=planes)
    want = torch.from_numpy(floats).to(getattr(torch, dtype))
    got = torch.from_numpy(np.ascontiguousarray(halves)).view(getattr(torch, dtype))
    assert torch.equal(got, want)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
@settings(deadline=None)
def test_conversion_to_halves_is_torchs(values: list[float]) -> None:
    floats = np.array(values, np.float32)
    bits = floats.view(np.uint32)
    got = {
        "float16": [int(numba_ext.float16_bits(b, f)) for b, f in zip(bits, floats, strict=True)],
        "bfloat16": [int(numba_ext.bfloat16_bits(b)) for b in bits],
    }
    for name, halves in got.items():
        want = torch.from_numpy(floats).to(getattr(torch, name)).view(torch.uint16)
        assert halves == want.tolist()


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


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_kind_of_jpeg_has_the_pixels_of_pil(jobs: int) -> None:
    side = 40
    noise = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
    kinds: list[dict[str, Any]] = [
        {"subsampling": 2}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1},
        {"comment": b"\xff\xc0" * 40}, {"optimize": True, "quality": 30},
    ]  # fmt: skip
    files = []
    for options in kinds:
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "JPEG", **options)
        files.append(buffer.getvalue())
    files.append(files[0][:2] + b"\xff\xff\xff" + files[0][2:])
    want = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    small = encoded((8, 8), progressive=True).tobytes()
    bad = [small, files[1][: len(files[1]) // 2], files[1][:-9]]
    sizes = [len(file) for file in files + bad]
    starts = np.cumsum([0, *sizes[:-1]])
    extents = [[int(a), n, 0, 0] for a, n in zip(starts, sizes, strict=True)]
    views = Views(33, 33, "centre", dtype="uint8")
    decoder = Decoder(made_info(side, extents), made_stats(side), views, batch_size=8, jobs=jobs)
    data = np.frombuffer(b"".join(files + bad), np.uint8)
    count = len(files)
    for order in (np.arange(count), np.arange(count)[::-1], np.zeros(count, int)):
        found = run(decoder, views, data, order.astype(np.uint64))
        np.testing.assert_array_equal(found[:, 0], want[order][:, 3:36, 3:36])
    corrupt, size = kernels.REASONS[kernels.STATUS_CORRUPT], kernels.REASONS[kernels.STATUS_SIZE]
    for index, reason in enumerate([size, corrupt, corrupt], start=count):
        with pytest.raises(DamagedError) as caught:
            run(decoder, views, data, np.array([1, index], np.uint64))
        assert (caught.value.sample, caught.value.reason) == (index, reason)


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_undecodable_sample_is_reported_with_its_reason(jobs: int) -> None:
    good = encoded((16, 16), quality=95)
    short = good.copy()
    short[len(good) // 2 :] = 0
    other = encoded((8, 8))
    data = np.concatenate([good, short, other, np.zeros(50, np.uint8)])
    sizes = [len(good), len(short), len(other), 50]
    starts = np.cumsum([0, *sizes[:-1]])
    extents = [[int(a), n, 0, 0] for a, n in zip(starts, sizes, strict=True)]
    extents += [[len(data) - 9, 10, 0, 0], [len(data), 768, 1, 0]]
    views = Views(16, 16, "centre", dtype="uint8")
    decoder = Decoder(
        made_info(16, extents), made_stats(16), views, batch_size=3, jobs=min(jobs, MOST_THREADS)
    )
    assert (run(decoder, views, data, np.zeros(3, np.uint64)) != 77).any()
    corrupt, size, cut = (kernels.REASONS[status] for status in (1, 2, 3))
    for index, reason in enumerate([corrupt, size, size, cut, cut], start=1):
        with pytest.raises(DamagedError) as caught:
            run(decoder, views, data, np.array([0, 0, index], np.uint64))
        assert (caught.value.sample, caught.value.reason) == (index, reason)
