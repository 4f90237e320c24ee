"""``imagenet-prep stats`` with its commands: results, error codes, exit statuses."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagenet_prep.cli import main as cli
from imagenet_prep.core.errors import quiet
from imagenet_prep.crop.run import run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.dataset.statistics import load_stats

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def cropped(make_raw: Callable[..., Path], tmp_path: Path) -> Path:
    folder = tmp_path / "cropped"
    settings = CropSettings(size=32)
    raw = make_raw(train=3, val=1)
    run_crop(raw, folder, settings, jobs=1, max_failures=None, progress=quiet)
    return folder


def answer(capsys: Capture, *arguments: object) -> dict[str, Any]:
    """What ``imagenet-prep stats ... --json`` prints; it must end well."""
    capsys.readouterr()
    assert cli.run(["stats", *map(str, arguments), "--json"]) == 0, capsys.readouterr().err
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def test_another_split_does_not_take_the_place_of_train(capsys: Capture, cropped: Path) -> None:
    value = answer(capsys, "--src", cropped, "--split", "val", "--jobs", 1)
    assert value["out"] == str(cropped / "stats.val.npz") and value["images"] == 2
    assert not (cropped / "stats.npz").exists()


def test_show_draws_and_prints_the_figures_of_the_file(
    capsys: Capture, cropped: Path, tmp_path: Path
) -> None:
    file = cropped / "stats.npz"
    answer(capsys, "--src", cropped, "--jobs", 1)
    value = answer(capsys, "show", file)
    assert value["image"] == str(cropped / "stats.png")
    with Image.open(cropped / "stats.png") as image:
        assert image.format == "PNG"
    found = load_stats(file)
    assert np.array_equal(value["eigenvectors"], found.eigenvectors)
    assert value["mean_max"] == pytest.approx(float(found.mean.max()))
    assert value["source"] == found.source
    plot = tmp_path / "there" / "x.png"
    assert cli.run(["stats", "show", str(file), "--image", str(plot)]) == 0
    text = capsys.readouterr().out
    assert f"{found.channel_mean[0]:.2f}" in text and f"{found.eigenstdev[2]:.2f}" in text
    assert plot.read_bytes() == (cropped / "stats.png").read_bytes()


def test_the_preview_is_the_named_image_or_a_crop_or_the_mean(
    capsys: Capture, cropped: Path, tmp_path: Path
) -> None:
    answer(capsys, "--src", cropped, "--jobs", 1)
    alone = tmp_path / "alone.npz"
    alone.write_bytes((cropped / "stats.npz").read_bytes())
    red = tmp_path / "red.png"
    Image.new("RGB", (50, 40), (203, 0, 0)).save(red)
    drawn = []
    for arguments in ((cropped / "stats.npz",), (alone,), (alone, "--preview", red)):
        png = Path(answer(capsys, "show", *arguments)["image"]).read_bytes()
        with Image.open(io.BytesIO(png)) as image:
            drawn.append(np.asarray(image.convert("RGB")))
    assert not np.array_equal(drawn[0], drawn[1])
    assert (drawn[2] == (203, 0, 0)).all(axis=-1).mean() > 0.02


def test_statistics_are_shown_when_their_crops_are_gone(capsys: Capture, cropped: Path) -> None:
    answer(capsys, "--src", cropped, "--jobs", 1)
    for crop in cropped.rglob("*.JPEG"):
        crop.unlink()
    assert Path(answer(capsys, "show", cropped / "stats.npz")["image"]).is_file()


def test_compare_with_another_file(capsys: Capture, cropped: Path, tmp_path: Path) -> None:
    file = answer(capsys, "--src", cropped, "--jobs", 1)["out"]
    other = answer(capsys, "--src", cropped, "--split", "val", "--jobs", 1)["out"]
    same, different = (
        answer(capsys, "show", file, "--compare", beside)["compared"] for beside in (file, other)
    )
    assert same[0]["mean_image"]["max_abs"] == 0
    assert different[0]["mean_image"]["max_abs"] > 1
    capsys.readouterr()
    assert cli.run(["stats", "show", file, "--compare", other]) == 0
    assert "ours less theirs" in capsys.readouterr().out


def test_compare_with_what_is_published(
    capsys: Capture, cropped: Path, shared_reference: Path
) -> None:
    file = answer(capsys, "--src", cropped, "--jobs", 1)["out"]
    published = shared_reference / "imagenet_published_stats.npz"
    value = answer(capsys, "show", file, "--compare", published)
    assert len(value["compared"]) == 4
    assert len(value["compared"][-1]["angles"]) == 3


def test_errors_have_codes_and_are_json(capsys: Capture, cropped: Path, tmp_path: Path) -> None:
    file = Path(answer(capsys, "--src", cropped, "--jobs", 1)["out"])
    text = tmp_path / "text.npz"
    text.write_text("text")
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    for status, arguments, code in (
        (2, ("cropped",), "stats.subcommand"),
        (2, ("--jobs", 2, "show", file), "stats.option_order"),
        (1, ("show", text), "stats.damaged"),
        (1, ("show", tmp_path / "none.npz"), "stats.missing"),
        (1, ("show", file, "--compare", text), "stats.reference"),
        (2, ("show", file, "--preview", text), "stats.preview"),
        (1, ("show", pipe), "stats.missing"),
        (1, ("show", file, "--compare", pipe), "stats.reference"),
        (2, ("show", file, "--preview", pipe), "stats.preview"),
    ):
        capsys.readouterr()
        assert cli.run(["stats", *map(str, arguments), "--json"]) == status
        caught = capsys.readouterr()
        error = json.loads(caught.out)["error"]
        assert error["code"] == code
        assert caught.err == f"imagenet-prep: {error['message']}\n"
