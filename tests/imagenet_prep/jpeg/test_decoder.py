"""The njit decoder and the functions of the device kernels give Pillow's pixels to the bit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagenet_prep.jpeg import core, cpu
from tests.kit.jpeg_kernels import Kernels
from tests.kit.jpegs import content, encoded, host_batch, made, pillow

MOST_BLOCKS = 60_000


def decoded(data: bytes, depth: int = 3) -> tuple[int, np.ndarray]:
    """-> (status, pixels of the njit decoder); the size is Pillow's."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    out = np.full((height, width, depth), 7, np.uint8)
    return cpu.decoder().decode(np.frombuffer(data, np.uint8), out), out


def assert_pillows(images: Sequence[bytes], *, kernels: bool = True) -> int:
    """Both decoders on what they accept -> how many images that was."""
    good = []
    for number, data in enumerate(images):
        status, pixels = decoded(data)
        if status == core.OK:
            good.append(data)
            assert np.array_equal(pixels, pillow(data)), number
    if good and kernels:
        host = host_batch(good)
        batch = Kernels(host)
        assert not batch.status.any()
        for number, data in enumerate(good):
            want = pillow(data)
            size = min(want.shape[:2])
            for y, x in ((0, 0), (want.shape[0] - size, want.shape[1] - size)):
                window = np.array([y, x, size, size, 0], np.int32)
                status, pixels = batch.pixels(number, window, size)
                assert status == core.OK
                assert np.array_equal(pixels, want[y : y + size, x : x + size]), number
    return len(good)


def test_made_images_equal_pillow() -> None:
    images = made(300)
    assert assert_pillows(images) == len(images)


def test_larger_sides_equal_pillow() -> None:
    images = made(24, seed=2, largest=300, smallest=120)
    assert assert_pillows(images) == len(images)


def test_every_small_size_equals_pillow() -> None:
    rng = np.random.default_rng(0)
    sizes = [(h, w) for h in (1, 2, 3, 7, 8, 9, 16, 17) for w in range(1, 20)]
    images = [
        encoded(content(rng, h, w, 0), quality=90, subsampling=mode)
        for h, w in sizes
        for mode in (0, 2)
    ]
    assert assert_pillows(images) == len(images)


def test_four_bytes_a_pixel_have_the_same_colours() -> None:
    images = made(60, seed=5) + made(12, seed=6, largest=200, smallest=90)
    for data in images:
        status, pixels = decoded(data, depth=4)
        assert status == core.OK
        assert np.array_equal(pixels[..., :3], pillow(data))


def test_real_images_equal_pillow(shared_data: Path) -> None:
    photographs = sorted((shared_data / "imagenet-sample").rglob("*.JPEG"))
    assert len(photographs) >= 300
    some = [path.read_bytes() for path in photographs]
    assert assert_pillows(some, kernels=False) >= 270
    small = [data for data in some if len(data) < 60_000][:60]
    assert assert_pillows(small) >= 40
    others = sorted((shared_data / "imagenette").rglob("*.JPEG"))[::12]
    others += sorted((shared_data / "tiny-imagenet-200").rglob("*.JPEG"))[::20]
    others += sorted((shared_data / "cats-dogs").rglob("*.jpg"))[::10]
    assert assert_pillows([path.read_bytes() for path in others]) >= 200


def test_odd_files_are_pillows_or_refused(shared_data: Path) -> None:
    accepted = 0
    for path in sorted((shared_data / "odd").iterdir()):
        data = path.read_bytes()
        try:
            want = pillow(data)
        except Exception:  # noqa: BLE001 - Pillow has many ways to refuse a file
            want = np.zeros((1, 1, 3), np.uint8)
            out = want.copy()
            status = cpu.decoder().decode(np.frombuffer(data, np.uint8), out)
            assert status != core.OK, path.name
            continue
        out = np.zeros_like(want)
        if cpu.decoder().decode(np.frombuffer(data, np.uint8), out) == core.OK:
            accepted += 1
            assert np.array_equal(out, want), path.name
    assert accepted > 10


REFUSED: dict[str, tuple[int, dict[str, Any]]] = {
    "4:2:2": (core.SAMPLING, {"subsampling": 1}),
    "progressive": (core.NOT_BASELINE, {"progressive": True}),
    "restart markers": (core.RESTART, {"restart_marker_rows": 1}),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_are_refused(kind: str) -> None:
    status, options = REFUSED[kind]
    pixels = content(np.random.default_rng(2), 64, 48, 4)
    assert decoded(encoded(pixels, quality=90, **options))[0] == status


def test_damaged_files_are_refused() -> None:
    good = encoded(content(np.random.default_rng(2), 64, 48, 4), quality=90)
    out = np.zeros((64, 48, 3), np.uint8)

    def status(data: bytes) -> int:
        return cpu.decoder().decode(np.frombuffer(data, np.uint8), out)

    assert status(good) == core.OK
    assert status(b"") == core.NOT_JPEG
    assert status(b"GIF89a") == core.NOT_JPEG
    assert status(good[:300]) == core.TRUNCATED
    assert status(good[:-200]) == core.TRUNCATED
    assert status(good[:-300] + good[-100:]) in (core.CORRUPT, core.TRUNCATED)
    assert status(good[:-2] + b"\0" * 40 + b"\xff\xd9") == core.CORRUPT
    assert cpu.decoder().decode(np.frombuffer(good, np.uint8), out[:32]) == core.TOO_LARGE
    cmyk = io.BytesIO()
    Image.new("CMYK", (48, 64)).save(cmyk, "JPEG")
    assert status(cmyk.getvalue()) == core.SAMPLING


def test_coefficients_that_overflow_are_refused() -> None:
    """Quantisation of 255 for all and the largest values: between the passes libjpeg-turbo's
    16 bits are too few, and what it makes of them depends on the processor."""
    noise = (np.random.default_rng(3).integers(0, 2, (32, 32, 3)) * 255).astype(np.uint8)
    fine = encoded(noise, qtables=[[1] * 64] * 2, subsampling=0)
    assert decoded(fine)[0] == core.OK
    coarse = fine.replace(
        b"\xff\xdb\x00\x43\x00" + b"\x01" * 64, b"\xff\xdb\x00\x43\x00" + b"\xff" * 64
    )
    assert coarse != fine
    assert decoded(coarse)[0] == core.OVERFLOW
