"""JPEGs for tests: made-up ones of every kind, a batch of them as arrays, and what views hold."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from imagenet_prep.jpeg.index import Index, index_images

ImageFile.MAXBLOCK = 1 << 22
QUALITIES = (1, 5, 20, 50, 75, 90, 95, 100)


def encoded(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    """(H, W, 3) or (H, W) -> JPEG bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def pillow(data: bytes) -> NDArray[np.uint8]:
    """JPEG bytes -> Pillow's pixels (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def content(rng: np.random.Generator, height: int, width: int, kind: int) -> NDArray[np.uint8]:
    """Noise, slopes, one colour, black and white noise, or waves, by ``kind`` 0 to 4."""
    if kind == 0:
        return rng.integers(0, 256, (height, width, 3), np.uint8)
    y, x = np.mgrid[0:height, 0:width]
    if kind == 1:
        return np.stack([(x * 5 + y) % 256, (y * 7) % 256, (x * 3 + 2 * y) % 256], -1).astype(
            np.uint8
        )
    if kind == 2:
        return np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
    if kind == 3:
        return (rng.integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)
    wave = np.sin(x / 9)[..., None] * np.cos(y / 5)[..., None] * np.array([1, -1, 0.5])
    waves: NDArray[Any] = np.clip(128 + 90 * wave + rng.normal(0, 12, (height, width, 3)), 0, 255)
    return waves.astype(np.uint8)


def made(count: int, seed: int = 1, largest: int = 70, smallest: int = 1) -> list[bytes]:
    """Made-up JPEGs that the decoder accepts: all modes and qualities, standard, optimised and
    16-bit tables, sides from ``smallest`` to ``largest``."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        height, width = (int(v) for v in rng.integers(smallest, largest + 1, 2))
        if number % 10 == 1:
            height, width = (max(smallest, int(v)) for v in rng.integers(1, 9, 2))
        pixels = content(rng, height, width, int(rng.integers(0, 5)))
        options: dict[str, Any] = {"optimize": bool(rng.random() < 0.5)}
        if rng.random() < 0.2:
            tables = rng.integers(1, 121, (2, 64))
            options["qtables"] = [table.tolist() for table in tables]
        else:
            options["quality"] = int(rng.choice(QUALITIES))
        if rng.random() < 0.2:
            pixels = pixels[..., 0]
        else:
            options["subsampling"] = int(rng.choice([0, 2]))
        found.append(encoded(pixels, **options))
    return found


class Host(NamedTuple):
    """Images as the arrays of a batch (see ``jpeg.cuda.Batch``), in the host's memory."""

    indexed: Index
    words: NDArray[np.uint32]
    begins: NDArray[np.int64]
    jobs: NDArray[np.int32]
    positions: NDArray[np.int32]
    predictors: NDArray[np.int16]


def host_batch(
    images: Sequence[bytes], raw: Sequence[tuple[int, int]] | None = None, gap: int = 1
) -> Host:
    """JPEGs (and raw images of the given heights and widths, (0, 0) for JPEGs) one after the
    other, ``gap`` bytes between them, with their index."""
    sizes = np.array([len(image) for image in images], np.int64)
    begins = np.cumsum(sizes + gap) - sizes - gap
    data = np.zeros((int((sizes + gap).sum()) + 7) // 4 * 4, np.uint8)
    for begin, image in zip(begins, images, strict=True):
        data[begin : begin + len(image)] = np.frombuffer(image, np.uint8)
    shapes = None if raw is None else np.array(raw, np.int64)
    index = index_images(data, begins, sizes, shapes)
    jobs = index.jobs(np.arange(len(images)))
    return Host(index, data.view(np.uint32), begins, *jobs)


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.int16]:
    """float32 -> the bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(np.int16)


def expected_view(
    pixels: NDArray[np.uint8],
    window: NDArray[np.int32],
    mean: NDArray[np.float32],
    shift: NDArray[np.float32],
    gain: NDArray[np.float32],
    dtype: str,
    layout: str,
    centre: bool = False,
) -> NDArray[Any]:
    """An image's pixels -> a view that is not resampled, flat, in float32 arithmetic."""
    y, x, height, width, mirror = (int(v) for v in window)
    cut = pixels[y : y + height, x : x + width]
    own = mean
    if mean.shape[:2] != (1, 1):
        top, left = (y, x)
        if centre:
            top, left = (mean.shape[0] - height) // 2, (mean.shape[1] - width) // 2
        own = mean[top : top + height, left : left + width]
        if mirror and centre:
            own = own[:, ::-1]
    view: NDArray[Any] = cut if dtype == "uint8" else (cut - own + shift) * gain
    if mirror:
        view = view[:, ::-1]
    if dtype != "uint8":
        view = view.astype(np.float32)
    if dtype == "float16":
        view = view.astype(np.float16)
    if dtype == "bfloat16":
        view = bfloat16_bits(view)
    if layout == "channels_first":
        view = view.transpose(2, 0, 1)
    if layout == "space_to_depth":
        cells = -(-height // 4)
        whole = np.zeros((cells * 4, cells * 4, 3), view.dtype)
        whole[:height, :width] = view
        view = whole.reshape(cells, 4, cells, 4, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(view).ravel()


def filters(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The triangle filter from ``length`` to ``size`` pixels: source pixels and weights, both
    (size, taps), in the arithmetic of the trainer's CPU kernel; zeros for what is not used."""
    scale = length / size
    support = max(scale, 1.0)
    centre = (np.arange(size) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), length) - first
    taps = first[:, None] + np.arange(count.max())
    used = np.arange(count.max()) < count[:, None]
    weights = np.maximum(1 - np.abs(taps + 0.5 - centre[:, None]) / support, 0) * used
    total = np.zeros(size)
    for j in range(weights.shape[1]):
        total += weights[:, j]
    return np.minimum(taps, length - 1), (weights / total[:, None]).astype(np.float32)


def expected_resampled(
    pixels: NDArray[np.uint8],
    window: NDArray[np.int32],
    size: int,
    mean: NDArray[np.float32],
    shift: NDArray[np.float32],
    gain: NDArray[np.float32],
) -> NDArray[np.float32]:
    """An image's pixels -> the resampled view (S, S, 3): float32, rows first, in order."""
    y, x, height, width, mirror = (int(v) for v in window)
    cut = pixels[y : y + height, x : x + width].astype(np.float32)
    cut = cut - (mean if mean.shape[:2] == (1, 1) else mean[y : y + height, x : x + width])
    rows, row_weights = filters(height, size)
    columns, column_weights = filters(width, size)
    sums = np.zeros((size, width, 3), np.float32)
    for i in range(rows.shape[1]):
        sums += row_weights[:, i, None, None] * cut[rows[:, i]]
    view = np.broadcast_to(shift, (size, size, 3)).astype(np.float32)
    for j in range(columns.shape[1]):
        view = view + column_weights[None, :, j, None] * sums[:, columns[:, j]]
    return (view[:, ::-1] if mirror else view) * gain
