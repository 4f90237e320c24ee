"""Crops, in a folder or in a beton -> ``stats.npz``; and several such files -> one.

The arithmetic is in ``stats``, what the workers do in ``stats_read``; this layer knows which
pictures there are. The parent holds one set of sums, however many pictures there are.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.beton.format import MODE_JPEG, REMEDY, Index, read_index
from imagenet_prep.core.errors import Progress, ToolError, UsageError, quiet
from imagenet_prep.dataset.journal import Crops
from imagenet_prep.dataset.manifest import Manifest, add_digests, load_manifest
from imagenet_prep.dataset.statistics import Stats, load_stats, save_stats
from imagenet_prep.stats import coverage
from imagenet_prep.stats import moments as stats
from imagenet_prep.stats.measure import (
    BadPictureError,
    CropGroup,
    Page,
    PageGroup,
    Sample,
    jpeg_side,
    measure,
    read_file,
    take_jpeg,
    take_raw,
)
from imagenet_prep.workers import processes as parallel

_REMEDY = "delete it and run imagenet-prep crop again"
# Pictures of one work item: so many that adding its sums to the others costs nothing.
_GROUP_PICTURES = 128
_GROUPS_PER_JOB = 4


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be measured: work items, and what their sum is called.

    ``source`` is the digest of the pictures where it is known before they are read, and
    ``fault`` makes the sentence that names one of them.
    """

    groups: Iterable[CropGroup | PageGroup]
    count: int
    size_px: int
    covered: coverage.Coverage
    source: str | None
    fault: Callable[[str, str], ToolError]


def run_stats(
    src: Path,
    out: Path,
    *,
    split: str | None = None,
    part: tuple[int, int] | None = None,
    jobs: parallel.Jobs = None,
    progress: Progress = quiet,
) -> Stats:
    """The crops of one split of a folder, or a beton's -> their Stats, also written to ``out``.

    ``part`` (K, N) takes the K-th of N parts of them, in the order of their paths. The same
    crops give the same bytes for any number of jobs, from the folder and from a beton made
    of it. Without ``split``, ``train`` of a folder. Raises ToolError, and leaves ``out`` as it
    was, when there are no crops, or one is missing, not a JPEG, damaged, not square or of
    another size than the first, or a page of the beton is not what was written.
    """
    workers = parallel.workers_of(jobs)
    is_beton = src.suffix == ".beton" and not src.is_dir()
    work = (_beton_work if is_beton else _crop_work)(src, split, part, workers.count)
    total = stats.empty(work.size_px)
    sources = []
    progress("stats", 0, work.count)
    results = workers.map_unordered(measure, work.groups, chunk=1)
    with contextlib.closing(results):
        for found in results:
            if isinstance(found, parallel.Failed):
                raise work.fault(found.key, found.reason)
            moments = stats.Moments(found.sum.astype(np.uint64), found.products, found.count)
            total = stats.merge(total, moments)
            sources.append(found.source)
            progress("stats", total.count, work.count)
    source = add_digests(*sources) if work.source is None else work.source
    result = stats.finish(total, source, work.covered)
    save_stats(out, result)
    return result


def _covered(
    keys: Iterable[str], total: int, part: tuple[int, int] | None
) -> tuple[range, coverage.Coverage]:
    """``total`` sorted paths -> the range of them that the part is, and its coverage."""
    digest = coverage.list_digest(keys)
    try:
        first, last = coverage.part_of(total, *(part or (1, 1)))
    except ValueError as error:
        raise UsageError(f"--part: {error}; choose another part") from None
    return range(first, last), coverage.covering(first, last, total, digest)


def _group_pictures(count: int, jobs: int) -> int:
    return max(1, min(_GROUP_PICTURES, math.ceil(count / (_GROUPS_PER_JOB * jobs))))


def _crop_work(src: Path, split: str | None, part: tuple[int, int] | None, jobs: int) -> _Work:
    def fault(crop: str, reason: str) -> ToolError:
        return ToolError(f"{src / crop}: {reason}; {_REMEDY}")

    split, crops = split or "train", Crops(src)
    total = crops.counts.get(split, 0)
    chosen, covered = _covered((path for path, _ in crops.rows(split)), total, part)
    paths = (path for path, _ in crops.rows(split, there=False))
    first = next(crops.rows(split, there=False))[0]
    try:
        size_px = jpeg_side(read_file(f"{src}/{first}", first))
    except BadPictureError as error:
        raise fault(first, str(error)) from None
    step = _group_pictures(len(chosen), jobs)
    wanted = itertools.islice(paths, chosen.start, chosen.stop)
    groups = (
        CropGroup(src, group, size_px)
        for group in iter(lambda: tuple(itertools.islice(wanted, step)), ())
    )
    return _Work(groups, len(chosen), size_px, covered, None, fault)


def _beton_work(src: Path, split: str | None, part: tuple[int, int] | None, jobs: int) -> _Work:
    def fault(key: str, reason: str) -> ToolError:
        return ToolError(f"{src}: {key} {reason}; {REMEDY}")

    manifest = load_manifest(src)
    index = read_index(src)
    if split not in (None, manifest.split):
        raise UsageError(f"{src}: holds the split {manifest.split}, not {split}; leave --split out")
    if (len(index.samples), index.page_size) != (manifest.samples, manifest.page_size_bytes):
        raise ToolError(f"{src}: is not the beton that its manifest is of; {REMEDY}")
    order = sorted(range(manifest.samples), key=manifest.keys.__getitem__)
    chosen, covered = _covered(manifest.keys, manifest.samples, part)
    wanted = np.zeros(manifest.samples, bool)
    wanted[order[chosen.start : chosen.stop]] = True
    whole = len(chosen) == manifest.samples
    if not whole and (index.samples["image"]["mode"] != MODE_JPEG).any():
        raise UsageError(
            f"{src}: holds raw pixels, whose crops are not known one by one; leave --part out, "
            "or take the folder of crops"
        )
    pages = _pages(src, manifest, index, wanted)
    groups = (
        PageGroup(src, tuple(group), manifest.size_px, hashed=not whole)
        for group in _grouped(pages, _group_pictures(len(chosen), jobs))
    )
    source = manifest.source if whole else None
    return _Work(groups, len(chosen), manifest.size_px, covered, source, fault)


def _pages(
    src: Path, manifest: Manifest, index: Index, wanted: NDArray[np.bool_]
) -> Iterator[Page]:
    """The pages that hold a wanted picture, in file order."""
    page_size = index.page_size
    table, modes = index.table[wanted], index.samples["image"]["mode"][wanted]
    keys = list(itertools.compress(manifest.keys, wanted))
    places = zip(keys, table["ptr"].tolist(), table["size"].tolist(), modes.tolist(), strict=True)
    for number, found in itertools.groupby(places, key=lambda place: place[1] // page_size):
        if number >= len(manifest.pages):
            raise ToolError(f"{src}: has more pages than its manifest says; {REMEDY}")
        start = number * page_size
        samples = tuple(
            Sample(key, ptr - start, size, mode == MODE_JPEG) for key, ptr, size, mode in found
        )
        yield Page(number, start, page_size, manifest.pages[number], samples)


def _grouped(pages: Iterable[Page], pictures: int) -> Iterator[list[Page]]:
    """Pages -> neighbours together, until they hold so many pictures."""
    group: list[Page] = []
    for page in pages:
        group.append(page)
        if sum(len(one.samples) for one in group) >= pictures:
            yield group
            group = []
    if group:
        yield group


def first_picture(beton: Path) -> NDArray[np.uint8]:
    """The first picture of a beton, (S, S, 3) uint8; ToolError if it is damaged."""
    index = read_index(beton)
    place, image = index.table[0], index.samples[0]["image"]
    size_px = int(image["width"])
    with beton.open("rb") as file:
        file.seek(int(place["ptr"]))
        data = file.read(int(place["size"]))
    pixels = np.empty((size_px, size_px, 4), np.uint8)
    try:
        (take_jpeg if image["mode"] == MODE_JPEG else take_raw)(data, pixels)
    except BadPictureError as error:
        raise ToolError(f"{beton}: its first picture {error}; {REMEDY}") from None
    return pixels[..., :3]


def merge_files(files: Sequence[Path], out: Path) -> Stats:
    """Statistics files of different pictures -> those of all of them, also written to ``out``.

    The parts of one run give the file of the whole run, in any order and grouping. Raises
    ToolError when one is missing, damaged, of another size, or has pictures of another's; that
    is not seen of a file that is the sum of several whole sets (see ``coverage``).
    """
    if not files:
        raise UsageError("merge: needs statistics files; name them")
    parts = [(path, load_stats(path)) for path in files]
    total = stats.empty(parts[0][1].size_px)
    sources: list[str] = []
    coverages: list[coverage.Coverage] = []
    for path, found in parts:
        try:
            if found.source in sources:
                raise ValueError("its pictures would count twice")
            sources.append(found.source)
            add_digests(*sources)
            coverages.append(found.coverage)
            coverage.merge(coverages)
            moments = stats.Moments(found.sum, found.products, found.count)
            total = stats.merge(total, moments)
        except ValueError as error:
            raise ToolError(
                f"{path}: does not go together with the files before it ({error}); leave it out"
            ) from None
    result = stats.finish(total, add_digests(*sources), coverage.merge(coverages))
    save_stats(out, result)
    return result
