"""The pages of a planned beton: read from their crops, written, read back and compared.

A page is the work of one thread. Pages do not overlap, so threads share nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.beton.format import MODE_JPEG, Layout, broken, head_bytes, table_bytes
from imagenet_prep.beton.options import Crop
from imagenet_prep.core.errors import Progress, ToolError
from imagenet_prep.core.threads import map_in_threads
from imagenet_prep.dataset.manifest import add_digests, source_digest
from imagenet_prep.jpeg import turbo
from imagenet_prep.jpeg.header import jpeg_frame
from imagenet_prep.jpeg.index import Index, index_images, join
from imagenet_prep.workers import processes as parallel

_READ_BACK_BYTES = 1 << 18  # of this much the processor's cache holds both copies


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """One file as planned: its crops in file order, how each is stored ((n,) MODE_JPEG or
    MODE_RAW), and where they lie."""

    crops: Sequence[Crop]
    modes: NDArray[np.uint8]
    layout: Layout


@dataclass(frozen=True, slots=True)
class Page:
    """One work item: the samples of one data page, which begins at ``start`` in ``beton``.

    ``file`` counts the files that are filled, ``index`` the pages of this one from its start.
    ``crops`` are paths relative to ``folder``, ``sizes`` their bytes in the page, ``modes``
    how they are stored.
    """

    file: int
    index: int
    beton: str
    start: int
    size_bytes: int
    folder: str
    crops: tuple[str, ...]
    sizes: tuple[int, ...]
    modes: tuple[int, ...]
    size_px: int


@dataclass(frozen=True, slots=True)
class Filled:
    """A page as written: its SHA-256, the source digest of its crops, and their row index."""

    file: int
    index: int
    digest: str
    source: str
    rows: Index


def fill(
    files: Sequence[tuple[Path, Part]],
    cropped: Path,
    *,
    size_px: int,
    jobs: parallel.Jobs,
    progress: Progress,
) -> list[tuple[str, list[str], Index]]:
    """Writes whole files -> for each (source digest of its crops, SHA-256 of each of its pages,
    row index).

    Raises ToolError for the first crop that is not what was planned.
    """
    pages = [_write_ends(path, part, size_px) for path, part in files]
    sources = [source_digest([])] * len(files)
    rows: list[dict[int, Index]] = [{} for _ in files]
    work = (
        page
        for number, (path, part) in enumerate(files)
        for page in _data_pages(number, path, part, str(cropped), size_px)
    )
    done, total = 0, sum(len(part.crops) for _, part in files)
    progress("build", 0, total)
    with contextlib.closing(_filled(work, jobs)) as results:
        for page in results:
            if isinstance(page, parallel.Failed):
                raise bad_crop(cropped / page.key, page.reason)
            pages[page.file][page.index] = page.digest
            sources[page.file] = add_digests(sources[page.file], page.source)
            rows[page.file][page.index] = page.rows
            done += len(page.rows.images)
            progress("build", done, total)
    joined = [join([parts[number] for number in sorted(parts)]) for parts in rows]
    return list(zip(sources, pages, joined, strict=True))


def _filled(
    pages: Iterator[Page], jobs: parallel.Jobs
) -> Generator[Filled | parallel.Failed, None, None]:
    """By threads of this process, or by the workers of a cluster."""
    if jobs is None or isinstance(jobs, int):
        turbo.library()  # opened now: threads may have too many files open
        return map_in_threads(fill_page, pages, jobs=parallel.resolve_jobs(jobs))
    return jobs.map(fill_page, pages)


def _write_ends(path: Path, part: Part, size_px: int) -> list[str]:
    """Writes head and table of a file -> the digests of all its pages, "" for those of data."""
    layout = part.layout
    head = head_bytes(layout, [label for _, label in part.crops], part.modes, size_px)
    table = table_bytes(layout)
    for data, start in ((head, 0), (table, layout.table_start)):
        write_and_check(str(path), data, start)
    first, last = (_digests(data, layout.page_size) for data in (head, table))
    return [*first, *[""] * (len(layout.firsts) - 1), *last]


def _data_pages(file: int, path: Path, part: Part, folder: str, size_px: int) -> Iterator[Page]:
    """The work items of one file."""
    layout = part.layout
    head = layout.data_start // layout.page_size
    for index in range(len(layout.firsts) - 1):
        where = slice(int(layout.firsts[index]), int(layout.firsts[index + 1]))
        yield Page(
            file=file,
            index=head + index,
            beton=str(path),
            start=layout.data_start + index * layout.page_size,
            size_bytes=layout.page_size,
            folder=folder,
            crops=tuple(crop for crop, _ in part.crops[where]),
            sizes=tuple(layout.sizes[where].tolist()),
            modes=tuple(part.modes[where].tolist()),
            size_px=size_px,
        )


def bad_crop(path: Path, reason: str) -> ToolError:
    """The error for a crop that cannot go into a beton."""
    return ToolError(
        "build.bad_crop", f"{path}: {reason}; delete it and run imagenet-prep crop again"
    )


def _digests(data: bytes, page_size: int) -> list[str]:
    view = memoryview(data)
    return [
        hashlib.sha256(view[start : start + page_size]).hexdigest()
        for start in range(0, len(data), page_size)
    ]


def fill_page(page: Page) -> Filled | parallel.Failed:
    """Reads the samples of a page and writes it in one go; runs in a worker."""
    buffer = _buffer(page.size_bytes)
    view = memoryview(buffer)
    pairs = []
    at = 0
    for crop, size, mode in zip(page.crops, page.sizes, page.modes, strict=True):
        room = view[at : at + size]
        try:
            if mode == MODE_JPEG:
                data: memoryview | bytes = room
                _read_into(f"{page.folder}/{crop}", room)
            else:
                with open(f"{page.folder}/{crop}", "rb", buffering=0) as file:  # noqa: PTH123
                    data = file.readall()
            if mode == MODE_JPEG:
                _check_frame(data, page.size_px)
            else:
                shape = (page.size_px, page.size_px, 3)
                _decode(data, np.frombuffer(room, np.uint8).reshape(shape))
        except OSError as error:
            return parallel.Failed(crop, f"cannot be read ({error.strerror})")
        except ValueError as error:
            return parallel.Failed(crop, str(error))
        pairs.append((crop, hashlib.sha256(data).hexdigest()))
        at += size
    view[at:] = bytes(len(view) - at)
    write_and_check(page.beton, buffer, page.start)
    digest = hashlib.sha256(buffer).hexdigest()
    return Filled(page.file, page.index, digest, source_digest(pairs), _rows(page, buffer))


def _rows(page: Page, buffer: bytearray) -> Index:
    """The row index of a page's samples."""
    sizes = np.array(page.sizes, np.int64)
    raw = np.where(np.array(page.modes) == MODE_JPEG, 0, page.size_px)
    return index_images(
        np.frombuffer(buffer, np.uint8), np.cumsum(sizes) - sizes, sizes, np.stack([raw, raw], 1)
    )


# A page's memory, used again: getting it afresh from the system costs as much as filling it.
_kept = threading.local()


def _buffer(size: int) -> bytearray:
    """Memory of this thread, with whatever is in it."""
    buffer: bytearray | None = getattr(_kept, "buffer", None)
    if buffer is None or len(buffer) != size:
        buffer = _kept.buffer = bytearray(size)
    return buffer


def _read_into(path: str, room: memoryview) -> None:
    """Fills ``room`` with a file; ValueError if it has not just as many bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # One byte more than the file should have shows that it has grown.
        if os.readv(descriptor, [room, bytearray(1)]) != len(room):
            found = os.fstat(descriptor).st_size
            raise ValueError(f"changed from {len(room)} to {found} bytes meanwhile")
    finally:
        os.close(descriptor)


def _check_frame(data: memoryview | bytes, size_px: int) -> None:
    """ValueError with the reason unless these bytes are a JPEG that a beton can hold."""
    width, height, components = jpeg_frame(data)
    if components not in (1, 3):
        kind = "CMYK" if components == 4 else f"{components}-channel"
        raise ValueError(f"is a {kind} image, and crops are RGB")
    if (width, height) != (size_px, size_px):
        raise ValueError(f"is {width}x{height} where the statistics are of {size_px}x{size_px}")


def pixels_of(data: memoryview | bytes, size_px: int) -> NDArray[np.uint8]:
    """The JPEG bytes of a crop -> its pixels, (S, S, 3) uint8 RGB with S = ``size_px``.

    The same pixels as PIL's, to the bit. Raises ValueError with the reason when they are no
    such image, or when a part of it would have to be guessed.
    """
    pixels = np.empty((size_px, size_px, 3), np.uint8)
    _decode(data, pixels)
    return pixels


def _decode(data: memoryview | bytes, pixels: NDArray[np.uint8]) -> None:
    """``pixels_of`` into memory that is there already."""
    _check_frame(data, len(pixels))
    turbo.decode_into(bytes(data), pixels)


def write_and_check(path: str, data: bytes | bytearray, start: int) -> None:
    """Writes ``data`` at the byte ``start`` of a file, and reads it back.

    Raises ToolError when the file then holds something else.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        at = 0
        while at < len(data):
            at += os.pwrite(descriptor, memoryview(data)[at:], start + at)
        at = 0
        while at < len(data):
            found = os.pread(descriptor, min(len(data) - at, _READ_BACK_BYTES), start + at)
            if not found or not data.startswith(found, at):
                raise broken(Path(path), f"does not hold what was written at byte {start}")
            at += len(found)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(descriptor)
