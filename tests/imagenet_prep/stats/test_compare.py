"""Statistics beside others, of ours or published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset.statistics import Stats, save_stats
from imagenet_prep.stats import moments as stats
from imagenet_prep.stats.compare import (
    Reference,
    angles_between,
    compare,
    read_references,
    reference_of,
)
from tests.kit.errors import fails


@pytest.fixture(scope="module")
def ours() -> Stats:
    """Statistics of images with a red cast and a strong brightness direction, 12 px a side."""
    rng = np.random.default_rng(0)
    shades = rng.normal(0, 40, (30, 12, 12, 1)) + rng.normal(0, 12, (30, 12, 12, 3))
    images = np.clip(shades + np.array([150, 115, 80]), 0, 255).astype(np.uint8)
    return stats.finish(stats.moments_of(images), "0" * 64)


def test_statistics_do_not_differ_from_themselves(ours: Stats, tmp_path: Path) -> None:
    save_stats(tmp_path / "ours.npz", ours)
    (reference,) = read_references(tmp_path / "ours.npz")
    assert reference.name == "ours.npz"
    found = compare(ours, reference)
    assert found["mean_image"] == {"max_abs": 0.0, "mean_abs": 0.0}
    assert found["channel_mean"]["difference"] == found["channel_std"]["difference"] == [0, 0, 0]
    assert found["eigenstdev"]["ratio"] == [1, 1, 1]
    assert np.allclose(found["angles"], 0, atol=1e-10)


def test_differences_are_ours_less_theirs(ours: Stats) -> None:
    theirs = ours.mean.astype(np.float64) + 2
    theirs[3, 4, 1] -= 10
    found = compare(ours, Reference("x", mean=theirs, stdev=2 * ours.eigenstdev))
    assert found["mean_image"]["max_abs"] == pytest.approx(8)
    assert found["mean_image"]["mean_abs"] == pytest.approx(2 + 6 / ours.mean.size)
    expected = [-2, -2 + 10 / 144, -2]
    assert found["channel_mean"]["difference"] == pytest.approx(expected, abs=1e-5)
    assert found["eigenstdev"]["ratio"] == [0.5, 0.5, 0.5]
    assert "angles" not in found and "channel_std" not in found
    assert compare(ours, Reference("x", stdev=np.zeros(3)))["eigenstdev"]["ratio"] == [None] * 3


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 0.5, 30.0, 90.0])
def test_angles_ignore_signs_and_are_exact_when_small(degrees: float) -> None:
    turn = np.radians(degrees)
    turned = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, -7]]
    )
    assert angles_between(np.eye(3), turned) == pytest.approx([degrees, degrees, 0], rel=1e-9)


@pytest.mark.parametrize("side", [8, 20])
def test_of_mean_images_of_two_sizes_the_middle_is_compared(ours: Stats, side: int) -> None:
    mean = ours.mean.astype(np.float64)
    theirs = mean[2:10, 2:10] if side < 12 else np.pad(mean, ((4, 4), (4, 4), (0, 0)))
    found = compare(ours, Reference("x", mean=theirs, channel_mean=ours.channel_mean))
    assert found["mean_image"]["max_abs"] == 0


def test_published_statistics_are_near_each_other(shared_reference: Path) -> None:
    references = read_references(shared_reference / "imagenet_published_stats.npz")
    means = [one.mean for one in references if one.mean is not None]
    assert len(means) == 3 and references[-1].vectors is not None
    assert references[-1].stdev is not None and (np.diff(references[-1].stdev) > 0).all()
    for mean in means[1:]:
        assert mean.shape == (256, 256, 3)
        assert np.abs(mean - means[0]).mean() < 15


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"mean": np.zeros(3)},
        {"mean": np.full((4, 4, 3), np.nan)},
        {"color_stdev": np.ones(3)},
        {"color_stdev": np.ones(3), "color_vectors": np.ones((2, 3))},
    ],
)
def test_a_file_without_usable_statistics_is_an_error(
    arrays: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, **arrays)
    with fails("stats.reference"):
        read_references(path)


def test_missing_and_damaged_files_are_errors(ours: Stats, tmp_path: Path) -> None:
    path = tmp_path / "ours.npz"
    save_stats(path, ours)
    data = path.read_bytes()
    for bad in (data[:-900], b"text", data[:2000] + b"\0" * 40 + data[2040:]):
        path.write_bytes(bad)
        with pytest.raises(ToolError) as caught:
            read_references(path)
        assert caught.value.code in ("stats.reference", "stats.damaged")
    with fails("stats.reference"):
        read_references(tmp_path / "none.npz")
    assert reference_of(ours, "x").mean is not None
