"""The trainer command: words that scripts rely on, error messages, statuses, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from tests.kit.command import REPOSITORY
from trainer.cli import main as trainer_cli
from trainer.cli.run import _epoch_line

if TYPE_CHECKING:
    from collections.abc import Callable

    Capture = pytest.CaptureFixture[str]


def run(*words: str | Path) -> int:
    """``trainer WORDS`` in this process -> its exit status."""
    return trainer_cli.run_trainer([str(word) for word in words])


@pytest.fixture
def prepared(make_raw: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder with train.beton and val.beton, made by imagenet-prep from raw images."""
    from imagenet_prep.cli.main import run as prep

    raw = make_raw(train=5, val=3)
    out = tmp_path / "out"
    words = ["prepare", "--src", raw, "--dst", out, "--jobs", "1", "--size", "240", "--json"]
    assert prep([str(word) for word in words]) == 0
    return out


def last_object(capture: Capture) -> dict[str, Any]:
    """The JSON object that a command printed last on stdout."""
    value = json.loads(capture.readouterr().out.splitlines()[-1])
    assert isinstance(value, dict)
    return value


def test_run_eval_and_predict_from_raw_images(
    prepared: Path, make_raw: Callable[..., Path], capsys: Capture
) -> None:
    beton, out = prepared / "train.beton", prepared / "run"
    options = ["--epochs", "2", "--batch-size", "5", "--jobs", "1", "--device", "cpu"]
    assert run("run", "--beton", beton, "--out", out, *options) == 0
    text = capsys.readouterr().out
    assert "epoch   2/2" in text
    assert "waiting for data" in text
    assert "report.html" in text
    assert "validation top-1 error" in text
    assert "top-5" not in text  # two classes: any answer is among the five likeliest
    best = out / "best.pt"
    words: list[str | Path] = ["eval", "--checkpoint", best, "--beton", prepared / "val.beton"]
    assert run(*words, "--table") == 0
    text = capsys.readouterr().out
    assert "top-1 error" in text
    assert "top-5" not in text
    assert run("eval", "--checkpoint", best, "--beton", prepared / "val.beton", "--json") == 0
    value = last_object(capsys)
    assert {"loss", "top1_error", "top5_error", "images"} <= set(value)
    assert value["images"] == 6
    images = make_raw(train=1, val=1, name="others")
    assert run("predict", "--checkpoint", best, images, "--json") == 0
    rows = last_object(capsys)["predictions"]
    assert len(rows) == 4
    assert {guess["class"] for guess in rows[0]["classes"]} == {"ant", "bee"}
    assert run("run", "--beton", beton, "--out", out, *options) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert run("run", "--beton", beton, "--out", out, "--resume", *options) == 0
    (out / "last.pt").unlink()
    assert run("run", "--beton", beton, "--out", out, *options) == 2
    assert "already holds a run (config.json)" in capsys.readouterr().err
    assert best.exists()


def test_version_is_the_one_of_the_project(capsys: Capture) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == f"trainer, version {project['version']}"


@pytest.mark.parametrize(("in_steps", "named"), [(0.4, True), (0.9, False)])
def test_an_epochs_line_names_the_time_that_checkpoints_took(in_steps: float, named: bool) -> None:
    row = {
        **dict.fromkeys(("train_loss", "train_top1_error", "train_top5_error"), 1.0),
        **{"epoch": 1, "images_per_second": 9.0, "wait_share": 0.1, "step_share": in_steps},
    }
    assert ("50.0 % writing checkpoints" in _epoch_line(row, 3, top5=True)) is named


def test_an_epochs_line_has_top5_error_and_image_side() -> None:
    row: dict[str, Any] = {"epoch": 1, "images_per_second": 9.0, "image_px": 67}
    for part in ("train", "val"):
        row |= {f"{part}_loss": 1.0, f"{part}_top1_error": 20.0, f"{part}_top5_error": 3.5}
    both = "top-1 error 20.00 %, top-5  3.50 %"
    assert _epoch_line(row, 3, top5=True).count(both) == 2
    assert "9 images/s of 67 px" in _epoch_line(row, 3, top5=True)
    assert "top-5" not in _epoch_line(row, 3, top5=False)


def test_the_list_of_commands_shortens_no_text(capsys: Capture) -> None:
    assert run("--help") == 0
    commands = capsys.readouterr().out.split("Commands:")[1]
    assert "doctor " in commands
    assert "..." not in commands


def test_summary_prints_parameters(capsys: Capture) -> None:
    assert run("summary", "--network", "paper", "--json") == 0
    assert last_object(capsys)["parameters"] == 62_378_344
    assert run("summary", "--network", "torchvision", "--classes", "2") == 0
    text = capsys.readouterr().out
    assert "57,012,034" in text
    assert "multiply-adds" in text


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["run", "--beton", "nowhere.beton"], 2, "nowhere.beton: no such file"),
        (["run", "--beton", "x.beton", "--epochs", "0"], 2, "--epochs"),
        (["run", "--beton", "x.beton", "--preset", "huge"], 2, "choose from small"),
        (["run"], 2, "--beton"),
        (["summary", "--network", "resnet"], 2, "--network resnet: does not exist"),
        (["eval", "--checkpoint", "no.pt", "--beton", "x.beton"], 2, "no such"),
        (["predict", "--checkpoint", "no.pt", "no.jpg"], 2, "no such image"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_mistakes_are_one_error(
    words: list[str], status: int, message: str, tmp_path: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.beton").write_text("text", encoding="utf-8")
    assert run(*words) == status
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_damaged_inputs_end_with_status_one(prepared: Path, capsys: Capture) -> None:
    text = prepared / "text.beton"
    text.write_text("not a beton", encoding="utf-8")
    assert run("run", "--beton", text) == 1
    shown = capsys.readouterr()
    assert "is not a beton file" in shown.err
    assert not shown.out  # nothing is announced that cannot begin
    beton = prepared / "train.beton"
    beton.write_bytes(beton.read_bytes()[: beton.stat().st_size // 2])
    assert run("run", "--beton", beton) == 1
    assert "bytes instead of" in capsys.readouterr().err
    foreign = prepared / "foreign.pt"
    foreign.write_text("not a checkpoint", encoding="utf-8")
    assert run("eval", "--checkpoint", foreign, "--beton", prepared / "val.beton") == 1
    assert "is not a checkpoint" in capsys.readouterr().err


def test_cuda_without_a_device_is_an_error(prepared: Path, capsys: Capture) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert run("run", "--beton", prepared / "train.beton", "--device", "cuda") == 2
    assert "no usable CUDA device" in capsys.readouterr().err


def test_every_command_has_help_with_an_example(capsys: Capture) -> None:
    for name in trainer_cli.cli.commands:
        assert run(name, "--help") == 0
        assert "Example: trainer" in capsys.readouterr().out
    assert isinstance(trainer_cli.cli, click.Group)
    assert run("--help") == 0


def test_ctrl_c_ends_training_with_130_and_it_can_be_resumed(prepared: Path) -> None:
    out = prepared / "run"
    words = ["run", "--beton", "train.beton", "--out", "run", "--epochs", "100000"]
    words += ["--batch-size", "5", "--jobs", "1", "--device", "cpu", "--precision", "float32"]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", *words],
        cwd=prepared,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch   1/"):
            break
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "stopped by a signal" in errors
    assert (out / "last.pt").exists()
    assert not list(out.glob(".*.tmp"))
