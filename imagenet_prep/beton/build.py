"""Crops -> one FFCV ``.beton``, or shards of one: planned, filled by ranges, read back, renamed.

The layout is a pure function of the sizes of the crops (``beton_format``), so workers write
disjoint pages of one reserved file and the bytes do not depend on their number. The
manifest comes last and means "complete". Page k of a manifest is bytes [k P, (k + 1) P)
of the file, with P the page size; header and table included, the last one short. Shards are
whole betons with manifests of their own, which all come after the last of the files.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_prep import __version__
from imagenet_prep.beton.format import MODE_JPEG, MODES, broken, read_index
from imagenet_prep.beton.layout import plan_parts
from imagenet_prep.beton.options import Crop, Packing, chosen, file_order
from imagenet_prep.beton.pages import Part, fill, pixels_of
from imagenet_prep.core.errors import Progress, ToolError, quiet
from imagenet_prep.core.files import file_digest, publish
from imagenet_prep.dataset.beton_tables import FFCV_FORMAT
from imagenet_prep.dataset.classes import Classes
from imagenet_prep.dataset.manifest import Manifest, add_digests, pages_digest, save_manifest
from imagenet_prep.dataset.names import manifest_beside, stats_beside
from imagenet_prep.dataset.shards import check_way, require_files, shard_paths, together
from imagenet_prep.dataset.statistics import Stats, write_stats
from imagenet_prep.jpeg.header import jpeg_frame
from imagenet_prep.jpeg.index import Index, rows_beside, save_index
from imagenet_prep.workers import processes as parallel

Filling = tuple[str, list[str], Index]
"""What ``pages.fill`` gives back of a file."""


def build_beton(
    cropped: Path,
    split: str,
    out: Path,
    *,
    stats: Stats,
    stats_digest: str,
    classes: Classes,
    crops: Sequence[Crop],
    format: str = "jpeg",
    shuffle: int | None = 0,
    subset: int | float | None = None,
    page_size: int | None = None,
    shards: int | None = None,
    shard_size: int | None = None,
    crop_settings: str | None = None,
    jobs: parallel.Jobs = None,
    progress: Progress = quiet,
) -> Manifest:
    """Crops (path relative to ``cropped``, label) of a split -> ``out``, statistics and manifest.

    The same crops give the same bytes for any number of jobs. ``format`` to ``shard_size`` are
    those of ``Packing``. Shards are named after ``out``, and the manifest of the whole set is
    returned. ``stats_digest`` is the SHA-256 of the file that ``stats`` came from,
    ``crop_settings`` the digest of the crop's settings, if known.
    Raises UsageError for invalid options and for betons of another build in the way, and
    ToolError, with all files as they were, for a crop that is missing, changed, no JPEG or of
    another size, for statistics of other images than a whole ``train`` split, and for a full disk.
    """
    packing = Packing(format, shuffle, subset, page_size, shards, shard_size)
    ordered = file_order(chosen(crops, subset), shuffle)
    parts = plan_parts(cropped, ordered, packing, classes=len(classes), size_px=stats.size_px)
    _require_size(cropped, ordered, stats.size_px)
    paths = _paths(out, parts, packing.sharded)
    with contextlib.ExitStack() as publishing:
        temporaries = [publishing.enter_context(publish(path)) for path in paths]
        _copy_stats(stats, stats_digest, stats_beside(out), publishing)
        for temporary, part, path in zip(temporaries, parts, paths, strict=True):
            _reserve(temporary, part.layout.bytes, path)
        filled = fill(
            list(zip(temporaries, parts, strict=True)), cropped,
            size_px=stats.size_px, jobs=jobs, progress=progress,
        )  # fmt: skip
        if split == "train" and len(ordered) == len(crops):
            _require_source(out, cropped / split, filled, stats)
        for temporary in temporaries:
            read_index(temporary)
        rows = [_save_rows(rows_beside(path), pages, index, publishing)
                for path, (_, pages, index) in zip(paths, filled, strict=True)]  # fmt: skip
        manifests = _manifests(
            parts, filled, rows, packing, split=split, size_px=stats.size_px, classes=classes,
            stats_digest=stats_digest, crop_settings=crop_settings,
        )  # fmt: skip
        # From here until the new manifests are there, none means "complete".
        for path in paths:
            manifest_beside(path).unlink(missing_ok=True)
    for path, manifest in zip(paths, manifests, strict=True):
        save_manifest(path, manifest)
    return together(manifests) if packing.sharded else manifests[0]


def _paths(out: Path, parts: Sequence[Part], sharded: bool) -> tuple[Path, ...]:
    """The files that are to be written; what stands in their way is an error."""
    count = len(parts)
    check_way(out, count if sharded else None)
    require_files(count, str(out))
    _require_space(out, sum(part.layout.bytes for part in parts))
    return shard_paths(out, count) if sharded else (out,)


def _require_source(out: Path, folder: Path, filled: Sequence[Filling], stats: Stats) -> None:
    if add_digests(*(source for source, _, _ in filled)) != stats.source:
        raise ToolError(
            "build.other_stats",
            f"{out}: the statistics belong to other images than {folder}; make them again with "
            "imagenet-prep stats",
        )


def _save_rows(
    path: Path, pages: Sequence[str], index: Index, publishing: contextlib.ExitStack
) -> str:
    """Writes the row index of a file with these pages -> its SHA-256."""
    temporary = publishing.enter_context(publish(path))
    save_index(temporary, index, bytes.fromhex(pages_digest(pages)))
    return file_digest(temporary)


def _manifests(
    parts: Sequence[Part],
    filled: Sequence[Filling],
    rows: Sequence[str],
    packing: Packing,
    *,
    split: str,
    size_px: int,
    classes: Classes,
    stats_digest: str,
    crop_settings: str | None,
) -> list[Manifest]:
    """What is known of each file -> its manifest, with its place in the set."""
    digests = [pages_digest(pages) for _, pages, _ in filled]
    return [
        Manifest(
            samples=len(part.crops),
            split=split,
            size_px=size_px,
            classes=classes.names,
            readable=dict(classes.readable),
            formats=_formats(part.modes),
            page_size_bytes=part.layout.page_size,
            bytes=part.layout.bytes,
            digest=digests[number],
            pages=tuple(pages),
            stats_digest=stats_digest,
            source=source,
            rows=rows[number],
            settings={"crop": crop_settings, **_settings(packing)},
            versions={"imagenet_prep": __version__, "ffcv_format": str(FFCV_FORMAT)},
            keys=tuple(path for path, _ in part.crops),
            shard=number,
            shards=len(parts),
            set=pages_digest(digests) if packing.sharded else "",
        )
        for number, (part, (source, pages, _)) in enumerate(zip(parts, filled, strict=True))
    ]


def _copy_stats(stats: Stats, digest: str, copy: Path, publishing: contextlib.ExitStack) -> None:
    temporary = publishing.enter_context(publish(copy))
    write_stats(temporary, stats)
    if file_digest(temporary) != digest:
        raise ToolError(
            "build.foreign_stats",
            f"{copy}: the given statistics were written by another program or version; make them "
            "again with imagenet-prep stats",
        )


def _require_size(cropped: Path, ordered: Sequence[Crop], size_px: int) -> None:
    """ToolError where not one crop but the statistics are of another size."""
    found = set()
    for path, _ in (ordered[0], ordered[-1]):
        try:
            frame = jpeg_frame((cropped / path).read_bytes())
        except (OSError, ValueError):
            return  # an error when the crop is read
        found.add((frame.width, frame.height))
    if len(found) == 1 and (size_px, size_px) not in found:
        width, height = found.pop()
        raise ToolError(
            "build.stats_size",
            f"{cropped}: its crops are {width}x{height} and the statistics of {size_px}x{size_px}; "
            "make the statistics again with imagenet-prep stats",
        )


def _settings(packing: Packing) -> dict[str, Any]:
    """What was asked for; of shards only where it was."""
    given = asdict(packing).items()
    return {name: x for name, x in given if x is not None or not name.startswith("shard")}


def _formats(modes: NDArray[np.uint8]) -> dict[str, int]:
    counts = {name: int((modes == mode).sum()) for name, mode in MODES.items()}
    return {name: count for name, count in counts.items() if count}


def _require_space(out: Path, needed: int) -> None:
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _no_space(out, needed, free)


def _no_space(out: Path, needed: int, free: int) -> ToolError:
    return ToolError(
        "build.disk_full",
        f"{out}: needs {math.ceil(needed / 1e6):,} MB where {free // 10**6:,} MB are free; "
        "free some space or choose another disk",
    )


def _reserve(path: Path, size: int, out: Path) -> None:
    """Makes the file as large as it will be, so that a full disk shows now and not later."""
    with path.open("rb+") as file:
        file.truncate(size)
        if not hasattr(os, "posix_fallocate"):  # macOS
            return
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                free = shutil.disk_usage(path.parent).free
                raise _no_space(out, size, free) from None
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise


def read_samples(path: Path, count: int) -> list[tuple[NDArray[np.uint8], int]]:
    """The first ``count`` samples (fewer if there are fewer), decoded: (S, S, 3) uint8 and label.

    Raises ToolError when the beton is damaged or one of them does not decode.
    """
    index = read_index(path)
    rows = zip(index.table[:count], index.samples[:count], strict=True)
    decoded: list[tuple[NDArray[np.uint8], int]] = []
    with path.open("rb") as file:
        for number, (place, sample) in enumerate(rows):
            image = sample["image"]
            file.seek(int(place["ptr"]))
            data = file.read(int(place["size"]))
            try:
                side, is_jpeg = int(image["width"]), image["mode"] == MODE_JPEG
                pixels = pixels_of(data, side) if is_jpeg else np.frombuffer(data, np.uint8)
                decoded.append((pixels.reshape(side, side, 3), int(sample["label"])))
            except ValueError:
                raise broken(path, f"sample {number} does not decode") from None
    return decoded
