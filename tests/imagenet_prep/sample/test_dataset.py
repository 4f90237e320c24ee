"""The procedural data set: the same for the same seed, of every format, safe to repeat."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from imagenet_prep.core.errors import ToolError
from imagenet_prep.sample import dataset as sample
from imagenet_prep.sample.dataset import FORMATS, encode_image, file_format, make_sample
from imagenet_prep.sample.scenes import KINDS, draw_image


def digests(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of each file that is not hidden."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def test_a_sample_has_its_folders_counts_and_three_broken_files(tmp_path: Path) -> None:
    report = make_sample(tmp_path / "raw", train=23, val=11, classes=4, jobs=1)
    assert (report.images, report.broken) == (34, 3)
    assert report.seconds > 0
    files = Counter(path.split("/")[0] for path in digests(tmp_path / "raw"))
    assert files == {"train": 26, "val": 11}
    names = {path.name for path in (tmp_path / "raw" / "train").iterdir()}
    assert names == {kind.name for kind in KINDS[:4]}


def test_a_seed_gives_the_same_bytes_with_any_workers(tmp_path: Path) -> None:
    make_sample(tmp_path / "one", train=12, val=3, seed=5, jobs=1)
    make_sample(tmp_path / "two", train=12, val=3, seed=5, jobs=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_another_seed_gives_other_images(tmp_path: Path) -> None:
    make_sample(tmp_path / "a", train=4, val=0, classes=2, seed=1, jobs=1)
    make_sample(tmp_path / "b", train=4, val=0, classes=2, seed=2, jobs=1)
    a, b = (set(digests(tmp_path / name).values()) for name in "ab")
    assert len(a & b) == 2  # the text file and the empty file


def test_a_image_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    make_sample(tmp_path / "few", train=6, val=2, classes=2, jobs=1)
    make_sample(tmp_path / "more", train=10, val=4, classes=2, jobs=1)
    few, more = digests(tmp_path / "few"), digests(tmp_path / "more")
    good = {path for path in few if "broken" not in path}
    assert good <= set(more)
    assert all(few[path] == more[path] for path in good)


def test_the_broken_files_are_broken_and_the_others_are_not(tmp_path: Path) -> None:
    make_sample(tmp_path, train=8, val=2, classes=2, jobs=1)
    for path in sorted(tmp_path.glob("*/*/*.*")):
        if path.name.startswith("broken"):
            with pytest.raises(OSError), Image.open(path) as image:
                image.load()
        else:
            with Image.open(path) as image:
                image.load()
                assert min(image.size) >= 60


def test_every_hundred_images_have_all_formats_in_own_order() -> None:
    first = [file_format(0, "train", index) for index in range(100)]
    second = [file_format(0, "train", index) for index in range(100, 200)]
    assert Counter(first) == Counter(second) == FORMATS
    assert first != second
    assert first != [file_format(0, "val", index) for index in range(100)]


@pytest.mark.parametrize("file_kind", sorted(FORMATS))
def test_a_file_is_of_the_kind_it_was_asked_to_be(file_kind: str) -> None:
    pixels = draw_image(np.random.default_rng(3), KINDS[0])
    data = encode_image(pixels, file_kind, np.random.default_rng(4))
    image = Image.open(io.BytesIO(data))
    image.load()
    expected = {
        "png": ("PNG", "RGB"),
        "webp": ("WEBP", "RGB"),
        "palette": ("PNG", "P"),
        "rgba": ("PNG", "RGBA"),
        "cmyk": ("JPEG", "CMYK"),
        "grey": ("JPEG", "L"),
    }
    assert (image.format, image.mode) == expected.get(file_kind, ("JPEG", "RGB"))
    assert bool(image.info.get("progressive")) == (file_kind == "progressive")
    assert (0x0112 in image.getexif()) == (file_kind == "turned")


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000))
def test_orientation_makes_a_turned_image_upright(seed: int) -> None:
    pixels = draw_image(np.random.default_rng(9), KINDS[3])[:90, :70]
    data = encode_image(pixels, "turned", np.random.default_rng(seed))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert upright.shape == pixels.shape
    assert np.abs(upright.astype(int) - pixels.astype(int)).mean() < 8


def test_an_interrupted_sample_is_completed(tmp_path: Path) -> None:
    make_sample(tmp_path / "whole", train=8, val=2, classes=2, jobs=1)
    written = 0

    def stop_after_four(what: str, done: int, total: int) -> None:
        nonlocal written
        written = done
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_sample(tmp_path / "cut", train=8, val=2, classes=2, jobs=1, progress=stop_after_four)
    assert len(digests(tmp_path / "cut")) == written == 4
    stale = tmp_path / "cut" / "train" / KINDS[0].name / ".x.jpg.abc.tmp"
    stale.write_bytes(b"half")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("*/*/*.jpg")}
    make_sample(tmp_path / "cut", train=8, val=2, classes=2, jobs=1)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert not stale.exists()


def test_other_settings_replace_only_an_earlier_sample(tmp_path: Path) -> None:
    make_sample(tmp_path / "raw", train=9, val=3, classes=3, jobs=1)
    own = tmp_path / "raw" / "train" / KINDS[0].name / "holiday.jpg"
    own.write_bytes(b"mine")
    make_sample(tmp_path / "raw", train=4, val=2, classes=2, seed=8, jobs=1)
    make_sample(tmp_path / "fresh", train=4, val=2, classes=2, seed=8, jobs=1)
    assert own.read_bytes() == b"mine"
    own.unlink()
    assert digests(tmp_path / "raw") == digests(tmp_path / "fresh")
    assert not (tmp_path / "raw" / "train" / KINDS[2].name).exists()


def refused(dst: Path, **counts: int) -> str:
    """The code of the error of ``make_sample``."""
    arguments: dict[str, Any] = {"train": 4, "val": 1, "classes": 2, "jobs": 1} | counts
    with pytest.raises(ToolError) as caught:
        make_sample(dst, **arguments)
    return caught.value.code


def test_a_folder_with_other_files_is_refused_untouched(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    assert refused(tmp_path) == refused(notes) == "sample.folder"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


IMPOSSIBLE = {"train": 4, "val": 1, "classes": 99, "seed": 0, "version": 0}


@pytest.mark.parametrize("content", ['{"train": "many"}', '{"train": 4}', json.dumps(IMPOSSIBLE)])
def test_a_damaged_marker_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / sample.MARKER_NAME).write_text(content)
    assert refused(tmp_path) == "sample.folder"


@pytest.mark.parametrize(
    ("train", "val", "classes", "seed"),
    [(10, 1, 1, 0), (100, 1, 11, 0), (3, 1, 4, 0), (10, -1, 2, 0), (10, 1, 2, -1)],
)
def test_invalid_counts_are_refused(
    tmp_path: Path, train: int, val: int, classes: int, seed: int
) -> None:
    counts = {"train": train, "val": val, "classes": classes, "seed": seed}
    assert refused(tmp_path / "raw", **counts) == "sample.counts"
    assert not (tmp_path / "raw").exists()


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(item: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample, "_write", full)
    assert refused(tmp_path / "raw") == "sample.write"
