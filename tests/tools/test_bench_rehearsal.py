"""ImageNet's dress rehearsal: its archives are read as the real ones, its sums."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from imagenet_prep.sources.scan import scan
from tests.conftest import jpeg_bytes, smooth_pixels
from tools.bench import rehearsal
from tools.bench.rehearsal import TRAIN, VAL, Stage, archives, whole


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three small images."""
    paths = [tmp_path / f"{n}.jpg" for n in range(3)]
    for n, path in enumerate(paths):
        path.write_bytes(jpeg_bytes(smooth_pixels(24, 30 + n, n)))
    return paths


def test_the_archives_have_imagenets_layout_classes_and_labels(
    tmp_path: Path, photos: list[Path]
) -> None:
    assert archives(photos, tmp_path / "archives", 1003) == (1003, 39)
    found = scan(tmp_path / "archives")
    assert found.layout == "ilsvrc"
    assert len(found.classes.names) == 1000
    counts = [0] * 1000
    for source in found.sources:
        counts[source.label] += source.split == "train"
    assert sorted(counts) == [1] * 997 + [2] * 3
    assert sum(source.split == "val" for source in found.sources) == 39
    assert found.sources[0].place.read() in {path.read_bytes() for path in photos}


def test_every_stage_runs_on_the_archives_and_is_measured(
    tmp_path: Path, photos: list[Path]
) -> None:
    made = archives(photos, tmp_path / "archives", 1000)
    (tmp_path / "prepared").mkdir()
    stages = rehearsal.rehearse(tmp_path / "archives", tmp_path / "prepared", made)
    assert [stage.name for stage in stages] == [
        "crop", "stats", "build", "prepare", "prepare again", "an epoch's reading",
    ]  # fmt: skip
    assert all(stage.cpu_s > 0 and stage.peak_mb > 1 for stage in stages)
    written = {stage.name: stage.bytes for stage in stages}
    assert written["crop"] > 1039 * 500
    assert written["build"] > 1039 * 500
    assert written["prepare again"] == written["an epoch's reading"] == 0


def test_small_copies_keep_their_proportions(tmp_path: Path, photos: list[Path]) -> None:
    for _ in range(2):  # a folder of an earlier run is replaced
        files = rehearsal.small(photos, tmp_path / "small", 12)
    sizes = []
    for file in files:
        with Image.open(file) as image:
            sizes.append(image.size)
    assert sizes == [(15, 12), (16, 12), (16, 12)]


def test_a_stage_that_fails_ends_the_rehearsal(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="crop failed"):
        rehearsal.run("crop", ["-c", "raise SystemExit(3)"], lambda: 0)


def test_the_whole_is_on_the_line_through_both_sizes() -> None:
    small, large = Stage("crop", 5.0, 7.0, 90.0, 1000), Stage("crop", 6.0, 9.0, 95.0, 2000)
    found = whole(small, large, (1000, 2000))
    steps = (TRAIN + VAL - 2000) / 1000
    assert found == Stage("crop", 6 + steps, 9 + 2 * steps, 0.0, round(2000 + 1000 * steps))
    slower = whole(large, small, (1000, 2000))
    assert (slower.seconds, slower.cpu_s) == (5.0, 7.0)
