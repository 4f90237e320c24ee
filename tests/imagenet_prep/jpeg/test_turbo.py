"""The decoder of all CPU pixels gives PIL's, and refuses what does not decode."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imagenet_prep.jpeg import turbo
from tests.conftest import smooth_pixels


def jpeg(side: int, mode: str = "RGB", **options: Any) -> bytes:
    noise = np.random.default_rng(side).integers(-9, 9, (side, side, 3))
    pixels = np.clip(smooth_pixels(side, side, side) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def by_pil(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def decoded(decode: Callable[[bytes, NDArray[np.uint8]], None], data: bytes) -> NDArray[np.uint8]:
    side = len(by_pil(data))
    pixels = np.full((side, side, 4), 77, np.uint8)
    decode(data, pixels)
    return pixels[..., :3]


FORMS: dict[str, dict[str, Any]] = {
    "4:2:0": {"subsampling": "4:2:0", "quality": 90},
    "4:2:2": {"subsampling": "4:2:2", "quality": 50},
    "4:4:4": {"subsampling": "4:4:4", "quality": 95},
    "grey": {"mode": "L"},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3, "optimize": True},
    "as RGB": {"keep_rgb": True},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("side", [1, 7, 16, 33, 256])
def test_pixels_are_those_of_pil(form: str, side: int) -> None:
    data = jpeg(side, **FORMS[form])
    assert np.array_equal(decoded(turbo.decode_into, data), by_pil(data))


@pytest.mark.parametrize("form", FORMS)
def test_three_bytes_a_pixel_are_the_same_pixels(form: str) -> None:
    data = jpeg(33, **FORMS[form])
    for decode in (turbo.decode_into, turbo._with_pil):
        pixels = np.empty((33, 33, 3), np.uint8)
        decode(data, pixels)
        assert np.array_equal(pixels, by_pil(data))


def test_libjpeg_turbo_is_there_and_all_decoders_agree() -> None:
    by_library = turbo.of_library()
    assert by_library is not None
    for options in FORMS.values():
        data = jpeg(48, **options)
        for decode in (turbo.decode_into, by_library, turbo._with_pil):
            assert np.array_equal(decoded(decode, data), by_pil(data))


@pytest.mark.parametrize("form", FORMS)
def test_without_the_library_the_pixels_are_the_same(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turbo, "library", lambda: None)
    monkeypatch.setattr(turbo, "_other_decoder", turbo._other_decoder.__wrapped__)
    assert turbo._other_decoder() is turbo._with_pil
    data = jpeg(48, **FORMS[form])
    assert np.array_equal(decoded(turbo.decode_into, data), by_pil(data))


def test_real_photographs_have_the_pixels_of_pil(shared_data: Path) -> None:
    photographs = sorted((shared_data / "imagenet-sample" / "train").glob("*/*"))[::40][:24]
    assert photographs
    for path in photographs:
        with Image.open(path) as image:
            buffer = io.BytesIO()
            image.convert("RGB").resize((128, 128)).save(buffer, "JPEG", quality=90)
        data = buffer.getvalue()
        assert np.array_equal(decoded(turbo.decode_into, data), by_pil(data)), path


@pytest.mark.parametrize("data", [b"", b"text", jpeg(32)[:300]])
def test_what_does_not_decode_is_refused(data: bytes) -> None:
    for decode in (turbo.decode_into, turbo.of_library(), turbo._with_pil):
        assert decode is not None
        with pytest.raises(ValueError, match="is not a whole JPEG"):
            decode(data, np.zeros((32, 32, 4), np.uint8))


def test_an_image_of_another_size_stays_inside_the_memory() -> None:
    """The caller has compared the header; even so nothing is written behind the pixels."""
    room = np.full((40, 32, 4), 7, np.uint8)
    for size in (8, 31, 48, 300):
        with contextlib.suppress(ValueError):
            turbo.decode_into(jpeg(size), room[:32])
        assert (room[32:] == 7).all()


@pytest.mark.parametrize("shape", [(8, 8, 2), (8, 32)])
def test_memory_without_three_or_four_bytes_a_pixel_is_refused(
    shape: tuple[int, ...],
) -> None:
    with pytest.raises(ValueError, match="pixels of shape"):
        turbo.decode_into(jpeg(8), np.zeros(shape, np.uint8))


def test_threads_decode_at_the_same_time() -> None:
    images = [jpeg(side) for side in range(200, 232)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda data: decoded(turbo.decode_into, data), images * 4))
    for data, pixels in zip(images * 4, found, strict=True):
        assert np.array_equal(pixels, by_pil(data))
