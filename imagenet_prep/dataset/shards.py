"""A data set in one beton file or in several: names -> its files, in order, as one set.

``train.beton`` is a set of one file; ``train-00000-of-00004.beton`` and its likes, named by a
pattern such as ``train-*.beton``, are one of four. Sample i of a set is that of the same
build without shards: the first shard has the first samples, and so on.
"""

from __future__ import annotations

import bisect
import glob
import itertools
import resource
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.core.files import file_digest
from imagenet_prep.dataset.manifest import Manifest, add_digests, load_manifest, pages_digest
from imagenet_prep.dataset.names import SHARD_NUMBER, stats_beside
from imagenet_prep.dataset.statistics import Stats, load_stats

MOST_SHARDS = 99_999
_REMEDY = "build them again with imagenet-prep build"
# What the process needs besides the shards: libraries, threads, sockets, its own files.
_OTHER_FILES = 64


@dataclass(frozen=True, eq=False)
class Betons:
    """A whole data set: its files in the order of their samples, and their manifests.

    ``name`` is its name in messages; ``manifest`` is that of all files together: sums, all
    keys and pages one after the other, and the digest of the set.
    """

    name: str
    paths: tuple[Path, ...]
    manifests: tuple[Manifest, ...]
    manifest: Manifest

    def __str__(self) -> str:
        return self.name

    @property
    def stats(self) -> Path:
        """The statistics beside it, one file for all shards."""
        return stats_beside(self.paths[0])

    def place(self, index: int) -> tuple[int, int]:
        """Sample ``index`` of the set -> (number of its file, its place in that file)."""
        ends = list(itertools.accumulate(manifest.samples for manifest in self.manifests))
        file = bisect.bisect_right(ends, index)
        return file, index - (ends[file] - self.manifests[file].samples)

    def sample(self, index: int) -> tuple[Path, str]:
        """Sample ``index`` of the set -> its file, and its place there and key, in words."""
        file, place = self.place(index)
        return self.paths[file], f"sample {place}, {self.manifests[file].keys[place]}"


def shard_paths(beton: Path, shards: int) -> tuple[Path, ...]:
    """``train.beton``, 4 -> ``train-00000-of-00004.beton`` and so on."""
    return tuple(
        beton.with_name(f"{beton.stem}-{number:05d}-of-{shards:05d}{beton.suffix}")
        for number in range(shards)
    )


def shard_pattern(shard: Path) -> str:
    """``train-00000-of-00004.beton`` -> ``train-*.beton``."""
    return str(shard.with_name(SHARD_NUMBER.sub("", shard.stem) + "-*.beton"))


def find_betons(*names: Path | str, part: bool = False) -> Betons:
    """Files and patterns -> the whole data set; with ``part`` one file that is given by its own
    name may be a single shard.

    Raises UsageError when there is no such file, and ToolError when a shard or its manifest is
    missing or damaged, when one is given twice, or when files are of several builds.
    """
    paths = [path for name in names for path in _files(Path(name))]
    if not paths:
        raise UsageError(
            "beton.no_name", "no beton is given; give one, or a pattern in quotes: 'train-*.beton'"
        )
    given = str(names[0]) if len(names) == 1 else shard_pattern(paths[0])
    found = [(path, load_manifest(path)) for path in paths]
    if part and paths == [Path(name) for name in names] and len(paths) == 1:
        return Betons(given, (paths[0],), (found[0][1],), found[0][1])
    return _whole(given, found)


def stats_of(betons: Betons) -> Stats:
    """The statistics beside a set; ToolError where they are damaged or of another set."""
    stats = load_stats(betons.stats)
    if stats.size_px != betons.manifest.size_px:
        raise ToolError(
            "stats.other_size",
            f"{betons.stats}: has statistics of images of {stats.size_px} px beside a beton of "
            f"{betons.manifest.size_px} px; run imagenet-prep stats and build again",
        )
    if file_digest(betons.stats) != betons.manifest.stats_digest:
        raise ToolError(
            "stats.other_beton",
            f"{betons.stats}: is not the statistics file that {betons} was built with; copy that "
            f"one here, or {_REMEDY}",
        )
    return stats


def validation_beside(betons: Betons) -> Betons | None:
    """The set ``val.beton`` or ``val-*.beton`` in the same folder; None where there is none,
    or where it is ``betons`` itself."""
    folder = betons.paths[0].parent
    alone, shards = folder / "val.beton", shards_in(folder, "val")
    if betons.paths[0] in (alone, *shards):
        return None
    if alone.exists() and shards:
        raise UsageError(
            "beton.two_validation_sets",
            f"{alone}: lies beside {shards[0].name}, and only one of them can be the validation "
            "set; move one elsewhere",
        )
    if alone.exists():
        return find_betons(alone)
    return find_betons(*shards) if shards else None


def shards_in(folder: Path, split: str) -> list[Path]:
    """The files of a folder that are named as shards of ``split``, of any number of them."""
    found = folder.glob(f"{split}-*-of-*.beton")
    return sorted(path for path in found if SHARD_NUMBER.sub("", path.stem) == split)


def check_way(out: Path, shards: int | None) -> None:
    """UsageError where the betons of one split would lie beside those of another build.

    ``out`` is the name without shards, ``shards`` their number, None for no shards. Two sets of
    one split in one folder could not be told apart, and nothing is deleted for its name.
    """
    ours = set(shard_paths(out, shards)) if shards else {out}
    there = [path for path in (out, *shards_in(out.parent, out.stem)) if path.exists()]
    other = next((path for path in there if path not in ours), None)
    if other is not None:
        raise UsageError(
            "beton.other_build",
            f"{other}: belongs to another build of this split; delete its files or choose another "
            "folder",
        )


def require_files(count: int, name: str) -> None:
    """Lets this process open so many shards at once; ToolError where the system does not."""
    needed = count + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if count == 1 or soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ToolError(
            "shards.too_many_files",
            f"{name}: has {count} shards where this process may open {hard} files at once; "
            "raise that (ulimit -n), or build fewer and larger shards",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _files(name: Path) -> list[Path]:
    """A file, or the betons that a pattern matches."""
    if name.exists() or not glob.has_magic(str(name)):
        return [name]
    matching = map(Path, glob.glob(str(name)))  # noqa: PTH207 - the folder may be a pattern too
    found = sorted(path for path in matching if path.suffix == ".beton")
    if not found:
        raise UsageError(
            "beton.missing",
            f"{name}: no .beton file has such a name; build one with imagenet-prep build, or "
            "give the right name",
        )
    return found


def _whole(name: str, found: list[tuple[Path, Manifest]]) -> Betons:
    """Files with their manifests, in any order -> the set; ToolError where they are not one."""
    found = sorted(found, key=lambda one: one[1].shard)
    paths = tuple(path for path, _ in found)
    manifests = tuple(manifest for _, manifest in found)
    first = manifests[0]
    if len(found) == 1 and not first.set:
        return Betons(name, paths, manifests, first)
    _check_same(paths, manifests)
    _check_complete(name, paths, manifests)
    return Betons(name, paths, manifests, together(manifests))


def _check_same(paths: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    """ToolError unless all files are shards of one build."""
    build = attrgetter(
        "set", "shards", "split", "size_px", "classes", "page_size_bytes", "stats_digest"
    )
    for path, manifest in zip(paths, manifests, strict=True):
        if not manifest.set:
            raise ToolError(
                "shards.single_beton",
                f"{path}: is a single beton and not a shard of the other files; give only files "
                "that belong together",
            )
        if build(manifest) != build(manifests[0]):
            raise ToolError(
                "shards.other_build",
                f"{path}: is shard {manifest.shard} of {manifest.shards} of another build than "
                f"{paths[0]}; give the shards of one build, or {_REMEDY}",
            )


def _check_complete(name: str, paths: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    """ToolError unless every shard is there once, with the contents that the set has."""
    count = manifests[0].shards
    numbers = [manifest.shard for manifest in manifests]
    twice = next((i for i in range(1, len(numbers)) if numbers[i] == numbers[i - 1]), None)
    if twice is not None:
        raise ToolError(
            "shards.twice",
            f"{paths[twice]}: is shard {numbers[twice]} of {count}, and so is {paths[twice - 1]}; "
            "give each shard once",
        )
    missing = sorted(set(range(count)) - set(numbers))
    if missing:
        base = paths[0].with_name(SHARD_NUMBER.sub("", paths[0].stem) + ".beton")
        raise ToolError(
            "shards.missing",
            f"{name}: {len(missing)} of {count} shards are missing, the first "
            f"{shard_paths(base, count)[missing[0]].name}; give all of them "
            f"('{shard_pattern(base)}' in quotes), or {_REMEDY}",
        )
    if pages_digest(manifest.digest for manifest in manifests) != manifests[0].set:
        raise ToolError(
            "shards.damaged", f"{name}: the shards differ from those that were built; {_REMEDY}"
        )


def together(manifests: Sequence[Manifest]) -> Manifest:
    """The manifests of all shards in their order -> one of the whole."""
    formats: Counter[str] = Counter()
    for manifest in manifests:
        formats.update(manifest.formats)
    chained = itertools.chain.from_iterable
    return replace(
        manifests[0],
        samples=sum(manifest.samples for manifest in manifests),
        formats=dict(formats),
        bytes=sum(manifest.bytes for manifest in manifests),
        digest=manifests[0].set,
        pages=tuple(chained(manifest.pages for manifest in manifests)),
        source=add_digests(*(manifest.source for manifest in manifests)),
        keys=tuple(chained(manifest.keys for manifest in manifests)),
        rows="",
        versions={name: text for one in manifests for name, text in one.versions.items()},
    )
