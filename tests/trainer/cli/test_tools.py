"""eval, predict, export, doctor, presets and resuming, on one short run of the command itself."""

from __future__ import annotations

import csv
import io
import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

from tests.kit.command import REPOSITORY
from tests.kit.short_run import SPEC
from trainer.cli import main as trainer_cli
from trainer.cli.options import Duration, print_json
from trainer.network.alexnet import NETWORKS

Capture = pytest.CaptureFixture[str]


def run(*words: str | Path) -> int:
    """``trainer WORDS`` in this process -> its exit status."""
    return trainer_cli.run_trainer([str(word) for word in words])


def last_object(capture: Capture) -> dict[str, Any]:
    value = json.loads(capture.readouterr().out.splitlines()[-1])
    assert isinstance(value, dict)
    return value


@pytest.fixture(scope="module")
def network() -> Iterator[str]:
    NETWORKS["short"] = SPEC
    yield "short"
    del NETWORKS["short"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with raw/, train.beton and val.beton of three classes."""
    from imagenet_prep.cli.main import run as prep

    folder = tmp_path_factory.mktemp("tools")
    y, x = np.mgrid[0:80, 0:90]
    for split, count in (("train", 6), ("val", 3)):
        for label, name in enumerate(("ant", "bee", "cat")):
            for index in range(count):
                wave = 127 + 100 * np.sin(x / (2 + label) + y / (9 - index))
                pixels = np.stack([wave, wave[::-1], 255 - wave], axis=-1).astype(np.uint8)
                path = folder / "raw" / split / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    words = ["prepare", "--src", folder / "raw", "--dst", folder, "--jobs", "1", "--size", "240"]
    assert prep([str(word) for word in words]) == 0
    return folder


def options(place: Path, out: Path) -> list[str | Path]:
    return [
        *("run", "--beton", place / "train.beton", "--out", out, "--network", "short"),
        *("--epochs", "1", "--batch-size", "6", "--crop-size", "200", "--jobs", "1"),
        *("--device", "cpu", "--precision", "float32", "--average", "0.5"),
    ]


@pytest.fixture(scope="module")
def folder(place: Path, network: str) -> Path:
    """The folder of a run of one epoch."""
    assert run(*options(place, place / "run")) == 0
    return place / "run"


def test_eval_takes_ten_views_and_shows_classes_and_confusion(
    folder: Path, place: Path, capsys: Capture
) -> None:
    words: list[str | Path] = [
        "eval",
        "--checkpoint",
        folder / "best.pt",
        "--beton",
        place / "val.beton",
    ]
    assert run(*words, "--views", "10", "--json") == 0
    value = last_object(capsys)
    assert (value["views"], value["images"]) == (10, 9)
    assert [row["images"] for row in value["classes"]] == [3, 3, 3]
    assert np.array(value["confusion"]).sum() == 9
    hits = np.trace(np.array(value["confusion"]))
    assert value["top1_error"] == pytest.approx(100 * (1 - hits / 9))
    assert run(*words, "--table") == 0
    text = capsys.readouterr().out
    assert "most often taken for" in text
    assert "true class \\ predicted" in text
    assert "2: cat" in text
    grid = place / "eval.png"
    assert run(*words, "--image", grid) == 0
    with Image.open(grid) as image:
        assert image.size == (3 * 236 + 12, 3 * 268 + 12)
    assert run(*words, "--views", "7") == 2


def test_predict_draws_the_images(folder: Path, place: Path, capsys: Capture) -> None:
    grid = place / "grid.png"
    (place / "raw" / "broken.jpg").write_text("no image")
    inputs: list[str | Path] = [place / "raw" / "val" / "ant", place / "raw" / "broken.jpg"]
    assert run("predict", "--checkpoint", folder / "best.pt", "--image", grid, *inputs) == 0
    printed = capsys.readouterr()
    assert "broken.jpg" in printed.err
    assert "of 3 correct (" in printed.out
    with Image.open(grid) as image:
        assert image.format == "PNG"
        assert image.size[0] > 2 * 224


def test_predict_writes_csv(folder: Path, place: Path, capsys: Capture) -> None:
    words: list[str | Path] = ["predict", "--checkpoint", folder / "best.pt", "--top", "2"]
    assert run(*words, "--csv", place / "raw" / "val" / "ant") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["rank"] for row in rows] == ["1", "2"] * 3
    assert {row["class"] for row in rows} <= {"ant", "bee", "cat"}
    assert all(0 <= float(row["probability"]) <= 1 for row in rows)
    assert run(*words, "--csv", "--json", place / "raw") == 2


def test_compare_shows_settings_that_differ_and_curves(
    folder: Path, place: Path, network: str, capsys: Capture
) -> None:
    other = place / "other"
    assert run(*options(place, other), "--lr", "0.002", "--seed", "5") == 0
    curves = place / "curves.png"
    capsys.readouterr()
    assert run("compare", folder, other, "--image", curves) == 0
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["lr"].split()[1:] == ["0.0004", "0.002"]
    assert lines["seed"].split()[1:] == ["0", "5"]
    assert "epochs" not in lines  # the same in both
    assert lines["best epoch"].split()[2:] == ["1", "1"]
    with Image.open(curves) as image:
        assert image.format == "PNG"
    assert run("compare", folder, other, "--json") == 0
    value = last_object(capsys)
    assert value["settings"]["lr"] == [0.0004, 0.002]
    assert [one["rows"][0]["epoch"] for one in value["runs"]] == [1, 1]
    assert run("compare", folder, place) == 1
    assert "holds no run" in capsys.readouterr().err


def test_json_has_no_nan(capsys: Capture) -> None:
    print_json({"loss": math.nan, "rows": [{"error": -math.inf}, (1.5, None)]})
    assert last_object(capsys) == {"loss": None, "rows": [{"error": None}, [1.5, None]]}


@pytest.mark.parametrize(
    ("text", "seconds"), [("11h30m", 41400.0), ("90s", 90.0), ("2d", 172800.0), ("45", 2700.0)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds
    for wrong in ("0m", "soon", "1h-3m", ""):
        with pytest.raises(click.UsageError):
            Duration().convert(wrong, None, None)


def test_a_rank_of_a_scheduler_is_one_process(
    place: Path, network: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run(*options(place, place / "ranked")) == 0
    assert run(*options(place, place / "ranked")) == 2  # it sees the run that is there
    assert "already holds a run" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(*options(place, place / "ranked-2")) == 2
    assert "MASTER_ADDR" in capsys.readouterr().err


def test_a_run_outlives_closed_output(place: Path) -> None:
    words = [str(word) for word in options(place, place / "closed")]
    words[words.index("--network") + 1] = "miniature"
    for number, close in enumerate(("1>&- 2>&-", "| true")):
        out = place / f"closed{number}"
        words[words.index("--out") + 1] = str(out)
        shell = f"{sys.executable} -m trainer {' '.join(words)} {close}"
        status = "; exit ${PIPESTATUS[0]}"
        ended = subprocess.run(
            ["bash", "-c", shell + status], cwd=REPOSITORY,
            stderr=subprocess.PIPE, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        assert (out / "report.html").exists()


def test_export_writes_a_network_and_what_it_wants(folder: Path, capsys: Capture) -> None:
    words: list[str | Path] = ["export", "--checkpoint", folder / "best.pt"]
    words += ["--format", "torch-export"]
    assert run(*words, "--json") == 0
    value = last_object(capsys)
    assert Path(value["file"]) == folder / "best.pt2"
    assert value["difference"] < 1e-3
    assert json.loads(Path(value["description"]).read_text())["preparation"]["crop"]["size"] == 200
    assert np.load(value["mean"]).shape == (240, 240, 3)
    assert run("export", "--checkpoint", folder / "lost.pt") == 2
    assert "no such checkpoint" in capsys.readouterr().err


def test_doctor_shows_a_bar_for_each_stage_and_a_verdict(
    place: Path, network: str, capsys: Capture
) -> None:
    words: list[str | Path] = ["doctor", "--beton", place / "train.beton", "--network", "short"]
    words += ["--batch-size", "6", "--seconds", "0.05", "--jobs", "1", "--device", "cpu"]
    assert run(*words) == 0
    text = capsys.readouterr().out
    for stage in ("disk", "decode", "step", "together"):
        assert any(line.startswith(stage) and "█" in line for line in text.splitlines())
    assert "limits this run" in text
    assert run(*words, "--crop-size", "9999") == 2
    assert "crop_size is 9999" in capsys.readouterr().err
    assert run(*words, "--json") == 0
    value = last_object(capsys)
    assert value["limit"] in ("disk", "decode", "step", "evaluation")
    assert len(value["stages"]) >= 4


def test_presets_are_listed_and_shown_with_everything(capsys: Capture) -> None:
    assert run("presets") == 0
    text = capsys.readouterr().out
    names = ("paper", "original-2012", "tutorial-imagenet", "tiny-imagenet", "fashion-mnist")
    for name in (*names, "cat-fish", "cats-dogs", "torchvision", "best"):
        assert f"\n{name} " in f"\n{text}"
    assert run("presets", "original-2012") == 0
    text = capsys.readouterr().out
    assert "trainer run --beton train.beton --preset original-2012" in text
    assert "40.66" in text
    assert "Not run here" in text
    assert "25, 51, 79" in text
    assert run("presets", "original-2012", "--json") == 0
    assert last_object(capsys)["settings"]["bias_rate"] == 2.0
    assert run("presets", "alexnet") == 2
    assert "choose from small" in capsys.readouterr().err


def test_resuming_another_recipe_asks_for_force(
    folder: Path, place: Path, network: str, capsys: Capture
) -> None:
    other = [*options(place, folder), "--resume", "--preset", "demo", "--optimizer", "adam"]
    assert run(*other) == 1
    error = capsys.readouterr().err
    assert "preset small there and demo here" in error
    assert "optimizer adamw there and adam here" in error
    assert "--force" in error
    assert run(*options(place, place / "nowhere"), "--resume") == 2
    assert "no run to resume" in capsys.readouterr().err
    assert run(*options(place, folder), "--force") == 2
    assert "--force needs --resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--drops", "3,x"], "is not a list of integers"),
        (["--drops", "3,5"], "--drops has no effect without --schedule drops"),
        (["--momentum", "0.9"], "--momentum has no effect without --optimizer sgd"),
        (["--freeze-epoch", "3"], "--freeze"),
        (["--epochs", "2", "--warmup-epochs", "3"], "longer than the run of 2 epochs"),
        (["--resume", "--overwrite"], "exclude each other"),
        (["--schedule", "plateau"], "plateau"),
    ],
)
def test_wrong_combinations_are_one_error(
    words: list[str], message: str, place: Path, tmp_path: Path, capsys: Capture
) -> None:
    # Without a validation set beside it.
    for suffix in (".beton", ".beton.json", ".stats.npz"):
        (tmp_path / f"train{suffix}").write_bytes((place / f"train{suffix}").read_bytes())
    out = tmp_path / "run"
    assert run("run", "--beton", tmp_path / "train.beton", "--out", out, *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_help_of_run_has_headings_and_every_setting(capsys: Capture) -> None:
    from trainer.config.run_config import SETTINGS

    assert run("run", "--help") == 0
    text = capsys.readouterr().out
    for declared in SETTINGS.values():
        assert declared.flag in text
        assert f"{declared.heading}:" in text


_LONG_CALL = """
import sys
import numpy as np
from trainer.interrupt import InterruptGuard, Stop

guard, stop = InterruptGuard().start(), Stop()
guard.stop_request = stop
with stop.listening():
    print("ready", flush=True)
    for _ in range(1000):
        np.linalg.svd(np.ones((2000, 2000)))
print("finished")
"""


def test_a_second_ctrl_c_ends_even_a_long_call_at_once() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _LONG_CALL], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    # Two of a kind may arrive as one; whoever wants to leave goes on pressing.
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == 130
    assert process.stdout.read() == ""
    process.stdout.close()
