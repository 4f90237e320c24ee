"""``build``, ``verify`` and ``info``: options, answers, error messages, exit statuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagenet_prep.cli import main as cli
from imagenet_prep.dataset.manifest import load_manifest

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def cropped(make_raw: Callable[..., Path], tmp_path: Path, capsys: Capture) -> Path:
    """Twelve crops for training and four for validation, with their statistics."""
    folder = tmp_path / "cropped"
    raw = make_raw(train=6, val=2)
    assert (
        cli.run(["crop", "--src", str(raw), "--dst", str(folder), "--size", "48", "--jobs", "1"])
        == 0
    )
    assert cli.run(["stats", "--src", str(folder), "--jobs", "1"]) == 0
    capsys.readouterr()
    return folder


def build(cropped: Path, *options: object) -> int:
    words = ["--src", cropped, "--dst", cropped.parent, "--jobs", 1, *options]
    return cli.run(["build", *map(str, words)])


def verify(capsys: Capture, path: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    status = cli.run(["verify", str(path), "--json", "--jobs", "1", *options])
    captured = capsys.readouterr()
    return status, json.loads(captured.out), captured.err


def test_settings_of_a_build_are_in_the_manifest_and_in_info(
    cropped: Path, capsys: Capture
) -> None:
    options = ("--format", "mixed:0.5", "--shuffle", 7, "--subset", 0.5, "--page-size", "4M")
    assert build(cropped, *options, "--json") == 0
    built = json.loads(capsys.readouterr().out)["betons"]
    assert [(b["split"], b["samples"]) for b in built] == [("train", 6), ("val", 2)]
    path = cropped.parent / "train.beton"
    manifest = load_manifest(path)
    settings = dict(manifest.settings)
    assert settings.pop("crop").startswith("size=48 ")
    assert settings == {"format": "mixed:0.5", "shuffle": 7, "subset": 0.5, "page_size": 4 << 20}
    assert manifest.page_size_bytes == 4 << 20
    assert sum(manifest.formats.values()) == 6
    sheet = cropped.parent / "sheet.png"
    assert cli.run(["info", str(path), "--image", str(sheet), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["settings"] == manifest.settings
    assert about["formats"] == manifest.formats
    assert about["statistics"] == str(cropped.parent / "train.stats.npz")
    assert {row["class"] for row in about["class_samples"]} == {"ant", "bee"}
    assert sum(row["samples"] for row in about["class_samples"]) == 6
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_shuffle_off_is_the_order_of_the_paths(cropped: Path, capsys: Capture) -> None:
    assert build(cropped, "--shuffle", "off") == 0
    ordered = load_manifest(cropped.parent / "train.beton").keys
    assert list(ordered) == sorted(ordered)
    assert build(cropped) == 0
    shuffled = load_manifest(cropped.parent / "train.beton").keys
    assert shuffled != ordered and sorted(shuffled) == list(ordered)


def test_subset_is_of_each_split_and_always_the_same(cropped: Path) -> None:
    assert build(cropped, "--subset", "3") == 0
    few = load_manifest(cropped.parent / "train.beton").keys
    assert len(few) == 3
    assert load_manifest(cropped.parent / "val.beton").samples == 3
    assert build(cropped, "--subset", "0.5", "--shuffle", 5) == 0
    assert set(few) < set(load_manifest(cropped.parent / "train.beton").keys)


def test_split_builds_only_that_one(cropped: Path) -> None:
    assert build(cropped, "--split", "val") == 0
    assert sorted(path.name for path in cropped.parent.glob("*.beton")) == ["val.beton"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--format", "png"), "invalid format 'png'"),
        (("--format", "mixed:2"), "JPEG share"),
        (("--shuffle", "-1"), "neither a seed"),
        (("--shuffle", "on"), "neither a seed"),
        (("--subset", "half"), "neither a count"),
        (("--subset", "0"), "invalid subset 0"),
        (("--subset", "1.5"), "invalid subset 1.5"),
        (("--subset", "nan"), "invalid subset nan"),
        (("--page-size", "big"), "not a size"),
        (("--page-size", "3M"), "power of two"),
        (("--page-size", "1M"), "power of two"),
    ],
)
def test_options_that_mean_nothing_are_wrong_usage(
    tmp_path: Path, capsys: Capture, options: tuple[str, str], reason: str
) -> None:
    assert build(tmp_path / "cropped", *options) == 2
    assert reason in capsys.readouterr().err


def test_verify_confirms_a_valid_beton(cropped: Path, capsys: Capture) -> None:
    assert build(cropped) == 0
    capsys.readouterr()
    path = cropped.parent / "train.beton"
    status, value, errors = verify(capsys, path, "--decode")
    assert (status, errors) == (0, "")
    assert value["good"] and value["faults"] == value["damaged"] == []
    assert (value["samples"], value["pages"], value["decoded"]) == (12, 3, 12)
    assert cli.run(["verify", str(path)]) == 0
    assert "every byte is intact: 12 samples on 3 pages" in capsys.readouterr().out


def test_verify_lists_every_damaged_sample_and_ends_with_1(cropped: Path, capsys: Capture) -> None:
    assert build(cropped) == 0
    capsys.readouterr()
    path = cropped.parent / "train.beton"
    with path.open("rb+") as file:
        file.seek((2 << 20) + 700)
        file.write(b"damage")
    status, value, errors = verify(capsys, path)
    assert status == 1
    assert errors == (
        f"imagenet-prep: {path}: is damaged (12 of 12 samples); "
        "build it again with imagenet-prep build\n"
    )
    assert [damaged["key"] for damaged in value["damaged"]] == list(load_manifest(path).keys)
    assert cli.run(["verify", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "page 1 (from byte 2097152) is not what was written"
    assert len(lines) == 13 and load_manifest(path).keys[0] in lines[1]


def test_verify_of_what_is_no_beton_is_an_error_message(tmp_path: Path, capsys: Capture) -> None:
    assert cli.run(["verify", str(tmp_path / "none.beton")]) == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "text.beton").write_text("text")
    assert cli.run(["verify", str(tmp_path / "text.beton")]) == 1
    assert "is not a beton file" in capsys.readouterr().err


def test_help_of_verify_has_an_example(capsys: Capture) -> None:
    assert cli.run(["verify", "--help"]) == 0
    assert "Example: imagenet-prep verify train.beton" in capsys.readouterr().out
