"""Crops on disk -> the statistics file: the same bytes for any workers, errors with codes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imagenet_prep.core.errors import ToolError, quiet
from imagenet_prep.crop.run import run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.dataset.manifest import source_digest
from imagenet_prep.dataset.statistics import load_stats
from imagenet_prep.stats import moments as stats
from imagenet_prep.stats import run as stats_stage
from tests.kit.journal import list_crops

SIZE_PX = 32


@pytest.fixture
def cropped(make_raw: Callable[..., Path], tmp_path: Path) -> Path:
    """Ten crops in train and four in val, of 32 x 32 pixels."""
    folder = tmp_path / "cropped"
    settings = CropSettings(size=SIZE_PX)
    raw = make_raw(train=5, val=2)
    run_crop(raw, folder, settings, jobs=1, max_failures=None, progress=quiet)
    return folder


def decoded(cropped: Path, split: str) -> NDArray[np.uint8]:
    images = []
    for path, _ in list_crops(cropped, split):
        with Image.open(cropped / path) as image:
            images.append(np.asarray(image.convert("RGB")))
    return np.stack(images)


def test_statistics_are_those_of_the_decoded_training_crops(cropped: Path, tmp_path: Path) -> None:
    out = tmp_path / "stats.npz"
    found = stats_stage.run_stats(cropped, out, jobs=1)
    images = decoded(cropped, "train")
    assert found.count == 10
    assert np.array_equal(found.sum, images.sum(axis=0, dtype=np.uint64))
    pixels = images.reshape(-1, 3).astype(np.int64)
    assert np.array_equal(found.products.astype(np.int64), pixels.T @ pixels)
    assert np.array_equal(load_stats(out).mean, found.mean)


def test_source_is_the_digest_of_paths_and_bytes_of_the_crops(
    cropped: Path, tmp_path: Path
) -> None:
    found = stats_stage.run_stats(cropped, tmp_path / "stats.npz", jobs=1)
    pairs = [
        (path, hashlib.sha256((cropped / path).read_bytes()).hexdigest())
        for path, _ in list_crops(cropped, "train")
    ]
    assert found.source == source_digest(pairs)
    paths = source_digest((path, "") for path, _ in pairs)
    assert found.coverage == (f"0-10/10 {paths}",)


def test_another_split_has_its_own_statistics(cropped: Path, tmp_path: Path) -> None:
    found = stats_stage.run_stats(cropped, tmp_path / "val.npz", split="val", jobs=1)
    assert found.count == 4
    images = decoded(cropped, "val")
    assert np.array_equal(found.sum, images.sum(axis=0, dtype=np.uint64))


def test_two_workers_and_other_groups_write_the_same_bytes(
    cropped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats_stage.run_stats(cropped, tmp_path / "one.npz", jobs=1)
    monkeypatch.setattr(stats_stage, "_GROUP_IMAGES", 3)
    for name, most_threads in (("threads", 8), ("processes", 1)):
        monkeypatch.setattr(stats_stage, "_MOST_THREADS", most_threads)
        stats_stage.run_stats(cropped, tmp_path / name, jobs=2)
        assert (tmp_path / "one.npz").read_bytes() == (tmp_path / name).read_bytes()


def rewrite(mode: str, width: int, height: int, kind: str) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        Image.new(mode, (width, height)).save(path, kind)

    return apply


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def wipe(path: Path) -> None:
    """The header stays, the coded pixels after it go: decoders would make up grey ones."""
    data = path.read_bytes()
    start = data.index(b"\xff\xda")
    path.write_bytes(data[: start + 40] + b"\xff\xd9")


def claim(side: int) -> Callable[[Path], None]:
    """The frame header has another size than the coded data."""

    def apply(path: Path) -> None:
        data = bytearray(path.read_bytes())
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = side.to_bytes(2) * 2
        path.write_bytes(data)

    return apply


@pytest.mark.parametrize("which", [0, 3])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "is not a whole JPEG"),
        (lambda path: path.write_bytes(b""), "is not a JPEG"),
        (lambda path: path.write_bytes(b"text"), "is not a JPEG"),
        (rewrite("RGB", SIZE_PX, SIZE_PX, "PNG"), "is not a JPEG"),
        (rewrite("RGB", SIZE_PX, SIZE_PX + 1, "JPEG"), "is 32x33"),
        (rewrite("CMYK", SIZE_PX, SIZE_PX, "JPEG"), "is a CMYK image"),
        (wipe, "is not a whole JPEG"),
        (claim(60_000), "is 60000x60000"),
    ],
)
def test_file_that_is_not_a_crop_is_named_and_nothing_is_written(
    cropped: Path, tmp_path: Path, which: int, damage: Callable[[Path], None], reason: str
) -> None:
    out = tmp_path / "stats.npz"
    out.write_bytes(b"old")
    bad = cropped / list_crops(cropped, "train")[which][0]
    damage(bad)
    with pytest.raises(ToolError, match=reason) as caught:
        stats_stage.run_stats(cropped, out, jobs=1)
    assert caught.value.code == "stats.bad_crop"
    assert str(caught.value).startswith(f"{bad}: ")
    assert out.read_bytes() == b"old"


def test_crop_of_another_size_than_the_first_is_named(cropped: Path, tmp_path: Path) -> None:
    bad = cropped / list_crops(cropped, "train")[4][0]
    rewrite("RGB", 40, 40, "JPEG")(bad)
    with pytest.raises(ToolError, match=r"is 40x40 where the first crop is 32x32"):
        stats_stage.run_stats(cropped, tmp_path / "stats.npz", jobs=1)


def test_first_fault_ends_the_workers(
    cropped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats_stage, "_GROUP_IMAGES", 2)
    cut(cropped / list_crops(cropped, "train")[9][0])
    for most_threads in (8, 1):
        monkeypatch.setattr(stats_stage, "_MOST_THREADS", most_threads)
        with pytest.raises(ToolError, match="is not a whole JPEG"):
            stats_stage.run_stats(cropped, tmp_path / "stats.npz", jobs=2)


def test_real_crops_give_the_published_colour_directions(
    shared_data: Path, shared_reference: Path, tmp_path: Path
) -> None:
    """The way from photographs to the file, over 120 of them."""
    raw, folder = tmp_path / "raw", tmp_path / "cropped"
    raw.mkdir()
    sample = shared_data / "imagenet-sample" / "train"
    for path in sorted(sample.iterdir())[:120]:
        (raw / path.name).symlink_to(path)
    settings = CropSettings()
    run_crop(raw, folder, settings, jobs=1, max_failures=None, progress=quiet)
    found = stats_stage.run_stats(folder, tmp_path / "stats.npz", jobs=1)
    assert found.size_px == 256
    with np.load(shared_reference / "imagenet_published_stats.npz") as published:
        cosines = np.abs((found.eigenvectors * published["color_vectors"]).sum(axis=0))
    assert (cosines > 0.99).all()
    images = decoded(folder, "train")
    assert np.array_equal(found.sum, stats.moments_of(images).sum)
