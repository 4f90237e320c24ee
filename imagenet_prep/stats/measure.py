"""A few crops, as files or in the pages of a beton -> their exact sums; runs in the workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imagenet_prep.dataset.manifest import source_digest
from imagenet_prep.jpeg.header import jpeg_frame
from imagenet_prep.workers.processes import Failed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from imagenet_prep.stats.moments import Moments

_MOST_PX = 4096


class Sample(NamedTuple):
    """An image in a page of a beton: where in the page its bytes are, and whether as JPEG."""

    key: str
    start: int
    size_bytes: int
    is_jpeg: bool


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a beton: where it begins, its SHA-256, and its images."""

    index: int
    start: int
    size_bytes: int
    digest: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class CropGroup:
    """Crops, as paths relative to ``folder``."""

    folder: Path
    crops: tuple[str, ...]
    size_px: int


@dataclass(frozen=True, slots=True)
class PageGroup:
    """Pages of the file ``beton``, whose manifest has the digest of the images."""

    beton: Path
    pages: tuple[Page, ...]
    size_px: int


class BadImageError(Exception):
    """Why some bytes are not a crop; ``key`` names the crop or page where the caller cannot."""

    def __init__(self, reason: str, key: str = "") -> None:
        super().__init__(reason)
        self.key = key


def measure(group: CropGroup | PageGroup) -> tuple[Moments, str] | Failed:
    """One group -> its Moments, their sum in the smallest type that holds it, and the digest of
    its images ("" for those of a beton); or the first image or page that is not as it should be."""
    import numpy as np

    from imagenet_prep.stats.moments import Accumulator

    total = Accumulator(group.size_px)
    pixels = np.empty((group.size_px, group.size_px, 4), np.uint8)
    pairs = []
    images = _crops(group) if isinstance(group, CropGroup) else _samples(group)
    key = ""
    try:
        for key, data, is_jpeg in images:
            (take_jpeg if is_jpeg else take_raw)(data, pixels)
            total.add(pixels)
            if isinstance(group, CropGroup):
                pairs.append((key, hashlib.sha256(data).hexdigest()))
    except BadImageError as error:
        return Failed(error.key or key, str(error))
    moments = total.moments()
    smallest = moments.sum.astype(np.min_scalar_type(255 * moments.count))
    return replace(moments, sum=smallest), source_digest(pairs) if pairs else ""


def _crops(group: CropGroup) -> Iterator[tuple[str, bytes, bool]]:
    for crop in group.crops:
        yield crop, read_file(f"{group.folder}/{crop}", crop), True


def read_file(path: str, key: str) -> bytes:
    """The bytes of a file; BadImageError with ``key`` if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a million of them
            return file.readall()
    except OSError as error:
        raise BadImageError(f"cannot be read ({error.strerror})", key) from None


def _samples(group: PageGroup) -> Iterator[tuple[str, bytes, bool]]:
    for page in group.pages:
        name = f"page {page.index}"
        try:
            with group.beton.open("rb") as file:
                file.seek(page.start)
                data = file.read(page.size_bytes)
        except OSError as error:
            raise BadImageError(f"cannot be read ({error.strerror})", name) from None
        if hashlib.sha256(data).hexdigest() != page.digest:
            raise BadImageError("is not what was written", name)
        for sample in page.samples:
            yield sample.key, data[sample.start :][: sample.size_bytes], sample.is_jpeg


def take_raw(data: bytes, pixels: NDArray[np.uint8]) -> None:
    """S² pixels of three bytes -> ``pixels`` (S, S, 4) uint8; BadImageError for others."""
    import numpy as np

    side = len(pixels)
    if len(data) != 3 * side**2:
        raise BadImageError(f"has {len(data)} bytes, and not those of {side}x{side} pixels")
    # Four bytes from every third on: the fourth, which is ignored, is the next red.
    words = np.ndarray((side**2,), np.uint32, data + b"\0", strides=(3,))
    pixels.reshape(-1).view(np.uint32)[:] = words


def take_jpeg(data: bytes, pixels: NDArray[np.uint8]) -> None:
    """JPEG bytes -> ``pixels`` (S, S, 4) uint8: red, green, blue and one of any value.

    Raises BadImageError for anything that is not a whole, square, 8-bit RGB or grey JPEG
    of S pixels a side.
    """
    from imagenet_prep.jpeg.turbo import decode_into

    side = jpeg_side(data)
    if side != len(pixels):
        size_px = len(pixels)
        raise BadImageError(f"is {side}x{side} where the first crop is {size_px}x{size_px}")
    try:
        decode_into(data, pixels)
    except ValueError as error:
        raise BadImageError(str(error)) from None


def jpeg_side(data: bytes) -> int:
    """JPEG bytes -> the side of the image, by their header; raises what ``take_jpeg`` does."""
    try:
        frame = jpeg_frame(data)
    except ValueError as error:
        raise BadImageError(str(error)) from None
    side = frame.width
    if frame.height != side:
        raise BadImageError(f"is {side}x{frame.height}, and crops are square")
    if not 0 < side <= _MOST_PX:
        raise BadImageError(f"is {side}x{side}, and crops have at most {_MOST_PX} pixels a side")
    if frame.components not in (1, 3):
        kind = "a CMYK image" if frame.components == 4 else "neither grey nor in colour"
        raise BadImageError(f"is {kind}, and crops are RGB")
    return side
