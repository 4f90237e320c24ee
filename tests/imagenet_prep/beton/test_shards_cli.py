"""Shards on the command line: build, prepare, verify and info."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagenet_prep.cli import build as cli_beton
from imagenet_prep.cli import main as cli
from imagenet_prep.dataset.manifest import load_manifest
from imagenet_prep.dataset.shards import find_betons

Capture = pytest.CaptureFixture[str]


def run(*words: object) -> int:
    return cli.run(list(map(str, words)))


def answer(capsys: Capture, *words: object) -> tuple[int, dict[str, Any], str]:
    status = run(*words, "--json")
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else {}, captured.err


@pytest.fixture
def cropped(make_raw: Callable[..., Path], tmp_path: Path, capsys: Capture) -> Path:
    """Twelve crops for training and four for validation, with their statistics."""
    folder = tmp_path / "cropped"
    raw = make_raw(train=6, val=2)
    assert run("crop", "--src", raw, "--dst", folder, "--size", 48, "--jobs", 1) == 0
    assert run("stats", "--src", folder, "--jobs", 1) == 0
    capsys.readouterr()
    return folder


def test_build_verify_and_info_take_a_set_as_one(
    cropped: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ("build", "--src", cropped, "--dst", tmp_path, "--jobs", 1, "--shards", 3)
    status, built, _ = answer(capsys, *words)
    assert status == 0
    train, val = built["betons"]
    pattern = tmp_path / "train-*.beton"
    assert (train["path"], train["samples"], val["samples"]) == (str(pattern), 12, 4)
    files = [str(tmp_path / f"train-{i:05d}-of-00003.beton") for i in range(3)]
    assert train["files"] == files
    statistics = {path.name for path in tmp_path.glob("*.npz")}
    assert statistics == {"train.stats.npz", "val.stats.npz"}
    given: list[list[str]] = [[str(pattern)], files]
    for names in given:
        status, verified, _ = answer(capsys, "verify", *names, "--decode", "--jobs", 1)
        assert status == 0
        assert (verified["path"], verified["files"]) == (str(pattern), 3)
        assert (verified["good"], verified["samples"], verified["decoded"]) == (True, 12, 12)
    for names in given:
        status, about, _ = answer(capsys, "info", *names, "--image", tmp_path / "sheet.png")
        assert status == 0
        assert (about["shards"], about["files"], about["samples"]) == (3, files, 12)
        assert about["digest"] == train["digest"] == load_manifest(Path(files[0])).set
        assert sum(row["samples"] for row in about["class_samples"]) == 12
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_people_read_how_many_files_there_are(
    cropped: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert run("build", "--src", cropped, "--dst", tmp_path, "--jobs", 1, "--shards", 2) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'train-*.beton'} (2 files)" in out
    assert run("info", tmp_path / "train-00001-of-00002.beton") == 0
    assert "1 of 2" in capsys.readouterr().out


def test_verify_names_the_shard_of_a_damaged_sample(
    cropped: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert run("build", "--src", cropped, "--dst", tmp_path, "--jobs", 1, "--shards", 2) == 0
    bad = tmp_path / "train-00001-of-00002.beton"
    with bad.open("r+b") as file:
        file.seek(2 << 20)
        file.write(b"????")
    capsys.readouterr()
    status = run("verify", tmp_path / "train-*.beton", "--jobs", 1)
    captured = capsys.readouterr()
    assert status == 1
    assert captured.err.count("\n") == 1
    assert f"{tmp_path / 'train-*.beton'}: is damaged (6 of 12 samples)" in captured.err
    assert len([x for x in captured.out.splitlines() if x.startswith(f"{bad}: sample ")]) == 6


@pytest.mark.parametrize("command", ["verify", "info"])
def test_an_incomplete_set_is_refused_with_one_message(
    cropped: Path, tmp_path: Path, capsys: Capture, command: str
) -> None:
    assert run("build", "--src", cropped, "--dst", tmp_path, "--jobs", 1, "--shards", 2) == 0
    (tmp_path / "train-00001-of-00002.beton").unlink()
    capsys.readouterr()
    assert run(command, tmp_path / "train-*.beton") == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "1 of 2 shards are missing" in captured.err


def test_prepare_builds_shards_and_reports_conflicts_first(
    make_raw: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    raw, dst = make_raw(train=6, val=2), tmp_path / "made"
    words = ("prepare", "--src", raw, "--dst", dst, "--size", 48, "--jobs", 1)
    assert run(*words, "--shard-size", "5MB") == 0
    assert find_betons(dst / "train-*.beton").manifest.samples == 12
    assert find_betons(dst / "val-*.beton").manifest.settings["shard_size"] == 5_000_000
    assert run(*words, "--shards", 1) == 0
    capsys.readouterr()
    (dst / "cropped" / "crop.sqlite").unlink()
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "train-00000-of-00001.beton: belongs to another build" in captured.err
    assert not (dst / "cropped" / "crop.sqlite").exists()  # nothing was begun


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4_000_000_000),
        ("500MB", 500_000_000),
        ("4GiB", 4 << 30),
        ("4G", 4 << 30),
        ("1.5TB", 1_500_000_000_000),
        ("0.5KiB", 512),
        ("123456", 123_456),
        ("10B", 10),
    ],
)
def test_sizes_are_written_as_people_do(text: str, size: int) -> None:
    assert cli_beton._size(None, None, text) == size  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shard-size", "4 gigs"), "is not a size such as"),
        (("--shard-size", "0"), "is not a size such as"),
        (("--shard-size", "-4GB"), "is not a size such as"),
        (("--shard-size", "2MB"), "do not hold one page"),
        (("--shards", "0"), "0 is not in the range"),
        (("--shards", "13"), "the 12 samples of train cannot fill 13 files"),
        (("--shards", "2", "--shard-size", "4GB"), "exclude each other"),
        (("--shards", "13", "--subset", "11"), "the 11 samples of train cannot fill 13 files"),
    ],
)
def test_shards_that_cannot_be_are_one_message_and_status_2(
    cropped: Path, tmp_path: Path, capsys: Capture, options: tuple[str, ...], message: str
) -> None:
    dst = tmp_path / "out"
    assert run("build", "--src", cropped, "--dst", dst, "--jobs", 1, *options) == 2
    assert message in capsys.readouterr().err
    assert not dst.exists()


KILLED = """
import os, signal, sys
from imagenet_prep.beton import build as beton
from imagenet_prep.cli import main as cli

moment, words = sys.argv[1], sys.argv[2:]
written = []

def dies(*given, **named):
    written.append(given)
    if moment == "filling" or len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    real(*given, **named)

if moment == "filling":
    beton.fill = dies
else:
    real, beton.save_manifest = beton.save_manifest, dies
cli.run(words)
"""


@pytest.mark.parametrize("moment", ["filling", "manifests"])
def test_a_killed_build_leaves_whole_files_and_can_be_continued(
    cropped: Path, tmp_path: Path, capsys: Capture, moment: str
) -> None:
    dst, undisturbed = tmp_path / "made", tmp_path / "undisturbed"
    words = ["build", "--src", cropped, "--jobs", 1, "--shards", 3, "--split", "train", "--dst"]
    assert run(*words, undisturbed) == 0
    command = [sys.executable, "-c", KILLED, moment, *map(str, words), str(dst)]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    pattern = dst / "train-*.beton"
    whole = {path.name for path in dst.glob("train-*.beton")}
    for name in whole:
        assert (dst / name).read_bytes() == (undisturbed / name).read_bytes()
    assert len(whole) == (0 if moment == "filling" else 3)
    capsys.readouterr()
    assert run("verify", pattern) in (1, 2)
    assert capsys.readouterr().err.count("\n") == 1
    assert run(*words, dst) == 0
    found, expected = ({p.name: p.read_bytes() for p in x.iterdir()} for x in (dst, undisturbed))
    assert found == expected
