"""Crops, in a folder or in a beton -> ``stats.npz``.

The arithmetic is in ``moments``, the work of a worker in ``measure``; this layer knows which
images there are. This process holds one set of sums, however many images there are.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imagenet_prep.beton.format import MODE_JPEG, Index, read_index
from imagenet_prep.core.errors import Progress, ToolError, UsageError, quiet
from imagenet_prep.core.threads import map_in_threads
from imagenet_prep.dataset.beton_tables import REBUILD
from imagenet_prep.dataset.journal import Crops
from imagenet_prep.dataset.manifest import Manifest, add_digests, load_manifest, source_digest
from imagenet_prep.dataset.statistics import Stats, save_stats
from imagenet_prep.stats.measure import (
    BadImageError,
    CropGroup,
    Page,
    PageGroup,
    Sample,
    jpeg_side,
    measure,
    read_file,
)
from imagenet_prep.stats.moments import Moments, add_pixels, empty, finish, merge
from imagenet_prep.workers.processes import Failed, Jobs, Local, Workers, workers_of

# Images of one work item: so many that adding its sums to the others costs nothing.
_GROUP_IMAGES = 128
_GROUPS_PER_JOB = 4
# Threads hold the interpreter's lock for less than a tenth of the time: so many do not wait.
_MOST_THREADS = 8

_Group = CropGroup | PageGroup
_Found = tuple[Moments, str] | Failed


@dataclass(frozen=True, slots=True)
class _Work:
    """The groups to measure; ``keys`` of all images, and the digest of the images where it is
    known before they are read. ``fault`` makes the error for one of them."""

    groups: Iterable[_Group]
    count: int
    size_px: int
    keys: Iterable[str]
    source: str | None
    fault: Callable[[str, str], ToolError]


def run_stats(
    src: Path,
    out: Path,
    *,
    split: str | None = None,
    jobs: Jobs = None,
    progress: Progress = quiet,
) -> Stats:
    """The crops of one split of a folder (default: train), or a beton's -> their Stats, also
    written to ``out``.

    The same crops give the same bytes for any number of jobs, from the folder and from a beton
    made of it. Raises ToolError, and leaves ``out`` as it was, when there are no crops
    (``crops.*``), or one is missing, damaged, not square or of another size than the first
    (``stats.bad_crop``), or the beton is damaged (``beton.damaged``).
    """
    workers = workers_of(jobs)
    is_beton = src.suffix == ".beton" and not src.is_dir()
    work = (_beton_work if is_beton else _crop_work)(src, split, workers.count)
    total, sources = empty(work.size_px), []
    progress("stats", 0, work.count)
    with contextlib.closing(_measured(workers, work.groups)) as results:
        for found in results:
            if isinstance(found, Failed):
                raise work.fault(found.key, found.reason)
            total = merge(total, found[0])
            sources.append(found[1])
            progress("stats", total.count, work.count)
    source = add_digests(*sources) if work.source is None else work.source
    result = finish(total, source, coverage(work.keys, work.count))
    save_stats(out, result)
    return result


def _measured(workers: Workers, groups: Iterable[_Group]) -> Generator[_Found, None, None]:
    """``measure`` of the groups; by few workers of this machine in threads, because a process
    starts with a second of CPU time, in which it would measure thousands of images."""
    if not isinstance(workers, Local) or workers.count > _MOST_THREADS:
        return workers.map(measure, groups)
    add_pixels()  # one for all threads, compiled or read from the disk once
    return map_in_threads(measure, groups, jobs=workers.count)


def coverage(keys: Iterable[str], count: int) -> tuple[str, ...]:
    """The paths of all images, in any order -> ``Stats.coverage``: how many, and their digest."""
    digest = source_digest((key, "") for key in keys)
    return (f"0-{count}/{count} {digest}",)


def _group_images(count: int, jobs: int) -> int:
    return max(1, min(_GROUP_IMAGES, math.ceil(count / (_GROUPS_PER_JOB * jobs))))


def _crop_work(src: Path, split: str | None, jobs: int) -> _Work:
    def fault(crop: str, reason: str) -> ToolError:
        message = f"{src / crop}: {reason}; delete it and run imagenet-prep crop again"
        return ToolError("stats.bad_crop", message)

    split, crops = split or "train", Crops(src)
    keys = (path for path, _ in crops.rows(split))
    first = next(crops.rows(split, there=False))[0]
    try:
        size_px = jpeg_side(read_file(f"{src}/{first}", first))
    except BadImageError as error:
        raise fault(first, str(error)) from None
    count = crops.counts[split]
    step = _group_images(count, jobs)
    paths = (path for path, _ in crops.rows(split, there=False))
    groups = (
        CropGroup(src, group, size_px)
        for group in iter(lambda: tuple(itertools.islice(paths, step)), ())
    )
    return _Work(groups, count, size_px, keys, None, fault)


def _beton_work(src: Path, split: str | None, jobs: int) -> _Work:
    def fault(key: str, reason: str) -> ToolError:
        return ToolError("beton.damaged", f"{src}: {key} {reason}; {REBUILD}")

    manifest, index = load_manifest(src), read_index(src)
    if split not in (None, manifest.split):
        message = f"{src}: holds the split {manifest.split}, not {split}; leave out --split"
        raise UsageError("stats.split", message)
    if (len(index.samples), index.page_size) != (manifest.samples, manifest.page_size_bytes):
        raise fault("the beton", "does not belong to its manifest")
    groups = (
        PageGroup(src, tuple(group), manifest.size_px)
        for group in _grouped(_pages(manifest, index, fault), _group_images(manifest.samples, jobs))
    )
    whole = (manifest.samples, manifest.size_px, manifest.keys, manifest.source)
    return _Work(groups, *whole, fault)


def _pages(
    manifest: Manifest, index: Index, fault: Callable[[str, str], ToolError]
) -> Iterator[Page]:
    """The pages that hold images, in file order."""
    page_size, table = index.page_size, index.table
    columns = (table["ptr"], table["size"], index.samples["image"]["mode"])
    places = zip(manifest.keys, *(column.tolist() for column in columns), strict=True)
    for number, found in itertools.groupby(places, key=lambda place: place[1] // page_size):
        if number >= len(manifest.pages):
            raise fault("the beton", "has more pages than its manifest")
        start = number * page_size
        samples = tuple(
            Sample(key, ptr - start, size, mode == MODE_JPEG) for key, ptr, size, mode in found
        )
        yield Page(number, start, page_size, manifest.pages[number], samples)


def _grouped(pages: Iterable[Page], images: int) -> Iterator[list[Page]]:
    """Pages -> neighbours together, until they hold so many images."""
    group: list[Page] = []
    for page in pages:
        group.append(page)
        if sum(len(one.samples) for one in group) >= images:
            yield group
            group = []
    if group:
        yield group
