"""``imagenet-prep stats`` with its commands: results, sentences, exit statuses."""

from __future__ import annotations

import dataclasses
import io
import json
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
from imagenet_prep.dataset.statistics import load_stats, save_stats

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


def complaint(capsys: Capture, status: int, *arguments: object) -> str:
    capsys.readouterr()
    assert cli.run(["stats", *map(str, arguments)]) == status
    caught = capsys.readouterr()
    assert caught.out == ""
    return caught.err


def test_parts_merged_are_the_file_of_the_whole(
    capsys: Capture, cropped: Path, tmp_path: Path
) -> None:
    whole = answer(capsys, "--src", cropped, "--jobs", 1)
    assert whole["out"] == str(cropped / "stats.npz")
    parts = [
        answer(capsys, "--src", cropped, "--part", f"{k}/2", "--jobs", 1)["out"] for k in (1, 2)
    ]
    assert parts == [str(cropped / f"stats.{k}-of-2.npz") for k in (1, 2)]
    out = tmp_path / "merged.npz"
    merged = answer(capsys, "merge", *reversed(parts), "--out", out)
    assert (merged["files"], merged["images"]) == (2, 6)
    assert out.read_bytes() == (cropped / "stats.npz").read_bytes()


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
    assert value["picture"] == str(cropped / "stats.png")
    with Image.open(cropped / "stats.png") as image:
        assert image.format == "PNG"
    found = load_stats(file)
    assert np.array_equal(value["eigenvectors"], found.eigenvectors)
    assert value["mean_max"] == pytest.approx(float(found.mean.max()))
    assert (value["lacking"], value["source"]) == (0, found.source)
    picture = tmp_path / "there" / "x.png"
    assert cli.run(["stats", "show", str(file), "--picture", str(picture)]) == 0
    said = capsys.readouterr().out
    assert f"{found.channel_mean[0]:.2f}" in said and f"{found.eigenstdev[2]:.2f}" in said
    assert picture.read_bytes() == (cropped / "stats.png").read_bytes()


def test_the_preview_is_the_named_picture_or_a_crop_or_the_mean(
    capsys: Capture, cropped: Path, tmp_path: Path
) -> None:
    answer(capsys, "--src", cropped, "--jobs", 1)
    alone = tmp_path / "alone.npz"
    alone.write_bytes((cropped / "stats.npz").read_bytes())
    red = tmp_path / "red.png"
    Image.new("RGB", (50, 40), (203, 0, 0)).save(red)
    drawn = []
    for arguments in ((cropped / "stats.npz",), (alone,), (alone, "--preview", red)):
        png = Path(answer(capsys, "show", *arguments)["picture"]).read_bytes()
        with Image.open(io.BytesIO(png)) as image:
            drawn.append(np.asarray(image.convert("RGB")))
    assert not np.array_equal(drawn[0], drawn[1])
    assert (drawn[2] == (203, 0, 0)).all(axis=-1).mean() > 0.02


def test_a_part_says_what_it_lacks(capsys: Capture, cropped: Path) -> None:
    out = answer(capsys, "--src", cropped, "--part", "1/3", "--jobs", 1)["out"]
    assert answer(capsys, "show", out)["lacking"] == 4
    assert cli.run(["stats", "show", out]) == 0
    assert "a part: 4 pictures are in other parts" in capsys.readouterr().out
    assert cli.run(["stats", "merge", out, "--out", str(cropped / "merged.npz")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("1 file, 2 crops")
    assert "a part: 4 pictures are in other parts" in said


def test_statistics_are_shown_when_their_crops_are_gone(capsys: Capture, cropped: Path) -> None:
    answer(capsys, "--src", cropped, "--jobs", 1)
    for crop in cropped.rglob("*.JPEG"):
        crop.unlink()
    assert Path(answer(capsys, "show", cropped / "stats.npz")["picture"]).is_file()


def test_compare_with_another_file_and_with_published_figures(
    capsys: Capture, cropped: Path, tmp_path: Path
) -> None:
    file = answer(capsys, "--src", cropped, "--jobs", 1)["out"]
    other = answer(capsys, "--src", cropped, "--split", "val", "--jobs", 1)["out"]
    same, different = (
        answer(capsys, "show", file, "--compare", beside)["compared"] for beside in (file, other)
    )
    assert same[0]["mean_image"]["max_abs"] == 0
    assert different[0]["mean_image"]["max_abs"] > 1
    figures = tmp_path / "torchvision.json"
    figures.write_text(json.dumps({"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}))
    capsys.readouterr()
    assert cli.run(["stats", "show", file, "--compare", str(figures)]) == 0
    said = capsys.readouterr().out
    assert "123.67" in said and "taken as of the scale 0-1" in said


def test_compare_with_what_is_published(
    capsys: Capture, cropped: Path, shared_reference: Path
) -> None:
    file = answer(capsys, "--src", cropped, "--jobs", 1)["out"]
    published = shared_reference / "imagenet_published_stats.npz"
    value = answer(capsys, "show", file, "--compare", published)
    assert len(value["compared"]) == 4
    assert len(value["compared"][-1]["angles"]) == 3


def test_what_is_wrong_is_one_sentence(capsys: Capture, cropped: Path, tmp_path: Path) -> None:
    file = Path(answer(capsys, "--src", cropped, "--jobs", 1)["out"])
    text = tmp_path / "text.npz"
    text.write_text("text")
    strange = tmp_path / "strange.npz"
    found = dataclasses.replace(load_stats(file), coverage=("1-2",))
    save_stats(strange, found)
    for status, arguments, sentence in (
        (2, ("cropped",), "cropped is neither merge nor show; pictures are named with --src"),
        (2, ("--jobs", 2, "show", file), "--jobs stands before show"),
        (2, ("--part", "3/2"), "'3/2' is not K/N"),
        (2, ("--part", "0/2"), "'0/2' is not K/N"),
        (2, ("--part", "half"), "'half' is not K/N"),
        (2, ("--src", cropped, "--part", "7/9"), "6 pictures cannot be cut into 9 parts"),
        (2, ("merge", "--out", tmp_path / "x.npz"), "Missing argument 'FILE...'"),
        (1, ("merge", file, file, "--out", tmp_path / "x.npz"), "would count twice"),
        (1, ("merge", text, "--out", tmp_path / "x.npz"), "not a usable statistics file"),
        (1, ("show", strange), "its coverage is not readable"),
        (1, ("show", tmp_path / "none.npz"), "the statistics file is missing"),
        (1, ("show", file, "--compare", text), "cannot be read as statistics"),
        (2, ("show", file, "--preview", text), "choose another picture for --preview"),
        (2, ("--src", tmp_path / "none.beton"), "no such file"),
    ):
        said = complaint(capsys, status, *arguments)
        assert sentence in said
        assert "Traceback" not in said
    assert not (tmp_path / "x.npz").exists()
