"""Crops -> one FFCV ``.beton``: planned, filled by ranges, read back, then renamed.

The layout is a pure function of the sizes of the crops (``beton_format``), so workers write
disjoint pages of one reserved file and the bytes do not depend on their number. The
manifest comes last and means "complete". Page k of a manifest is bytes [k P, (k + 1) P)
of the file, with P the page size; header and table included, the last one short.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_prep import __version__, artifacts, parallel
from imagenet_prep.artifacts import (
    Classes,
    Manifest,
    Progress,
    Stats,
    ToolError,
    UsageError,
    quiet,
)
from imagenet_prep.beton_format import (
    FFCV_FORMAT,
    MAX_PAGE_SIZE_BYTES,
    MODE_JPEG,
    MODE_RAW,
    MODES,
    Layout,
    broken,
    page_size_for,
    plan,
    read_index,
)
from imagenet_prep.beton_pages import bad_crop, fill, pixels_of
from imagenet_prep.jpeg import jpeg_frame
from imagenet_prep.packing import Crop, Packing, chosen, file_order, is_jpeg


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
    crop_settings: str | None = None,
    jobs: int | None = None,
    progress: Progress = quiet,
) -> Manifest:
    """Crops (path relative to ``cropped``, label) of one split -> ``out``, statistics and manifest.

    The same crops give the same three files for any number of jobs. ``format``, ``shuffle``,
    ``subset`` and ``page_size`` are as in ``packing.Packing``: JPEG bytes are copied as they
    are, raw pixels decoded as for the statistics. ``stats_digest`` is the SHA-256 of the file
    that ``stats`` came from, ``crop_settings`` the digest of the crop's settings where it is
    known. Raises UsageError for options that mean nothing, and ToolError, with ``out`` and
    its manifest as they were, when a crop is missing, changed meanwhile, not a JPEG or not of
    the statistics' size, when the disk is too small, or when the statistics are of other
    pictures than a ``train`` split's (of which a subset says nothing).
    """
    packing = Packing(format, shuffle, subset, page_size)
    ordered = file_order(chosen(crops, subset), shuffle)
    share = packing.jpeg_share
    modes = np.array([MODE_RAW - is_jpeg(path, share) for path, _ in ordered], np.uint8)
    layout = _plan_files(cropped, ordered, modes, len(classes), stats.size_px, page_size)
    _require_size(cropped, ordered, stats.size_px)
    _require_space(out, layout.bytes)
    copy = artifacts.stats_beside(out)
    with artifacts.publish(out) as temporary, artifacts.publish(copy) as temporary_copy:
        _copy_stats(stats, stats_digest, temporary_copy, copy)
        _reserve(temporary, layout.bytes, out)
        source, pages = fill(
            temporary, cropped, ordered, modes, layout,
            size_px=stats.size_px, jobs=parallel.resolve_jobs(jobs), progress=progress,
        )  # fmt: skip
        if split == "train" and len(ordered) == len(crops) and source != stats.source:
            raise ToolError(
                f"{out}: the statistics were made from other pictures than {cropped / split}; "
                "make them again with imagenet-prep stats"
            )
        read_index(temporary)
        manifest = Manifest(
            samples=len(ordered),
            split=split,
            size_px=stats.size_px,
            classes=classes.names,
            readable=dict(classes.readable),
            formats=_formats(modes),
            page_size_bytes=layout.page_size,
            bytes=layout.bytes,
            digest=artifacts.pages_digest(pages),
            pages=tuple(pages),
            stats_digest=stats_digest,
            source=source,
            settings={"crop": crop_settings, **_settings(packing)},
            versions=_versions(modes),
            keys=tuple(path for path, _ in ordered),
        )
        # From here until the new manifest is there, no manifest says "complete".
        artifacts.manifest_beside(out).unlink(missing_ok=True)
    artifacts.save_manifest(out, manifest)
    return manifest


def _copy_stats(stats: Stats, digest: str, temporary: Path, copy: Path) -> None:
    artifacts.save_stats(temporary, stats)
    if artifacts.file_digest(temporary) != digest:
        raise ToolError(
            f"{copy}: would differ from the statistics that were given, which another program "
            "or version wrote; make them again with imagenet-prep stats"
        )


def _require_size(cropped: Path, ordered: Sequence[Crop], size_px: int) -> None:
    """ToolError where not one crop but the statistics are of another size."""
    found = set()
    for path, _ in (ordered[0], ordered[-1]):
        try:
            frame = jpeg_frame((cropped / path).read_bytes())
        except (OSError, ValueError):
            return  # that is said when it is read for good
        found.add((frame.width, frame.height))
    if len(found) == 1 and (size_px, size_px) not in found:
        width, height = found.pop()
        raise ToolError(
            f"{cropped}: its crops are {width}x{height} and the statistics of {size_px}x{size_px}; "
            "make these again with imagenet-prep stats"
        )


def _settings(packing: Packing) -> dict[str, Any]:
    return {
        "format": packing.format,
        "page_size": packing.page_size,
        "shuffle": packing.shuffle,
        "subset": packing.subset,
    }


def _formats(modes: NDArray[np.uint8]) -> dict[str, int]:
    counts = {name: int((modes == mode).sum()) for name, mode in MODES.items()}
    return {name: count for name, count in counts.items() if count}


def _versions(modes: NDArray[np.uint8]) -> dict[str, str]:
    """What made the bytes; the decoder too, where pixels are of its making."""
    found = {"imagenet_prep": __version__, "ffcv_format": str(FFCV_FORMAT)}
    if (modes == MODE_RAW).any():
        import cv2

        found["opencv"] = cv2.__version__
    return found


def _plan_files(
    cropped: Path,
    ordered: Sequence[Crop],
    modes: NDArray[np.uint8],
    classes: int,
    size_px: int,
    page_size: int | None,
) -> Layout:
    if not ordered:
        raise ToolError(f"{cropped}: has no crops to build from; run imagenet-prep crop first")
    found = []
    folder = f"{cropped}/"
    for (crop, label), mode in zip(ordered, modes.tolist(), strict=True):
        if not 0 <= label < classes:
            raise ToolError(
                f"{cropped / crop}: has label {label} where there are {classes} classes; "
                "run imagenet-prep crop again"
            )
        size = 3 * size_px**2
        if mode == MODE_JPEG:
            try:
                size = os.stat(folder + crop).st_size  # noqa: PTH116 - a million of them
            except OSError as error:
                raise bad_crop(cropped / crop, f"cannot be read ({error.strerror})") from None
            if not 0 < size < MAX_PAGE_SIZE_BYTES:
                raise bad_crop(cropped / crop, f"has {size} bytes")
        found.append(size)
    sizes = np.array(found, np.uint64)
    if page_size is None:
        return plan(sizes, page_size_for(sizes))
    if sizes.max() > page_size:
        raise UsageError(
            f"--page-size: a page of {page_size} bytes does not hold the largest sample, which "
            f"has {sizes.max()}; choose a larger one"
        )
    return plan(sizes, page_size)


def _require_space(out: Path, needed: int) -> None:
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _no_space(out, needed, free)


def _no_space(out: Path, needed: int, free: int) -> ToolError:
    return ToolError(
        f"{out}: needs {needed / 1e9:.2f} GB where {free / 1e9:.2f} GB are free; "
        "free some space or choose another disk"
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
