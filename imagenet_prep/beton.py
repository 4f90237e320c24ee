"""Crops -> one FFCV ``.beton``: planned, filled by ranges, verified, then renamed.

The layout is a pure function of the sizes of the crops (``beton_format``), so workers write
disjoint pages of one reserved file and the bytes do not depend on their number. The
manifest comes last and means "complete". Page k of a manifest is bytes [k P, (k + 1) P)
of the file, with P the page size; header and table included, the last one short.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagenet_prep import __version__, artifacts, parallel
from imagenet_prep.artifacts import Classes, Manifest, Progress, Stats, ToolError, quiet
from imagenet_prep.beton_format import (
    FFCV_FORMAT,
    MAX_PAGE_SIZE_BYTES,
    REMEDY,
    Layout,
    broken,
    head_bytes,
    page_size_for,
    plan,
    read_index,
    table_bytes,
)

SHUFFLE_SEED = 0


def file_order(crops: Sequence[tuple[str, int]], seed: int = SHUFFLE_SEED) -> list[tuple[str, int]]:
    """(crop path, label) in any order -> in file order: by SHA-256 of ``seed/path``.

    A sequential reader sees mixed classes, and a picture more or less moves no other.
    """
    return sorted(crops, key=lambda crop: hashlib.sha256(f"{seed}/{crop[0]}".encode()).digest())


def build_beton(
    cropped: Path,
    split: str,
    out: Path,
    *,
    stats: Stats,
    stats_digest: str,
    classes: Classes,
    crops: Sequence[tuple[str, int]],
    crop_settings: str | None = None,
    jobs: int | None = None,
    progress: Progress = quiet,
) -> Manifest:
    """Crops (path relative to ``cropped``, label) of one split -> ``out``, statistics and manifest.

    The JPEG bytes are copied as they are; the same crops give the same three files for any
    number of jobs. ``stats_digest`` is the SHA-256 of the file that ``stats`` came from,
    ``crop_settings`` the digest of the crop's settings where it is known. Raises ToolError,
    with ``out`` and its manifest as they were, when a crop is missing, changed meanwhile, not
    a JPEG or not of the statistics' size, when the disk is too small, or when the statistics
    are of other pictures than a ``train`` split's.
    """
    ordered = file_order(crops)
    layout = _plan_files(cropped, ordered, len(classes))
    _require_space(out, layout.bytes)
    copy = artifacts.stats_beside(out)
    with artifacts.publish(out) as temporary, artifacts.publish(copy) as temporary_copy:
        artifacts.save_stats(temporary_copy, stats)
        if artifacts.file_digest(temporary_copy) != stats_digest:
            raise ToolError(
                f"{copy}: would differ from the statistics that were given, which another program "
                "or version wrote; make them again with imagenet-prep stats"
            )
        _reserve(temporary, layout.bytes, out)
        digests, pages = _fill(temporary, cropped, ordered, layout, stats.size_px, jobs, progress)
        source = _source(ordered, digests)
        if split == "train" and source != stats.source:
            raise ToolError(
                f"{out}: the statistics were made from other pictures than {cropped / split}; "
                "make them again with imagenet-prep stats"
            )
        manifest = Manifest(
            samples=len(ordered),
            split=split,
            size_px=stats.size_px,
            classes=classes.names,
            readable=dict(classes.readable),
            formats={"jpeg": len(ordered)},
            page_size_bytes=layout.page_size,
            bytes=layout.bytes,
            digest=_check_pages(temporary, layout.page_size, pages, out, progress),
            pages=tuple(pages),
            stats_digest=stats_digest,
            source=source,
            settings=_settings(layout, crop_settings),
            versions={"imagenet_prep": __version__, "ffcv_format": str(FFCV_FORMAT)},
            keys=tuple(path for path, _ in ordered),
        )
        # From here until the new manifest is there, no manifest says "complete".
        artifacts.manifest_beside(out).unlink(missing_ok=True)
    artifacts.save_manifest(out, manifest)
    return manifest


def _source(ordered: Sequence[tuple[str, int]], digests: Sequence[str]) -> str:
    pairs = zip(ordered, digests, strict=True)
    return artifacts.source_digest((path, digest) for (path, _), digest in pairs)


def _settings(layout: Layout, crop_settings: str | None) -> dict[str, str | int | None]:
    """What the bytes depend on besides the crops; neither clock nor paths."""
    return {
        "crop": crop_settings,
        "page_size_bytes": layout.page_size,
        "shuffle_seed": SHUFFLE_SEED,
    }


def _plan_files(cropped: Path, ordered: Sequence[tuple[str, int]], classes: int) -> Layout:
    if not ordered:
        raise ToolError(f"{cropped}: has no crops to build from; run imagenet-prep crop first")
    sizes = np.empty(len(ordered), np.uint64)
    for index, (crop, label) in enumerate(ordered):
        path = cropped / crop
        if not 0 <= label < classes:
            raise ToolError(
                f"{path}: has label {label} where there are {classes} classes; "
                "run imagenet-prep crop again"
            )
        try:
            sizes[index] = path.stat().st_size
        except OSError as error:
            raise _bad_crop(path, f"cannot be read ({error.strerror})") from None
        if not 0 < sizes[index] < MAX_PAGE_SIZE_BYTES:
            raise _bad_crop(path, f"has {sizes[index]} bytes")
    return plan(sizes, page_size_for(int(sizes.max())))


def _bad_crop(path: Path, reason: str) -> ToolError:
    return ToolError(f"{path}: {reason}; delete it and run imagenet-prep crop again")


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


@dataclass(frozen=True, slots=True)
class _Page:
    """One work item: the samples of one data page, which begins at ``start`` in ``beton``."""

    index: int
    beton: Path
    start: int
    size_bytes: int
    folder: Path
    crops: tuple[str, ...]
    sizes: tuple[int, ...]
    size_px: int


@dataclass(frozen=True, slots=True)
class _Filled:
    """A page as written: its SHA-256 and that of each of its samples."""

    index: int
    digest: str
    samples: tuple[str, ...]


def _fill(
    temporary: Path,
    cropped: Path,
    ordered: Sequence[tuple[str, int]],
    layout: Layout,
    size_px: int,
    jobs: int | None,
    progress: Progress,
) -> tuple[list[str], list[str]]:
    """Writes the whole file -> (SHA-256 of each sample, SHA-256 of each page of the file)."""
    head = head_bytes(layout, [label for _, label in ordered], size_px)
    table = table_bytes(layout)
    _write_at(temporary, head, 0)
    _write_at(temporary, table, layout.table_start)

    def pages() -> Iterator[_Page]:
        for index in range(len(layout.firsts) - 1):
            first, last = int(layout.firsts[index]), int(layout.firsts[index + 1])
            yield _Page(
                index=index,
                beton=temporary,
                start=layout.data_start + index * layout.page_size,
                size_bytes=layout.page_size,
                folder=cropped,
                crops=tuple(path for path, _ in ordered[first:last]),
                sizes=tuple(int(size) for size in layout.sizes[first:last]),
                size_px=size_px,
            )

    filled: list[_Filled | None] = [None] * (len(layout.firsts) - 1)
    done = 0
    progress("build", 0, len(ordered))
    jobs = parallel.resolve_jobs(jobs)
    results = parallel.map_unordered(_fill_page, pages(), jobs=jobs, chunk=1)
    with contextlib.closing(results):
        for page in results:
            if isinstance(page, parallel.Failed):
                raise _bad_crop(cropped / page.key, page.reason)
            filled[page.index] = page
            done += len(page.samples)
            progress("build", done, len(ordered))
    data = [page for page in filled if page is not None]
    samples = [digest for page in data for digest in page.samples]
    digests = [
        *_digests(head, layout.page_size),
        *(page.digest for page in data),
        *_digests(table, layout.page_size),
    ]
    return samples, digests


def _digests(data: bytes, page_size: int) -> list[str]:
    return [
        hashlib.sha256(data[start : start + page_size]).hexdigest()
        for start in range(0, len(data), page_size)
    ]


def _fill_page(page: _Page) -> _Filled | parallel.Failed:
    """Reads the samples of a page and writes it in one go; runs in a worker."""
    buffer = bytearray(page.size_bytes)
    digests = []
    at = 0
    for crop, size in zip(page.crops, page.sizes, strict=True):
        try:
            data = (page.folder / crop).read_bytes()
        except OSError as error:
            return parallel.Failed(crop, f"cannot be read ({error.strerror})")
        if len(data) != size:
            return parallel.Failed(crop, f"changed from {size} to {len(data)} bytes meanwhile")
        fault = _crop_fault(data, page.size_px)
        if fault:
            return parallel.Failed(crop, fault)
        buffer[at : at + size] = data
        at += size
        digests.append(hashlib.sha256(data).hexdigest())
    _write_at(page.beton, buffer, page.start)
    return _Filled(page.index, hashlib.sha256(buffer).hexdigest(), tuple(digests))


def _crop_fault(data: bytes, size_px: int) -> str | None:
    """Why the header of these bytes is not that of a crop that FFCV can decode; None if it is."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            (width, height), mode = image.size, image.mode
    except Image.DecompressionBombError:
        return "claims to be enormous"
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        return f"is not a JPEG ({type(error).__name__})"
    if mode not in ("RGB", "L"):
        return f"is a {mode} picture, and crops are RGB"
    if (width, height) != (size_px, size_px):
        return f"is {width}x{height} where the statistics are of {size_px}x{size_px}"
    return None


def _write_at(path: Path, data: bytes | bytearray, start: int) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, start)
            view, start = view[written:], start + written
    finally:
        os.close(descriptor)


def _check_pages(
    path: Path, page_size: int, pages: Sequence[str], name: Path, progress: Progress
) -> str:
    """Reads the whole file, compares each page's SHA-256 -> that of the file."""
    whole = hashlib.sha256()
    progress("verify", 0, len(pages))
    with path.open("rb") as file:
        for index, expected in enumerate(pages):
            data = file.read(page_size)
            if hashlib.sha256(data).hexdigest() != expected:
                raise ToolError(
                    f"{name}: page {index} (from byte {index * page_size}) is not what was "
                    f"written; {REMEDY}"
                )
            whole.update(data)
            progress("verify", index + 1, len(pages))
        if file.read(1):
            raise ToolError(f"{name}: goes on after its last page; {REMEDY}")
    return whole.hexdigest()


def verify_beton(path: Path, manifest: Manifest, *, progress: Progress = quiet) -> None:
    """Checks a beton against its manifest: structure, bounds, labels and every byte.

    Raises ToolError with the first fault; reads the whole file.
    """
    index = read_index(path)
    image = index.samples[0]["image"]
    stated = {
        "samples": (len(index.samples), manifest.samples),
        "bytes a page": (index.page_size, manifest.page_size_bytes),
        "pixels a side": (int(image["width"]), manifest.size_px),
        "bytes": (path.stat().st_size, manifest.bytes),
        "pages": (-(-path.stat().st_size // index.page_size), len(manifest.pages)),
    }
    for what, (found, expected) in stated.items():
        if found != expected:
            raise broken(path, f"has {found} {what} where its manifest says {expected}")
    labels = index.samples["label"]
    wrong = (labels < 0) | (labels >= len(manifest.classes))
    if wrong.any():
        raise broken(path, f"sample {int(wrong.argmax())} has a label without a class")
    digest = _check_pages(path, index.page_size, manifest.pages, path, progress)
    if digest != manifest.digest:
        raise broken(path, "has another digest than its manifest says")


def read_samples(path: Path, count: int) -> list[tuple[NDArray[np.uint8], int]]:
    """The first ``count`` samples (fewer if there are fewer), decoded: (S, S, 3) uint8 and label.

    Raises ToolError when the beton is damaged or one of them does not decode.
    """
    from PIL import Image

    index = read_index(path)
    rows = zip(index.table[:count], index.samples[:count], strict=True)
    decoded = []
    with path.open("rb") as file:
        for number, (place, sample) in enumerate(rows):
            file.seek(int(place["ptr"]))
            data = file.read(int(place["size"]))
            try:
                with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                    pixels = np.asarray(image.convert("RGB"))
            except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
                raise broken(path, f"sample {number} does not decode") from None
            decoded.append((pixels, int(sample["label"])))
    return decoded
