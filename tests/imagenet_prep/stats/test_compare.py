"""Statistics beside others: how far apart, and published files in whatever form they come."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset.statistics import Stats, save_stats
from imagenet_prep.stats import moments as stats
from imagenet_prep.stats.compare import Reference, angles_between, compare, reference_of
from imagenet_prep.stats.published import read_references

Values = NDArray[np.float64]


@pytest.fixture(scope="module")
def ours() -> Stats:
    """Of pictures with a red cast and a strong direction of brightness, 12 pixels a side."""
    rng = np.random.default_rng(0)
    shades = rng.normal(0, 40, (30, 12, 12, 1)) + rng.normal(0, 12, (30, 12, 12, 3))
    images = np.clip(shades + np.array([150, 115, 80]), 0, 255).astype(np.uint8)
    return stats.finish(stats.moments_of(images), "0" * 64)


def test_statistics_beside_themselves_do_not_differ(ours: Stats) -> None:
    found = compare(ours, reference_of(ours, "same"))
    assert found["mean_image"] == {"max_abs": 0.0, "mean_abs": 0.0}
    assert found["channel_mean"]["difference"] == found["channel_std"]["difference"] == [0, 0, 0]
    assert found["eigenstdev"]["ratio"] == [1, 1, 1]
    assert np.allclose(found["angles"], 0, atol=1e-10)
    assert found["notes"] == []


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


def test_a_ratio_to_no_spread_is_none(ours: Stats) -> None:
    assert compare(ours, Reference("x", stdev=np.zeros(3)))["eigenstdev"]["ratio"] == [None] * 3


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 0.5, 30.0, 90.0])
def test_angles_do_not_look_at_signs_and_are_exact_when_small(degrees: float) -> None:
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
    assert f"{min(side, 12)} x" in found["notes"][0]


def write_array(path: Path, array: Any) -> Path:
    np.save(path, array)
    return path


def write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def write_json(path: Path, **values: Any) -> Path:
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}
    return write_text(path, json.dumps(plain))


def write_torch(path: Path, array: Any) -> Path:
    import torch

    torch.save({"mean": torch.from_numpy(np.array(array)), "epoch": 3}, path)
    return path


def write_ours(path: Path, found: Stats) -> Path:
    save_stats(path, found)
    return path


MEANS: dict[str, Callable[[Path, Stats], Path]] = {
    "as it is": lambda folder, s: write_array(folder / "mean.npy", s.mean),
    "channels first, blue first": lambda folder, s: write_array(
        folder / "ilsvrc.npy", s.mean.transpose(2, 0, 1)[::-1]
    ),
    "of 0-1": lambda folder, s: write_array(folder / "mean.npy", s.mean / 255),
    "of one batch": lambda folder, s: write_array(folder / "mean.npy", s.mean[None]),
    "torch": lambda folder, s: write_torch(folder / "mean.pt", s.mean.transpose(2, 0, 1)),
    "our own file": lambda folder, s: write_ours(folder / "s.npz", s),
}


@pytest.mark.parametrize("form", MEANS)
def test_mean_images_are_read_in_the_forms_that_go_about(
    ours: Stats, tmp_path: Path, form: str
) -> None:
    (reference,) = read_references(MEANS[form](tmp_path, ours))
    found = compare(ours, reference)
    assert found["mean_image"]["max_abs"] < 1e-4
    assert np.allclose(found["channel_mean"]["difference"], 0, atol=1e-4)


FIGURES: dict[str, Callable[[Path, Stats], Path]] = {
    "means and deviations of 0-1": lambda folder, s: write_json(
        folder / "a.json", mean=s.channel_mean / 255, std=s.channel_std / 255
    ),
    "variances of 0-1, descending, with directions": lambda folder, s: write_json(
        folder / "a.json",
        eigval=s.eigenvalues[::-1] / 255**2,
        eigvec=-s.eigenvectors[:, ::-1],
        name="lighting",
    ),
    "directions in rows": lambda folder, s: write_json(
        folder / "a.json", pca_std=s.eigenstdev[[2, 0, 1]], basis=s.eigenvectors[:, [2, 0, 1]].T
    ),
    "a covariance": lambda folder, s: write_array(folder / "cov.npy", s.covariance / 255**2),
    "three numbers": lambda folder, s: write_text(
        folder / "mean.txt", ", ".join(f"{x:.6f}" for x in s.channel_mean) + "\n"
    ),
    "blue, green, red": lambda folder, s: write_text(
        folder / "mean.csv", "\n".join(f"{x:.6f}" for x in s.channel_mean[::-1])
    ),
    "blue, green, red, with deviations": lambda folder, s: write_json(
        folder / "a.json", mean=s.channel_mean[::-1], std=s.channel_std[::-1]
    ),
    "of a validation split": lambda folder, s: write_json(
        folder / "a.json", val_mean=s.channel_mean / 255, val_std=s.channel_std / 255
    ),
}


@pytest.mark.parametrize("form", FIGURES)
def test_figures_are_read_in_the_forms_that_go_about(
    ours: Stats, tmp_path: Path, form: str
) -> None:
    (reference,) = read_references(FIGURES[form](tmp_path, ours))
    found = compare(ours, reference)
    assert len(found) > 2
    for name in ("channel_mean", "channel_std"):
        if name in found:
            assert np.allclose(found[name]["difference"], 0, atol=1e-4), name
    if "eigenstdev" in found:
        assert np.allclose(found["eigenstdev"]["ratio"], 1)
    if "angles" in found:
        assert np.allclose(found["angles"], 0, atol=1e-4)
    if form != "three numbers":
        assert found["notes"], "a reading that is not plain is told"


def test_published_statistics_are_read_and_are_near_each_other(shared_reference: Path) -> None:
    references = read_references(shared_reference / "imagenet_published_stats.npz")
    means = [reference.mean for reference in references if reference.mean is not None]
    assert len(means) == 3 and len(references) == 4
    assert all(abs(float(mean.mean() - means[0].mean())) < 5 for mean in means)
    basis = references[-1]
    assert basis.stdev is not None and basis.stdev[2] == pytest.approx(121.78, abs=0.01)
    assert basis.vectors is not None


def damaged_archive(path: Path) -> Path:
    np.savez(path, mean=np.full((8, 8, 3), 9.0))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def torch_object(path: Path) -> Path:
    import torch

    torch.save({"mean": Path("x")}, path)
    return path


FAULTS: dict[str, Callable[[Path], Path]] = {
    "no such file": lambda folder: folder / "nothing.npz",
    "is a folder": lambda folder: folder,
    "is not .npz, .npy": lambda folder: write_text(folder / "mean.mat", "x"),
    "Object arrays cannot": lambda folder: write_array(
        folder / "x.npy", np.array([{}, {}], dtype=object)
    ),
    "could not convert": lambda folder: write_text(folder / "x.txt", "a b c"),
    "has neither means nor": lambda folder: write_text(folder / "x.json", "[1, 2]"),
    "Expecting value": lambda folder: write_text(folder / "y.json", "nonsense"),
    "neither means nor directions": lambda folder: write_text(folder / "empty.csv", ""),
    "Bad CRC-32": lambda folder: damaged_archive(folder / "x.npz"),
    "not finite": lambda folder: write_array(folder / "x.npy", [1.0, np.nan, 2.0]),
    "more than tensors": lambda folder: torch_object(folder / "x.pt"),
    "cannot be read as statistics": lambda folder: write_text(folder / "z.pt", "x"),
}


@pytest.mark.parametrize("sentence", FAULTS)
def test_foreign_and_damaged_files_are_one_sentence(tmp_path: Path, sentence: str) -> None:
    path = FAULTS[sentence](tmp_path)
    with pytest.raises(ToolError, match=sentence) as caught:
        read_references(path)
    said = str(caught.value)
    assert "\n" not in said and "name a statistics file" in said


def test_a_damaged_file_of_ours_is_named_as_such(ours: Stats, tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    save_stats(path, ours)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["mean"] = arrays["mean"] + 1
    np.savez(path, **arrays)
    with pytest.raises(ToolError, match="the mean is not the sum divided by the count"):
        read_references(path)
