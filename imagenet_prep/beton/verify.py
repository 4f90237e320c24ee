"""A finished beton -> everything that is wrong with it: pages, rows, images, statistics.

What a beton should look like follows from its manifest, so that damage in one place, its own
header included, hides none in another.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.beton.format import (
    METADATA_START,
    MODE_JPEG,
    MODES,
    SAMPLE,
    broken,
    data_start_for,
    sample_faults,
    start_bytes,
)
from imagenet_prep.beton.pages import pixels_of
from imagenet_prep.core.errors import Progress, ToolError, quiet
from imagenet_prep.core.files import file_digest
from imagenet_prep.core.threads import map_in_threads
from imagenet_prep.dataset.beton_tables import TABLE
from imagenet_prep.dataset.manifest import Manifest, load_manifest, pages_digest
from imagenet_prep.dataset.names import stats_beside
from imagenet_prep.dataset.shards import Betons
from imagenet_prep.dataset.statistics import load_stats
from imagenet_prep.jpeg.index import rows_beside
from imagenet_prep.workers import processes as parallel


@dataclass(frozen=True, slots=True)
class Damaged:
    """A sample that is not to be trusted: its file, its place there, its key, and why."""

    file: str
    index: int
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at in betons, and every fault; none means that they are as they were built.

    ``faults`` are of the files, ``damaged`` the samples that they or faults of their own
    concern, in file order.
    """

    samples: int
    pages: int
    decoded: int
    faults: tuple[str, ...]
    damaged: tuple[Damaged, ...]

    @property
    def good(self) -> bool:
        return not (self.faults or self.damaged)


def check_betons(
    betons: Betons, *, decode: bool = False, jobs: int | None = None, progress: Progress = quiet
) -> Report:
    """``check_beton`` of every file of a set; of several, each fault begins with its file."""
    reports = []
    done, total = 0, len(betons.manifest.pages)
    for path, manifest in zip(betons.paths, betons.manifests, strict=True):

        def advance(what: str, pages: int, _: int, before: int = done) -> None:
            progress(what, before + pages, total)

        reports.append(check_beton(path, decode=decode, jobs=jobs, progress=advance))
        done += len(manifest.pages)
    if len(reports) == 1:
        return reports[0]
    faults = [
        f"{path}: {fault}"
        for path, report in zip(betons.paths, reports, strict=True)
        for fault in report.faults
    ]
    if len(set(betons.manifest.keys)) != betons.manifest.samples:
        faults.append(f"{betons}: a sample is in it twice")
    return Report(
        samples=sum(report.samples for report in reports),
        pages=sum(report.pages for report in reports),
        decoded=sum(report.decoded for report in reports),
        faults=tuple(faults),
        damaged=tuple(damaged for report in reports for damaged in report.damaged),
    )


def check_beton(
    path: Path, *, decode: bool = False, jobs: int | None = None, progress: Progress = quiet
) -> Report:
    """Checks a beton against its manifest: every byte, every row and bound, the statistics
    beside it, and with ``decode`` every image.

    Raises ToolError when there is no manifest to check against: it is missing, is not what
    was written, or is that of a file of another size.
    """
    manifest = load_manifest(path)
    faults = [*_manifest_faults(manifest), *_stats_faults(path, manifest)]
    faults += _rows_faults(path, manifest)
    if not _has_shape(manifest):
        faults.append("its manifest describes no beton")
        return Report(manifest.samples, len(manifest.pages), 0, tuple(faults), ())
    samples, table = _read_rows(path, manifest, faults)
    reasons: dict[int, list[str]] = {}
    bad: dict[int, str] = {}
    _check_rows(manifest, samples, table, reasons, faults)
    pages = _pages(path, manifest, samples, table, reasons, decode)
    jobs = parallel.resolve_jobs(jobs)
    done = decoded = 0
    progress("verify", 0, len(manifest.pages))
    with contextlib.closing(map_in_threads(_check_page, pages, jobs=jobs)) as results:
        for found in results:
            if found.fault:
                bad[found.index] = found.fault
            for index, reason in found.undecodable:
                reasons.setdefault(index, []).append(reason)
            decoded += found.decoded
            done += 1
            progress("verify", done, len(manifest.pages))
    for page, where in _samples_on(bad, manifest, samples, set(reasons)).items():
        faults.append(f"page {page} (from byte {page * manifest.page_size_bytes}) {bad[page]}")
        for index in where:
            reasons.setdefault(index, []).append(f"is on page {page}, which {bad[page]}")
    damaged = (
        Damaged(str(path), i, manifest.keys[i], "; ".join(reasons[i])) for i in sorted(reasons)
    )
    return Report(manifest.samples, len(manifest.pages), decoded, tuple(faults), tuple(damaged))


def _has_shape(manifest: Manifest) -> bool:
    """Whether its numbers are those of some beton, so that they can be reckoned with."""
    page, samples = manifest.page_size_bytes, manifest.samples
    table = _table_start(manifest)
    return (
        samples > 0
        and page > 0
        and table % page == 0
        and data_start_for(samples, page) < table
        and -(-manifest.bytes // page) == len(manifest.pages)
    )


def _table_start(manifest: Manifest) -> int:
    return manifest.bytes - manifest.samples * TABLE.itemsize


def _manifest_faults(manifest: Manifest) -> Iterator[str]:
    if pages_digest(manifest.pages) != manifest.digest:
        yield "its manifest has another digest than that of the pages it lists"
    if len(set(manifest.keys)) != manifest.samples:
        yield "its manifest names a sample twice"


def _stats_faults(path: Path, manifest: Manifest) -> Iterator[str]:
    beside = stats_beside(path)
    try:
        if file_digest(beside) != manifest.stats_digest:
            yield f"the statistics beside it, {beside.name}, are not what was written"
            return
        size_px = load_stats(beside).size_px
    except OSError as error:
        yield f"the statistics beside it, {beside.name}, cannot be read ({error.strerror})"
    except ToolError as error:
        yield str(error)
    else:
        if size_px != manifest.size_px:
            yield f"its images have {manifest.size_px} px a side, its statistics {size_px}"


def _rows_faults(path: Path, manifest: Manifest) -> Iterator[str]:
    """Faults of the row index; a beton without one gets one when it is needed."""
    beside = rows_beside(path)
    try:
        if manifest.rows and file_digest(beside) != manifest.rows:
            yield (
                f"the row index beside it, {beside.name}, is not what was written; make it again "
                "with imagenet-prep index"
            )
    except FileNotFoundError:
        return
    except OSError as error:
        yield f"the row index beside it, {beside.name}, cannot be read ({error.strerror})"


def _read_rows(
    path: Path, manifest: Manifest, faults: list[str]
) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """-> the rows of metadata and of the table, from where they are by the manifest."""
    count, table_start = manifest.samples, _table_start(manifest)
    try:
        with path.open("rb") as file:
            start = file.read(METADATA_START)
            samples = np.frombuffer(file.read(count * SAMPLE.itemsize), SAMPLE)
            file.seek(table_start)
            table = np.frombuffer(file.read(count * TABLE.itemsize), TABLE)
    except OSError as error:
        raise broken(path, f"cannot be read ({error.strerror})") from None
    if len(samples) != count or len(table) != count:
        raise broken(path, "became shorter while it was read")
    if start != start_bytes(count, manifest.page_size_bytes, table_start):
        faults.append("its header is not that of the beton that its manifest describes")
    return samples, table


def _check_rows(
    manifest: Manifest,
    samples: NDArray[np.void],
    table: NDArray[np.void],
    reasons: dict[int, list[str]],
    faults: list[str],
) -> None:
    page = manifest.page_size_bytes
    data = (data_start_for(manifest.samples, page), _table_start(manifest))
    label, image = samples["label"], samples["image"]
    wrong = sample_faults(samples, table, data, page)
    wrong["has a label without a class"] = (label < 0) | (label >= len(manifest.classes))
    wrong["has another size than in the manifest"] = (image["width"] != manifest.size_px) | (
        image["height"] != manifest.size_px
    )
    for fault, where in wrong.items():
        for index in np.flatnonzero(where).tolist():
            reasons.setdefault(index, []).append(fault)
    found = {name: int((image["mode"] == mode).sum()) for name, mode in MODES.items()}
    if {name: count for name, count in found.items() if count} != dict(manifest.formats):
        faults.append("it has other numbers of JPEG and raw samples than in its manifest")


@dataclass(frozen=True, slots=True)
class _Page:
    """One work item: a page, and its images to decode: (index, byte in the page, bytes)."""

    index: int
    beton: str
    start: int
    size_bytes: int
    digest: str
    images: tuple[tuple[int, int, int], ...]
    size_px: int


@dataclass(frozen=True, slots=True)
class _Checked:
    """What was found on a page: its fault ("" for none), and (index, reason) of images."""

    index: int
    fault: str
    decoded: int
    undecodable: tuple[tuple[int, str], ...]


def _pages(
    path: Path,
    manifest: Manifest,
    samples: NDArray[np.void],
    table: NDArray[np.void],
    reasons: dict[int, list[str]],
    decode: bool,
) -> Iterator[_Page]:
    size = manifest.page_size_bytes
    sound = np.ones(manifest.samples, np.bool_)
    sound[list(reasons)] = False
    wanted = np.flatnonzero(sound & (samples["image"]["mode"] == MODE_JPEG))
    wanted = wanted[np.argsort(table["ptr"][wanted], kind="stable")]
    ptr = table["ptr"][wanted].astype(np.int64)  # within the file, or they would not be sound
    bounds = np.searchsorted(ptr, np.arange(len(manifest.pages) + 1) * size)
    for index, digest in enumerate(manifest.pages):
        images = wanted[bounds[index] : bounds[index + 1]] if decode else wanted[:0]
        rows = table[images]
        yield _Page(
            index=index,
            beton=str(path),
            start=index * size,
            size_bytes=min(size, manifest.bytes - index * size),
            digest=digest,
            images=tuple(
                zip(
                    images.tolist(),
                    (rows["ptr"].astype(np.int64) - index * size).tolist(),
                    rows["size"].tolist(),
                    strict=True,
                )
            ),
            size_px=manifest.size_px,
        )


def _check_page(page: _Page) -> _Checked:
    """Reads a page, compares its digest, decodes its images; runs in a worker."""
    try:
        with open(page.beton, "rb", buffering=0) as file:  # noqa: PTH123 - workers get text
            data = os.pread(file.fileno(), page.size_bytes, page.start)
    except OSError as error:
        return _Checked(page.index, f"cannot be read ({error.strerror})", 0, ())
    if hashlib.sha256(data).hexdigest() != page.digest:
        return _Checked(page.index, "is not what was written", 0, ())
    undecodable = []
    view = memoryview(data)
    for index, start, size in page.images:
        try:
            pixels_of(view[start : start + size], page.size_px)
        except ValueError as error:
            undecodable.append((index, str(error)))
    return _Checked(page.index, "", len(page.images), tuple(undecodable))


def _samples_on(
    pages: Iterable[int], manifest: Manifest, samples: NDArray[np.void], doubted: Container[int]
) -> dict[int, list[int]]:
    """Pages -> for each, in order, the samples of which it holds the bytes or a row.

    Where the bytes of a sample are is not asked of a row that is itself in doubt.
    """
    count, size = manifest.samples, manifest.page_size_bytes
    ptr = samples["image"]["data_ptr"]
    found = {}
    for page in sorted(pages):
        first, last = page * size, (page + 1) * size
        inside = np.flatnonzero((ptr >= first) & (ptr < last)).tolist()
        held = {index for index in inside if index not in doubted}
        rows = ((METADATA_START, SAMPLE.itemsize), (_table_start(manifest), TABLE.itemsize))
        for start, row in rows:
            low, high = (first - start) // row, -((start - last) // row)
            held.update(range(max(low, 0), max(0, min(high, count))))
        found[page] = sorted(held)
    return found
