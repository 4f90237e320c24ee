"""The images of the benchmarks: photographs where they are available, else procedural ones.

Real images are looked for in ``../shared/data`` beside the checkout or in the folder that
``--images`` names; without any, ``imagenet_prep.sample`` draws some.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.bench.harness import REPOSITORY, Options

# Photographs at their original sizes; the crops of smaller images would be enlargements.
_REAL = ("imagenet-sample/train", "cats-dogs/train", "cats-dogs/test")
_SUFFIXES = frozenset({".jpg", ".jpeg"})
SAMPLE_IMAGES = 40
QUALITY_OF_VARIANTS = 95


@dataclass(frozen=True)
class ImageFiles:
    """``files``, in a fixed order, and in a word what they are."""

    kind: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Crops:
    """A folder of crops made by imagenet-prep crop, with its split's files, and statistics."""

    folder: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    stats: Path

    @property
    def mean_bytes(self) -> float:
        """The average size of a crop's file."""
        return sum(path.stat().st_size for path in self.files) / len(self.files)


def photographs(given: Options, work: Path, *, imagenet_only: bool = False) -> ImageFiles:
    """The images to work on; with ``imagenet_only`` no others where those are there."""
    if given.images is not None:
        return ImageFiles("named by --images", _jpegs([given.images]))
    data = REPOSITORY.parent / "shared" / "data"
    folders = [data / name for name in (_REAL[:1] if imagenet_only else _REAL)]
    if folders[0].is_dir():
        kind = "imagenet-sample" if imagenet_only else "imagenet-sample and cats-dogs"
        return ImageFiles(kind, _jpegs(folders))
    from imagenet_prep.sample.dataset import make_sample

    sample = work / "sample"
    make_sample(sample, train=SAMPLE_IMAGES, val=4, classes=2, jobs=1)
    files = tuple(path for path in _jpegs([sample]) if "broken" not in path.name)
    return ImageFiles("the procedural sample", files)


def _jpegs(folders: Iterable[Path]) -> tuple[Path, ...]:
    found = [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _SUFFIXES and path.is_file()
    ]
    if not found:
        raise SystemExit("no JPEG files in the folder of images; name another with --images")
    return tuple(found)


def link_collection(images: Sequence[Path], folder: Path, count: int) -> Path:
    """``count`` sources in ``folder``, links to the images in turn, in ten classes."""
    if not folder.exists():
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        for number, path in enumerate(itertools.islice(itertools.cycle(images), count)):
            target = unfinished / "train" / f"class{number % 10}" / f"{number:07d}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except OSError:  # another file system
                target.symlink_to(path.resolve())
        unfinished.rename(folder)
    return folder


def make_crops(images: ImageFiles, work: Path, count: int, jobs: int | None) -> Crops:
    """``count`` different crops of 256 x 256 at quality 90, with their statistics.

    Each is made of a photograph's random square (75 to 100 % of its short side), mirrored
    half the time, by imagenet-prep's own stages. Kept in ``work`` until those change.
    """
    from imagenet_prep.core.errors import quiet
    from imagenet_prep.crop.run import run_crop
    from imagenet_prep.dataset import journal
    from imagenet_prep.dataset.crop_settings import CropSettings
    from imagenet_prep.dataset.names import STATS_NAME
    from imagenet_prep.stats.run import run_stats
    from imagenet_prep.workers.processes import workers_of

    name = "".join(c if c.isalnum() else "-" for c in images.kind)
    folder = work / f"crops-{name}-{count}-{_stages_digest()}"
    for stale in set(work.glob(f"crops-{name}-{count}-*")) - {folder}:
        shutil.rmtree(stale)
    cropped, stats = folder / "cropped", folder / STATS_NAME
    if not stats.exists():
        raw = folder / "raw"
        items = list(_shares(images.files, raw, count))
        for number in range(10):
            (raw / "train" / f"class{number}").mkdir(parents=True, exist_ok=True)
        for _ in workers_of(jobs).map(_write_variants, items):
            pass
        run_crop(raw, cropped, CropSettings(), jobs=jobs, max_failures=0, progress=quiet)
        run_stats(cropped, stats, jobs=jobs)
        shutil.rmtree(raw)
    crops = journal.Crops(cropped).of("train")
    files = tuple(cropped / path for path, _ in crops)
    return Crops(cropped, files, tuple(label for _, label in crops), stats)


def _stages_digest() -> str:
    """A short name of the stages' code, whose files can mean something else tomorrow."""
    digest = hashlib.sha256()
    for path in sorted((REPOSITORY / "imagenet_prep").glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


_Share = tuple[Path, Path, tuple[int, ...]]


def _shares(files: Sequence[Path], raw: Path, count: int) -> Iterator[_Share]:
    """(photograph, folder, numbers of its variants), so that each is decoded once."""
    for first, path in enumerate(files[:count]):
        yield path, raw, tuple(range(first, count, len(files)))


def _write_variants(share: _Share) -> int:
    import numpy as np
    from PIL import Image, ImageOps

    path, raw, numbers = share
    with Image.open(path) as opened:
        opened.draft("RGB", (768, 768))
        image = opened.convert("RGB")
    for number in numbers:
        rng = np.random.default_rng(number)
        side = min(image.size) * rng.uniform(0.75, 1.0)
        left, top = (rng.uniform(0, length - side) for length in image.size)
        box = (left, top, left + side, top + side)
        variant = image.resize((256, 256), Image.Resampling.BILINEAR, box=box)
        if number % 2:
            variant = ImageOps.mirror(variant)
        buffer = io.BytesIO()
        variant.save(buffer, "JPEG", quality=QUALITY_OF_VARIANTS, subsampling="4:4:4")
        target = raw / "train" / f"class{number % 10}" / f"{number:06d}.jpg"
        target.write_bytes(buffer.getvalue())
    return len(numbers)


def halves(files: Sequence[Path], parts: int) -> list[list[str]]:
    """Files -> ``parts`` lists of about equal work, every ``parts``-th file each."""
    return [[str(path) for path in files[start::parts]] for start in range(parts)]
