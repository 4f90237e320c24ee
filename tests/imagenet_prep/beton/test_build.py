"""Betons: a stock FFCV reads them, they do not depend on the workers, faults leave no trace."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from imagenet_prep.beton import build as beton
from imagenet_prep.beton import format as beton_format
from imagenet_prep.beton.layout import plan_parts
from imagenet_prep.beton.pages import Part
from imagenet_prep.beton.verify import check_beton
from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.files import file_digest
from imagenet_prep.dataset.manifest import load_manifest, pages_digest
from imagenet_prep.dataset.names import manifest_beside, stats_beside
from imagenet_prep.dataset.statistics import load_stats
from tests.imagenet_prep.conftest import pil_pixels
from tests.kit.errors import fails

if TYPE_CHECKING:
    from tests.imagenet_prep.conftest import Made

SIZE_PX = 96


# ---- what was built


def test_beton_returns_the_bytes_of_the_crops_in_order(made_beton: Made) -> None:
    index = beton_format.read_index(made_beton.out)
    content = made_beton.out.read_bytes()
    assert sorted(made_beton.manifest.keys) == sorted(path for path, _ in made_beton.crops)
    labels = dict(made_beton.crops)
    for key, row, sample in zip(made_beton.manifest.keys, index.table, index.samples, strict=True):
        start, size = int(row["ptr"]), int(row["size"])
        assert content[start : start + size] == (made_beton.cropped / key).read_bytes()
        assert sample["label"] == labels[key]


def test_manifest_describes_the_beton(made_beton: Made) -> None:
    manifest = load_manifest(made_beton.out)
    assert manifest == made_beton.manifest
    assert manifest.samples == 110
    assert manifest.size_px == SIZE_PX
    assert manifest.classes == made_beton.classes.names
    assert manifest.readable == made_beton.classes.readable
    assert manifest.formats == {"jpeg": 110}
    assert manifest.digest == pages_digest(manifest.pages)
    assert manifest.source == made_beton.stats.source
    content = made_beton.out.read_bytes()
    size = manifest.page_size_bytes
    assert manifest.pages == tuple(
        hashlib.sha256(content[start : start + size]).hexdigest()
        for start in range(0, len(content), size)
    )
    assert len(manifest.pages) == 4  # header, two of data, table


def test_manifest_names_no_folder_of_this_machine(made_beton: Made) -> None:
    text = manifest_beside(made_beton.out).read_text()
    assert str(made_beton.cropped) not in text
    assert str(made_beton.out.parent) not in text


def test_statistics_travel_beside_the_beton(made_beton: Made) -> None:
    copied = stats_beside(made_beton.out)
    assert file_digest(copied) == made_beton.stats_digest == made_beton.manifest.stats_digest
    assert np.array_equal(load_stats(copied).mean, made_beton.stats.mean)


def test_nothing_but_the_four_files_is_left(made_beton: Made) -> None:
    found = sorted(path.name for path in made_beton.out.parent.iterdir())
    assert found == ["train.beton", "train.beton.json", "train.beton.rows", "train.stats.npz"]


def test_workers_and_order_of_crops_do_not_change_the_bytes(
    made_beton: Made, tmp_path: Path
) -> None:
    out = tmp_path / "train.beton"
    made_beton.build(out, crops=made_beton.crops[::-1], jobs=2)
    for path in (out, manifest_beside(out), stats_beside(out)):
        assert path.read_bytes() == (made_beton.out.parent / path.name).read_bytes()


def test_validation_split_uses_the_statistics_of_other_images(
    made_beton: Made, tmp_path: Path
) -> None:
    crops = made_beton.crops[:7]
    manifest = beton.build_beton(
        made_beton.cropped,
        "val",
        tmp_path / "val.beton",
        stats=made_beton.stats,
        stats_digest=made_beton.stats_digest,
        classes=made_beton.classes,
        crops=crops,
        crop_settings="cafe",
        jobs=1,
    )
    assert manifest.samples == 7
    assert manifest.source != made_beton.stats.source
    assert manifest.settings["crop"] == "cafe"
    assert check_beton(tmp_path / "val.beton", jobs=1).good


def test_progress_counts_samples(made_beton: Made, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    made_beton.build(tmp_path / "t.beton", progress=lambda *step: seen.append(step))
    assert seen[0] == ("build", 0, 110)
    assert seen[-1] == ("build", 110, 110)
    assert len(seen) == 3  # two data pages


def test_samples_can_be_looked_at(made_beton: Made) -> None:
    samples = beton.read_samples(made_beton.out, 3)
    assert len(samples) == 3
    labels = dict(made_beton.crops)
    for key, (pixels, label) in zip(made_beton.manifest.keys, samples, strict=False):
        assert label == labels[key]
        assert np.array_equal(pixels, pil_pixels(made_beton.cropped / key))
    assert len(beton.read_samples(made_beton.out, 1000)) == 110


# ---- faults while building


def assert_old_files(made_beton: Made) -> None:
    assert check_beton(made_beton.out, jobs=1).good
    assert len(list(made_beton.out.parent.iterdir())) == 4


def overwrite(mode: str, width: int, kind: str) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        Image.new(mode, (width, SIZE_PX)).save(path, kind)

    return apply


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (Path.unlink, "cannot be read"),
        (lambda path: path.write_bytes(b""), "has 0 bytes"),
        (lambda path: path.write_bytes(b"text"), "is not a JPEG"),
        (overwrite("RGB", SIZE_PX, "PNG"), "is not a JPEG"),
        (overwrite("RGB", 50, "JPEG"), "is 50x96 where the statistics are of 96x96"),
        (overwrite("CMYK", SIZE_PX, "JPEG"), "is a CMYK image"),
        (lambda path: path.write_bytes(path.read_bytes()[:-2]), "is not a whole JPEG"),
    ],
)
def test_unusable_crop_is_named_and_the_old_beton_stays(
    beton_copy: Made, damage: Callable[[Path], None], reason: str
) -> None:
    bad = beton_copy.cropped / beton_copy.crops[50][0]
    damage(bad)
    with pytest.raises(ToolError, match=reason) as caught:
        beton_copy.build(beton_copy.out)
    assert str(caught.value).startswith(f"{bad}: ")
    assert_old_files(beton_copy)


def test_statistics_of_another_size_are_named_as_old(beton_copy: Made) -> None:
    for path, _ in beton_copy.crops:
        Image.new("RGB", (50, 50)).save(beton_copy.cropped / path, "JPEG")
    with fails("build.stats_size", "50x50"):
        beton_copy.build(beton_copy.out)
    assert_old_files(beton_copy)


@pytest.mark.parametrize(
    ("format", "change", "reason"),
    [
        ("jpeg", lambda p: p.write_bytes(p.read_bytes() + b"\0"), r"changed from \d+ to \d+ bytes"),
        ("jpeg", lambda p: p.write_bytes(p.read_bytes()[:-9]), r"changed from \d+ to \d+ bytes"),
        ("jpeg", Path.unlink, "cannot be read .No such file"),
        ("raw", Path.unlink, "cannot be read .No such file"),
        ("raw", lambda p: p.write_bytes(p.read_bytes()[:-9]), "is not a whole JPEG"),
        ("raw", overwrite("RGB", 50, "JPEG"), "is 50x96 where"),
    ],
)
@pytest.mark.parametrize("jobs", [1, 2])
def test_crop_that_changes_while_the_beton_is_filled_is_named(
    beton_copy: Made,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    change: Callable[[Path], None],
    reason: str,
    jobs: int,
) -> None:
    bad = beton_copy.cropped / beton_copy.crops[5][0]

    def plan_then_change(*arguments: Any, **settings: Any) -> list[Part]:
        parts = plan_parts(*arguments, **settings)
        change(bad)
        return parts

    monkeypatch.setattr("imagenet_prep.beton.build.plan_parts", plan_then_change)
    with pytest.raises(ToolError, match=reason) as caught:
        beton_copy.build(beton_copy.out, format=format, jobs=jobs)
    assert str(caught.value).startswith(f"{bad}: ")
    assert_old_files(beton_copy)


def test_page_that_reads_back_otherwise_is_no_beton(
    beton_copy: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pread
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", lambda file, size, at: real(file, size, at)[:-1] + b"?")
        with pytest.raises(ToolError, match="does not hold what was written"):
            beton_copy.build(beton_copy.out)
    assert_old_files(beton_copy)


@pytest.mark.parametrize("jobs", [1, 2])
def test_full_disk_leaves_the_old_files(
    beton_copy: Made, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        beton_copy.build(beton_copy.out, jobs=jobs)
    assert "train.beton" in str(caught.value.filename)
    assert_old_files(beton_copy)


def test_subset_does_not_ask_for_the_statistics_of_the_subset(
    beton_copy: Made, tmp_path: Path
) -> None:
    manifest = beton_copy.build(tmp_path / "few" / "train.beton", subset=20)
    assert manifest.samples == 20
    assert manifest.source != beton_copy.stats.source
    assert manifest.settings["subset"] == 20


def test_page_smaller_than_the_largest_sample_is_wrong_usage(
    beton_copy: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = beton_copy.cropped / beton_copy.crops[0][0]
    large.write_bytes(large.read_bytes() + bytes(3 << 20))
    with fails("build.page_size", usage=True):
        beton_copy.build(beton_copy.out, page_size=1 << 21)
    assert_old_files(beton_copy)


def test_statistics_of_other_images_are_refused_for_train(beton_copy: Made) -> None:
    with fails("build.other_stats"):
        beton_copy.build(beton_copy.out, crops=beton_copy.crops[1:])
    assert_old_files(beton_copy)


def test_statistics_that_cannot_be_copied_to_the_bit_are_refused(beton_copy: Made) -> None:
    with fails("build.foreign_stats"):
        beton_copy.build(beton_copy.out, stats_digest="00")
    assert_old_files(beton_copy)


def test_full_disk_is_found_before_anything_is_written(
    beton_copy: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(beton_copy.out.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with fails("build.disk_full", "needs 7 MB where 0 MB are free"):
        beton_copy.build(beton_copy.out)
    assert_old_files(beton_copy)


@pytest.mark.parametrize(("crops", "reason"), [([], "no crops"), ([("a", 3)], "has label 3")])
def test_crops_that_make_no_beton_are_refused(
    beton_copy: Made, crops: list[tuple[str, int]], reason: str
) -> None:
    with pytest.raises(ToolError, match=reason):
        beton_copy.build(beton_copy.out, crops=crops)
    assert_old_files(beton_copy)


@pytest.mark.parametrize("jobs", [1, 2])
def test_interruption_leaves_the_old_files_alone(beton_copy: Made, jobs: int) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        beton_copy.build(beton_copy.out, progress=interrupt, jobs=jobs)
    assert_old_files(beton_copy)


def test_kill_before_the_manifest_leaves_no_complete_pair(
    beton_copy: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("imagenet_prep.beton.build.save_manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        beton_copy.build(beton_copy.out)
    with pytest.raises(ToolError, match="manifest of a complete beton is missing"):
        load_manifest(beton_copy.out)


def test_the_next_build_removes_every_temporary_file(
    beton_copy: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = zipfile.ZipFile

    def watched(path: Path, mode: Any) -> Any:
        if mode == "w":
            seen.extend(entry.name for entry in path.parent.iterdir() if entry.suffix == ".tmp")
        return real(path, mode)

    monkeypatch.setattr(zipfile, "ZipFile", watched)
    beton_copy.build(beton_copy.out)
    assert len(seen) == 2
    assert sorted(name.rsplit(".", 2)[0] for name in seen) == [".train.beton", ".train.stats.npz"]
