"""The procedural data set of the demo and the tests, as files on disk.

(seed, split, index) -> one file, for any number of workers: the images of ``scenes`` in the
formats of real collections (mostly JPEG), and three broken training files.
"""

from __future__ import annotations

import contextlib
import functools
import io
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagenet_prep.core.errors import Progress, ToolError, UsageError, quiet
from imagenet_prep.core.files import publish, read_json, write_json
from imagenet_prep.sample.scenes import KINDS, draw_image
from imagenet_prep.workers.processes import workers_of

MARKER_NAME = ".sample.json"
IMAGES_VERSION = 1  # raised whenever the same seed gives other images
SPLIT_CODES = {"train": 0, "val": 1}

FORMATS = {
    "jpeg": 80,
    "progressive": 4,
    "turned": 4,
    "png": 3,
    "webp": 3,
    "palette": 2,
    "rgba": 2,
    "cmyk": 1,
    "grey": 1,
}
"""The formats of every hundred images, shuffled per hundred."""
SUFFIXES = {"png": ".png", "webp": ".webp", "palette": ".png", "rgba": ".png"}


@dataclass(frozen=True)
class SampleSettings:
    """The settings that determine the images; stored in the folder, so that a run can continue."""

    train: int
    val: int
    classes: int
    seed: int
    version: int = IMAGES_VERSION


@dataclass(frozen=True)
class SampleReport:
    """Numbers of images and broken files in the folder, and the duration."""

    images: int
    broken: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Images per second of the whole run, those of an earlier run included."""
        return self.images / max(self.seconds, 1e-9)


def _generator(seed: int, split: str, index: int, purpose: int = 0) -> np.random.Generator:
    """The random generator of (seed, split, index)."""
    entropy = (seed, SPLIT_CODES[split], index) + ((purpose,) if purpose else ())
    return np.random.default_rng(np.random.SeedSequence(entropy))


def file_format(seed: int, split: str, index: int) -> str:
    """A key of FORMATS for an image; every hundred of a split has the same mixture."""
    return _hundred_formats(seed, split, index // 100)[index % 100]


@functools.lru_cache(maxsize=64)
def _hundred_formats(seed: int, split: str, hundred: int) -> tuple[str, ...]:
    mixture = [name for name, count in FORMATS.items() for _ in range(count)]
    order = _generator(seed, split, hundred, purpose=1).permutation(len(mixture))
    return tuple(mixture[place] for place in order)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> the transposition of the upright image, which the tag undoes."""


def encode_image(pixels: NDArray[np.uint8], file_kind: str, rng: np.random.Generator) -> bytes:
    """(H, W, 3) uint8 RGB -> the bytes of a file of a kind in FORMATS."""
    image = Image.fromarray(pixels)
    quality = int(rng.integers(78, 96))
    buffer = io.BytesIO()
    if file_kind in ("png", "palette", "rgba"):
        if file_kind == "palette":
            image = image.quantize(256)
        if file_kind == "rgba":
            image.putalpha(_rounded(*pixels.shape[:2]))
        image.save(buffer, "PNG", compress_level=3)
    elif file_kind == "webp":
        image.save(buffer, "WEBP", quality=quality, method=1)
    elif file_kind == "turned":
        orientation = int(rng.integers(2, 9))
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.transpose(_TURNS[orientation]).save(buffer, "JPEG", quality=quality, exif=exif)
    else:
        mode = {"grey": "L", "cmyk": "CMYK"}.get(file_kind, "RGB")
        progressive = file_kind == "progressive"
        image.convert(mode).save(buffer, "JPEG", quality=quality, progressive=progressive)
    return buffer.getvalue()


def _rounded(height: int, width: int) -> Image.Image:
    """An alpha channel: opaque, with softly rounded corners."""
    corner = 0.2 * min(height, width)
    y = np.maximum(np.abs(np.arange(height) + 0.5 - height / 2) - height / 2 + corner, 0)
    x = np.maximum(np.abs(np.arange(width) + 0.5 - width / 2) - width / 2 + corner, 0)
    alpha = np.clip(corner - np.hypot(x[None, :], y[:, None]) + 0.5, 0, 1)
    return Image.fromarray((alpha * 255).astype(np.uint8))


@dataclass(frozen=True, slots=True)
class _Item:
    """One file to write; ``target`` is its path as text (small to send to a worker)."""

    seed: int
    split: str
    index: int
    label: int
    target: str
    broken: str = ""


def _plan(dst: Path, settings: SampleSettings) -> list[_Item]:
    """Every file of the data set, in order; a pure function of its arguments."""
    items = []
    for split, count in (("train", settings.train), ("val", settings.val)):
        for index in range(count):
            label = index % settings.classes
            kind = file_format(settings.seed, split, index)
            name = f"{KINDS[label].name}-{index:05d}{SUFFIXES.get(kind, '.jpg')}"
            target = dst / split / KINDS[label].name / name
            items.append(_Item(settings.seed, split, index, label, str(target)))
    for number, broken in enumerate(("truncated", "text", "empty")):
        index = settings.train + number
        label = index % settings.classes
        target = dst / "train" / KINDS[label].name / f"broken-{broken}.jpg"
        items.append(_Item(settings.seed, "train", index, label, str(target), broken))
    return items


def _content(item: _Item) -> bytes:
    """The bytes of one file."""
    if item.broken == "text":
        return b"This is a text file that somebody named .jpg.\n"
    if item.broken == "empty":
        return b""
    pixels = draw_image(_generator(item.seed, item.split, item.index), KINDS[item.label])
    kind = "jpeg" if item.broken else file_format(item.seed, item.split, item.index)
    data = encode_image(pixels, kind, _generator(item.seed, item.split, item.index, purpose=2))
    return data[: len(data) * 2 // 5] if item.broken else data


def _write(item: _Item) -> str:
    """Draws, encodes and publishes one file; returns its path."""
    with publish(Path(item.target)) as temporary:
        temporary.write_bytes(_content(item))
    return item.target


def _remove(items: list[_Item]) -> None:
    """Deletes these files, and the class folders that are empty then."""
    for item in items:
        Path(item.target).unlink(missing_ok=True)
    for folder in {Path(item.target).parent for item in items}:
        with contextlib.suppress(OSError):  # not empty, or not there
            folder.rmdir()


def _check(settings: SampleSettings) -> None:
    """UsageError (``sample.counts``) for invalid counts."""
    if not 2 <= settings.classes <= len(KINDS):
        message = f"invalid number of classes {settings.classes}: expected 2 to {len(KINDS)}"
        raise UsageError("sample.counts", message)
    if settings.train < settings.classes or settings.val < 0 or settings.seed < 0:
        message = (
            f"invalid --train {settings.train}, --val {settings.val}, --seed {settings.seed}: "
            f"expected --train of at least {settings.classes}, and no negative number"
        )
        raise UsageError("sample.counts", message)


def _prepare_folder(dst: Path, settings: SampleSettings) -> None:
    """Prepares ``dst``: a new folder, or an earlier sample, from which other files are removed.

    Only files that an earlier sample wrote are removed. UsageError (``sample.folder``) for a
    folder with other files.
    """
    remedy = "choose an empty or a new folder with --dst"
    if dst.exists() and not dst.is_dir():
        raise UsageError("sample.folder", f"{dst}: is a file, not a folder; {remedy}")
    marker = dst / MARKER_NAME
    if marker.exists():
        value = read_json(marker, "the description of the sample in this folder", remedy)
        try:
            earlier = SampleSettings(**{name: int(number) for name, number in value.items()})
            _check(earlier)
        except (TypeError, ValueError, UsageError):
            message = f"{marker}: is not a description of a sample; {remedy}"
            raise UsageError("sample.folder", message) from None
        if earlier != settings:
            _remove(_plan(dst, earlier))
        for stale in dst.glob("*/*/.*.tmp"):
            stale.unlink(missing_ok=True)
    elif dst.exists() and any(dst.iterdir()):
        message = f"{dst}: is not empty and holds no earlier sample; {remedy}"
        raise UsageError("sample.folder", message)
    dst.mkdir(parents=True, exist_ok=True)
    write_json(marker, asdict(settings))


def make_sample(
    dst: Path,
    *,
    train: int = 2000,
    val: int = 500,
    classes: int = 10,
    seed: int = 0,
    jobs: int | None = None,
    progress: Progress = quiet,
) -> SampleReport:
    """Writes ``dst/train/<class>/<name>`` and ``dst/val/...``; three more files are broken.

    The same arguments give the same bytes (with the same library versions) for any
    ``jobs``. A folder with an earlier sample is completed or replaced. Raises UsageError for
    invalid counts and for a folder with other files, ToolError (``sample.write``) when it
    cannot be written.
    """
    started = time.perf_counter()
    settings = SampleSettings(train, val, classes, seed)
    _check(settings)
    try:
        _prepare_folder(dst, settings)
        plan = _plan(dst, settings)
        missing = [item for item in plan if not Path(item.target).exists()]
        done = len(plan) - len(missing)
        progress("sample", done, len(plan))
        for _ in workers_of(jobs).map(_write, missing):
            done += 1
            progress("sample", done, len(plan))
    except OSError as error:
        message = f"{dst}: the images cannot be written ({error.strerror or error})"
        remedy = "free disk space, or choose another folder with --dst"
        raise ToolError("sample.write", f"{message}; {remedy}") from None
    broken = sum(bool(item.broken) for item in plan)
    return SampleReport(len(plan) - broken, broken, time.perf_counter() - started)
