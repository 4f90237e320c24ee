"""Fixtures for all tests: the real images where they are, small made ones where not."""

from __future__ import annotations

import io
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]

# A shell without job control starts what runs in the background with Ctrl-C ignored, nohup with
# SIGHUP ignored, and every command that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# The same examples in every run, on a machine that may be slow. For other examples:
# pytest --hypothesis-profile default
settings.register_profile(
    "any machine", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


NEEDED_GB = 1.0


def pytest_sessionstart() -> None:
    """One message instead of hundreds of failures where there is no room for the tests."""
    folder = tempfile.gettempdir()
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < NEEDED_GB:
        pytest.exit(
            f"{folder}: has {free_gb:.1f} GB free and the tests need {NEEDED_GB:.0f}; make room, "
            "or set TMPDIR to another folder",
            returncode=1,
        )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the checkout; skips the test where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real images (../shared/data) are not on this machine")
    return folder


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """The folder of published figures beside the checkout; skips where it is absent."""
    folder = REPOSITORY.parent / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip("the published figures (../shared/reference) are not on this machine")
    return folder


@pytest.fixture(scope="session")
def make_waves() -> Callable[[Path], Path]:
    """A function that fills a folder with 240 images of two classes in train/ and val/, each a
    few milliseconds of work, and returns it."""

    def make(raw: Path) -> Path:
        y, x = np.mgrid[0:300, 0:400]
        for index in range(240):
            folder = raw / ("train" if index % 6 else "val") / ("ant" if index % 2 else "bee")
            folder.mkdir(parents=True, exist_ok=True)
            wave = np.sin(x / (5 + index % 7) + y / (9 + index % 11) + index)
            planes = [127 + 100 * wave, 127 - 80 * wave, np.full(x.shape, index)]
            image = Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))
            image.save(folder / f"{index}.jpg", quality=90)
        return raw

    return make


def smooth_pixels(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """A colourful smooth image (height, width, 3): survives JPEG well, unlike noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = []
    for _ in range(3):
        a, b, c = rng.uniform(-1, 1, 3)
        wave = np.sin(a * x / 9 + b * y / 9 + 6 * c)
        planes.append(128 + 60 * wave + 60 * (a * x / width + b * y / height))
    pixels: NDArray[np.uint8] = np.clip(np.stack(planes, axis=-1), 0, 255).astype(np.uint8)
    return pixels


def jpeg_bytes(pixels: NDArray[np.uint8], quality: int = 92) -> bytes:
    """(H, W, 3) or (H, W) uint8 -> JPEG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture
def make_raw(tmp_path: Path) -> Callable[..., Path]:
    """A factory of small raw collections: ``make_raw(train=4, val=2)`` -> folder.

    Class folders ``ant`` and ``bee`` with that many JPEG images each, in splits.
    """

    def make(train: int = 4, val: int = 2, name: str = "raw") -> Path:
        root = tmp_path / name
        for split, count in (("train", train), ("val", val)):
            for label, class_name in enumerate(("ant", "bee")):
                folder = root / split / class_name
                folder.mkdir(parents=True)
                for index in range(count):
                    seed = 1000 * label + 100 * (split == "val") + index
                    pixels = smooth_pixels(70 + 9 * index, 110 - 7 * index, seed)
                    pixels[..., label] //= 2
                    (folder / f"{class_name}{index}.jpg").write_bytes(jpeg_bytes(pixels))
        return root

    return make
