"""Which crops a beton holds, in which order and in which form: functions of their paths.

Everything here is decided by SHA-256 of a crop's path, not by a random generator: one
image more or less changes nothing for the others, and every machine decides alike.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from imagenet_prep.beton.format import MAX_PAGE_SIZE_BYTES, PAGE_SIZE_BYTES
from imagenet_prep.core.errors import UsageError

Crop = tuple[str, int]
"""The path of a crop, relative to its folder, and its label."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How crops become a beton; its values are the settings in the manifest.

    format: "jpeg", the crops' bytes as they are; "raw", their pixels; "mixed:P", the share P
    of them as JPEG and the rest raw, which is what FFCV calls ``compress_probability``.
    shuffle: the seed of the order, None for that of their paths. subset: a number of
    samples (int) or a share of them (float), None for all. page_size: bytes, None for a
    fitting one. shards: the number of files, or shard_size: the most bytes that each may have;
    None for one file. Raises UsageError for values that mean nothing.
    """

    format: str = "jpeg"
    shuffle: int | None = 0
    subset: int | float | None = None
    page_size: int | None = None
    shards: int | None = None
    shard_size: int | None = None

    def __post_init__(self) -> None:
        share = self.jpeg_share
        if not 0 <= share <= 1:
            raise UsageError(
                "build.format",
                f"invalid format {self.format!r}: the JPEG share is a number in [0, 1]",
            )
        subset = self.subset
        if subset is not None and not (subset >= 1 if isinstance(subset, int) else 0 < subset <= 1):
            raise UsageError(
                "build.subset",
                f"invalid subset {subset}: expected a count or a fraction in (0, 1]",
            )
        size = self.page_size
        if size is not None and (
            size & (size - 1) or not PAGE_SIZE_BYTES <= size <= MAX_PAGE_SIZE_BYTES
        ):
            raise UsageError(
                "build.page_size",
                f"invalid page size {size}: expected a power of two from {PAGE_SIZE_BYTES} (2 MiB) "
                f"to {MAX_PAGE_SIZE_BYTES} (1 GiB)",
            )
        if self.shards is not None and self.shard_size is not None:
            raise UsageError(
                "build.shards", "--shards and --shard-size exclude each other; give one of them"
            )
        if self.shards is not None and self.shards < 1:
            raise UsageError("build.shards", f"invalid shards {self.shards}: expected 1 or more")

    @property
    def sharded(self) -> bool:
        """Whether the files are called shards, however many there are."""
        return self.shards is not None or self.shard_size is not None

    @property
    def jpeg_share(self) -> float:
        """The share of the samples that are stored as JPEG."""
        kind, colon, share = self.format.partition(":")
        if self.format in ("jpeg", "raw"):
            return float(self.format == "jpeg")
        try:
            if (kind, colon) == ("mixed", ":"):
                number = float(share)
                return number if math.isfinite(number) else -1
        except ValueError:
            pass
        raise UsageError(
            "build.format",
            f"invalid format {self.format!r}: expected jpeg, raw, or mixed:P with P the JPEG share",
        )


def chosen(crops: Sequence[Crop], subset: int | float | None) -> Sequence[Crop]:
    """The crops of a subset: those with the smallest hashes, so the smaller ones are parts
    of the larger.

    A share is rounded to whole crops, at least one; a number above that of the crops is all.
    """
    if subset is None:
        return crops
    count = subset_count(len(crops), subset)
    return sorted(crops, key=lambda crop: _hash("subset", crop[0]))[:count]


def subset_count(count: int, subset: int | float | None) -> int:
    """How many of ``count`` crops a subset has."""
    if subset is None:
        return count
    return min(count, subset if isinstance(subset, int) else max(1, round(subset * count)))


def file_order(crops: Sequence[Crop], seed: int | None) -> list[Crop]:
    """Crops in any order -> in file order: by hash of ``seed`` and path, or by path for None.

    Shuffled, a sequential reader sees mixed classes.
    """
    if seed is None:
        return sorted(crops)
    return sorted(crops, key=lambda crop: _hash(str(seed), crop[0]))


def is_jpeg(path: str, share: float) -> bool:
    """Whether a crop is one of the share that is stored as JPEG."""
    if share in (0, 1):
        return bool(share)
    return int.from_bytes(_hash("format", path)[:8]) < share * 2.0**64


def _hash(purpose: str, path: str) -> bytes:
    """SHA-256 of ``purpose/path``: each purpose decides independently of the others."""
    return hashlib.sha256(f"{purpose}/{path}".encode()).digest()
