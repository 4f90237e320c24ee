"""Shards on trainer's command line: run, eval and doctor take a pattern for one data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagenet_prep.core.errors import UsageError
from tests.kit.loading import Sample
from tests.trainer.loader.test_shards import build
from trainer.checkpoint import load_checkpoint
from trainer.cli import main as trainer_cli
from trainer.data import find_data

Capture = pytest.CaptureFixture[str]


def run(*words: object) -> int:
    return trainer_cli.run_trainer(list(map(str, words)))


@pytest.fixture
def places(small_beton: Sample, tiny_network: str, tmp_path: Path) -> Callable[..., Path]:
    """Folders with train and val (the same images), in one file each or in shards."""

    def make(**packing: Any) -> Path:
        folder = tmp_path / "-".join(["data", *map(str, packing.values())])
        for split in ("train", "val"):
            build(small_beton, folder, split=split, **packing)
        return folder

    return make


RUN = (
    *("--network", "tiny", "--epochs", 2, "--batch-size", 8, "--crop-size", 56, "--jobs", 1),
    *("--device", "cpu", "--precision", "float32"),
)


def weights(folder: Path) -> dict[str, list[float]]:
    model = load_checkpoint(folder / "last.pt").model
    return {name: value.flatten().tolist() for name, value in model.items()}


def last_object(capture: Capture) -> dict[str, Any]:
    value = json.loads(capture.readouterr().out.splitlines()[-1])
    assert isinstance(value, dict)
    return value


def test_a_run_on_shards_gives_the_weights_of_one_on_one_file(
    places: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    one, many = places(), places(shards=4)
    assert run("run", "--beton", one / "train.beton", "--out", tmp_path / "one", *RUN) == 0
    pattern = many / "train-*.beton"
    assert run("run", "--beton", pattern, "--out", tmp_path / "many", *RUN) == 0
    assert weights(tmp_path / "many") == weights(tmp_path / "one")
    capsys.readouterr()
    best = tmp_path / "many" / "best.pt"
    found = []
    for beton in (one / "val.beton", many / "val-*.beton"):
        assert run("eval", "--checkpoint", best, "--beton", beton, "--jobs", 1, "--json") == 0
        found.append({k: v for k, v in last_object(capsys).items() if k != "seconds"})
    assert found[0] == found[1]
    assert found[0]["images"] == 25
    image = tmp_path / "grid.png"
    words = ("eval", "--checkpoint", best, "--beton", many / "val-*.beton", "--jobs", 1)
    assert run(*words, "--image", image) == 0
    assert image.read_bytes().startswith(b"\x89PNG")
    assert run("run", "--beton", pattern, "--out", tmp_path / "many", *RUN, "--resume") == 0


def test_the_doctor_measures_shards(places: Callable[..., Path], capsys: Capture) -> None:
    words = ("--network", "tiny", "--batch-size", 8, "--crop-size", 56, "--jobs", 1)
    pattern = places(shards=3) / "train-*.beton"
    assert run("doctor", "--beton", pattern, *words, "--seconds", 0.05, "--json") == 0
    disk = last_object(capsys)["stages"][0]
    assert disk["name"] == "disk"
    assert disk["images_per_second"] > 0


@pytest.mark.parametrize("command", ["run", "eval", "doctor"])
def test_a_pattern_that_the_shell_expanded_gets_an_explanation(
    places: Callable[..., Path], tmp_path: Path, capsys: Capture, command: str
) -> None:
    folder = places(shards=2)
    betons = sorted(folder.glob("train-*.beton"))
    extra = ["--checkpoint", tmp_path / "best.pt"] if command == "eval" else []
    assert run(command, *extra, "--beton", *betons) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert f"so that the shell does not expand it: --beton '{folder}" in errors


@pytest.mark.parametrize("command", ["run", "eval", "doctor"])
def test_an_incomplete_set_is_refused(
    places: Callable[..., Path], tmp_path: Path, capsys: Capture, command: str
) -> None:
    folder = places(shards=2)
    (folder / "train-00000-of-00002.beton").unlink()
    extra: list[object] = []
    if command == "eval":
        assert run("run", "--beton", places() / "train.beton", "--out", tmp_path / "r", *RUN) == 0
        extra = ["--checkpoint", tmp_path / "r" / "best.pt"]
    elif command == "run":
        extra = ["--out", tmp_path / "r"]
    capsys.readouterr()
    assert run(command, "--beton", folder / "train-*.beton", *extra) == 1
    captured = capsys.readouterr()
    assert "1 of 2 shards" in captured.err
    assert captured.err.count("\n") == 1


def test_data_of_a_run_know_their_validation_shards(places: Callable[..., Path]) -> None:
    folder = places(shards=3)
    data = find_data(folder / "train-*.beton")
    assert data.validation is not None
    assert [path.name for path in data.validation.paths] == [
        f"val-{i:05d}-of-00003.beton" for i in range(3)
    ]
    assert data.manifest.samples == 25
    (folder / "val.beton").touch()
    with pytest.raises(UsageError, match="only one of them can be the validation set"):
        find_data(folder / "train-*.beton")
