"""ImageNet's dress rehearsal: archives in its real layout, prepared end to end, read once.

    python tools/bench/rehearsal.py [--count N] [--side PX] [--images FOLDER] [--smoke] ...
    python tools/bench/rehearsal.py --count 1281167 --side 32        # all of it, 31 GB of disk

Makes ILSVRC2012_img_train.tar (1,000 class tars) and ILSVRC2012_img_val.tar of N + N / 26 images,
which are photographs repeated, with --side made small first. Runs crop, stats and build on them,
prepare (no image to crop), prepare again (nothing to do), and an epoch's reading; of each stage
wall and processor seconds, the memory of its largest process, and the bytes it wrote. All of that
first for 1,000 images. Figures for all 1,281,167 + 50,000 images are extrapolated along the line
through both sizes. Photographs that are repeated come from the page cache, so the time of a slow
disk is not in them.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.bench.harness import REPOSITORY, option_parser, options_of, work_folder
from tools.bench.image_sets import photographs
from tools.bench.recording import Record

TRAIN, VAL, CLASSES = 1_281_167, 50_000, 1000
SMOKE_IMAGES = 1100
_READ = (
    "import sys; from trainer.loader import train_loader\n"
    "with train_loader(sys.argv[1], batch_size=256) as batches:\n"
    "    print(sum(len(labels) for _, labels, *_ in batches))"
)


@dataclass(frozen=True)
class Stage:
    """A command: wall and processor seconds, the peak memory of its largest process, and the
    bytes that it wrote."""

    name: str
    seconds: float
    cpu_s: float
    peak_mb: float
    bytes: int


def archives(images: Sequence[Path], folder: Path, train: int) -> tuple[int, int]:
    """Writes both archives into ``folder`` with ``train`` images of 1,000 classes, in turn, and
    val in proportion -> the numbers of images."""
    from imagenet_prep.containers.imagenet import names as wnids

    folder.mkdir(parents=True)
    contents = [path.read_bytes() for path in images]
    data = itertools.cycle(contents)
    val = max(1, round(train * VAL / TRAIN))
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for number, wnid in enumerate(wnids()):
            count = (train - number - 1) // CLASSES + 1
            names = (f"{wnid}_{n}.JPEG" for n in range(1, count + 1))
            _add(outer, f"{wnid}.tar", _tar(zip(names, data, strict=False)))
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as outer:
        for n in range(1, val + 1):
            _add(outer, f"ILSVRC2012_val_{n:08d}.JPEG", next(data))
    return train, val


def _tar(members: Iterator[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            _add(tar, name, data)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def small(images: Sequence[Path], folder: Path, side: int) -> tuple[Path, ...]:
    """Copies of ``images`` in ``folder`` whose shorter side is ``side`` px -> their files."""
    from PIL import Image

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    found = []
    for number, path in enumerate(images):
        with Image.open(path) as image:
            scale = side / min(image.size)
            width, height = (round(length * scale) for length in image.size)
            copy = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        found.append(folder / f"{number:06d}.JPEG")
        copy.save(found[-1], quality=75)
    return tuple(found)


def run(name: str, words: Sequence[str], written: Callable[[], int]) -> tuple[Stage, str]:
    """Runs ``python words`` -> its stage and what it printed; SystemExit where it fails.

    ``written`` counts the bytes that it is to have written.
    """
    before, started = written(), time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        output = process.stdout.read()
        # Of the process and of all that it started: the sum of seconds, the largest memory.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"rehearsal: {name} failed; its messages are above")
    seconds = time.perf_counter() - started
    cpu_s, peak_mb = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    print(
        f"{name:28} {seconds:8.1f} s  {cpu_s:8.1f} of the processor  {peak_mb:7.0f} MB", flush=True
    )
    return Stage(name, seconds, cpu_s, peak_mb, written() - before), output


def size_of(folder: Path) -> int:
    """The bytes of the files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def rehearse(source: Path, target: Path, expected: tuple[int, int]) -> list[Stage]:
    """Runs all stages on the archives in ``source``; AssertionError where images are missing."""
    prep, beton = ["-m", "imagenet_prep"], target / "train.beton"
    cropped = str(target / "cropped")
    prepare = [*prep, "prepare", "--src", str(source), "--dst", str(target), "--json"]
    commands = {
        "crop": [*prep, "crop", "--src", str(source), "--dst", cropped, "--json"],
        "stats": [*prep, "stats", "--src", cropped, "--json"],
        "build": [*prep, "build", "--src", cropped, "--dst", str(target), "--json"],
        "prepare": prepare,
        "prepare again": prepare,
        "an epoch's reading": ["-c", _READ, str(beton)],
    }  # fmt: skip
    stages, outputs = [], {}
    for name, words in commands.items():
        stage, outputs[name] = run(name, words, lambda: size_of(target))
        stages.append(stage)
    first, again = json.loads(outputs["crop"]), json.loads(outputs["prepare again"])
    assert (first["ok"], first["failed"]) == (sum(expected), 0), first
    assert (again["crop"]["ok"], again["crop"]["skipped"]) == (0, sum(expected)), again
    assert again["up_to_date"], again
    assert int(outputs["an epoch's reading"]) == expected[0]
    return stages


def whole(less: Stage, more: Stage, images: tuple[int, int]) -> Stage:
    """A stage at two numbers of ``images`` -> for all of ImageNet, on the line through both;
    memory, which does not grow like that, is left at 0."""
    steps = (TRAIN + VAL - images[1]) / (images[1] - images[0])

    def further(one: float, two: float) -> float:
        return two + max(0.0, two - one) * steps

    return Stage(
        more.name, further(less.seconds, more.seconds), further(less.cpu_s, more.cpu_s), 0.0,
        round(further(less.bytes, more.bytes)),
    )  # fmt: skip


def lines(stages: Sequence[Stage], wholes: Sequence[Stage], images: int) -> list[str]:
    """Stages as measured and extrapolated -> a table."""
    found = [
        f"{f'measured, {images:,} images':28}{'s':>8}{'core-s':>9}{'MB':>7}{'GB':>8}"
        "   extrapolated to ImageNet:  min  core-min      GB"
    ]
    return found + [
        f"{one.name:28}{one.seconds:>8.1f}{one.cpu_s:>9.1f}{one.peak_mb:>7.0f}"
        f"{one.bytes / 1e9:>8.3f}{all_.seconds / 60:>34.1f}{all_.cpu_s / 60:>10.1f}"
        f"{all_.bytes / 1e9:>8.1f}"
        for one, all_ in zip(stages, wholes, strict=True)
    ]


def main() -> int:
    """Makes the archives, runs the stages, prints and records their figures."""
    parser = option_parser((__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--count", type=int, default=20_000, metavar="N", help="images of train (default 20,000)"
    )
    parser.add_argument(
        "--side", type=int, metavar="PX", help="shorter side of the photographs (default: theirs)"
    )
    own = parser.parse_args()
    given = options_of(parser, own)
    count = SMOKE_IMAGES if given.smoke else own.count
    if count <= CLASSES:
        parser.error(f"--count must be more than {CLASSES:,}: some of each class")
    record = Record("rehearsal", given)
    measured: list[list[Stage]] = []
    numbers: list[int] = []
    with work_folder(given) as work:
        photos = photographs(given, work, imagenet_only=True)
        if own.side:
            photos = replace(photos, files=small(photos.files, work / "small", own.side))
        for train in (CLASSES, count):
            folder = work / "rehearsal"
            shutil.rmtree(folder, ignore_errors=True)
            try:
                made = archives(photos.files, folder / "archives", train)
                archive_bytes = size_of(folder / "archives")
                print(f"archives: {made[0]:,} + {made[1]:,} images, {archive_bytes / 1e9:.2f} GB")
                (folder / "prepared").mkdir()
                measured.append(rehearse(folder / "archives", folder / "prepared", made))
                numbers.append(sum(made))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    pair = (numbers[0], numbers[1])
    wholes = [whole(less, more, pair) for less, more in zip(*measured, strict=True)]
    print("\n".join(["", *lines(measured[1], wholes, numbers[1]), ""]))
    record.details = {
        "photographs": f"{len(photos.files)} of {photos.kind}, repeated",
        "side_px": own.side,
        "archive_bytes": archive_bytes,
        "measured": {str(images): [asdict(one) for one in stages]
                     for images, stages in zip(numbers, measured, strict=True)},
        "extrapolated": [asdict(one) for one in wholes],
    }  # fmt: skip
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
