"""What crop shows of the layout: --dry-run, --json, --split and --class-order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imagenet_prep.cli import main as cli
from tests.conftest import jpeg_bytes, smooth_pixels
from tests.kit.sources import made


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    src = made(tmp_path / "raw", "train/10/1.jpg", "train/9/1.jpg", "held out/9/2.jpg")
    for path in src.rglob("*.jpg"):
        path.write_bytes(jpeg_bytes(smooth_pixels(40, 50, 1)))
    return src


def test_a_dry_run_shows_the_layout_and_writes_nothing(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["crop", "--src", str(raw), "--dry-run"]
    assert cli.run([*words, "--json", "--split", "held out=val"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["layout"], value["classes"]) == ("folders", 2)
    assert value["splits"] == {"train": 2, "val": 1}
    assert "ordered as numbers" in value["notices"][0]
    assert cli.run([*words, "--class-order", "name"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "layout folders: 2 classes; images: train 2"
    assert out[1].startswith("note: held out: left out")
    assert list(tmp_path.iterdir()) == [raw]


def test_a_crop_needs_a_destination(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["crop", "--src", str(raw), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "crop.no_dst"


def test_crop_shows_the_layout_first_and_gives_it_as_json(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["crop", "--src", str(raw), "--dst", str(tmp_path / "cropped"), "--size", "16"]
    assert cli.run([*words, "--json", "--split", "held out=val", "--jobs", "1"]) == 0
    shown = capsys.readouterr()
    value = json.loads(shown.out)
    assert (value["layout"], value["classes"], value["ok"]) == ("folders", 2, 3)
    assert value["splits"] == {"train": 2, "val": 1}
    assert shown.err.splitlines()[0] == "layout folders: 2 classes; images: train 2, val 1"
    assert [row["class"] for row in json.loads((tmp_path / "cropped/classes.json").read_bytes())[
        "classes"]] == ["9", "10"]  # fmt: skip


@pytest.mark.parametrize("value", ["train", "=train", "a=b"])
def test_a_split_that_is_none_is_wrong_usage(raw: Path, value: str) -> None:
    assert cli.run(["crop", "--src", str(raw), "--dst", "c", "--split", value]) == 2


def test_a_refused_source_leaves_no_destination(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(raw, "train/test1/1.jpg")
    words = ["crop", "--src", str(raw), "--dst", str(tmp_path / "cropped"), "--json"]
    assert cli.run(words) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "source.split_as_class"
    assert not (tmp_path / "cropped").exists()


def test_a_class_without_a_usable_image_is_reported_not_built(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (raw / "train/9/1.jpg").write_bytes(b"no image")
    dst, words = tmp_path / "cropped", ["--jobs", "1", "--json"]
    assert cli.run(["crop", "--src", str(raw), "--dst", str(dst), "--size", "16", *words]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["notices"][-1] == "train: all images of 1 classes failed: 9"
    assert cli.run(["stats", "--src", str(dst), *words]) == 0
    build = ["build", "--src", str(dst), "--dst", str(tmp_path), *words]
    capsys.readouterr()
    assert cli.run(build) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "build.empty_classes"
    assert not (tmp_path / "train.beton").exists()
    assert cli.run([*build, "--allow-empty-classes"]) == 0
    assert (tmp_path / "train.beton").exists()
