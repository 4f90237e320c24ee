"""What a run leaves behind: metrics, TensorBoard events, the environment, kernels."""

from __future__ import annotations

import getpass
import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from imagenet_prep.core.errors import ToolError
from trainer.report.environment import _commit, environment_stamp
from trainer.report.image_grid import kernel_grid, sample_grid
from trainer.report.metrics import RunRecorder, read_metrics

MADE_ROW: dict[str, float | int] = {
    "train_loss": 2.0,
    "val_loss": 1.5,
    "train_top1_error": 50.0,
    "val_top1_error": 40.0,
    "train_top5_error": 20.0,
    "val_top5_error": 10.0,
    "lr": 0.01,
    "images_per_second": 100.0,
    "wait_share": 0.1,
    "seconds": 3.0,
}


def events(folder: Path) -> EventAccumulator:
    """The event files of one folder, read back by TensorBoard."""
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, round(event.value, 4)) for event in events(folder).Scalars(tag)]


def record(folder: Path, first: int, last: int, **options: Any) -> None:
    """Epochs ``first`` to ``last``, two steps each; the loss is the epoch's number."""
    with RunRecorder(folder, **options) as recorder:
        for epoch in range(first, last + 1):
            for step in (2 * epoch - 2, 2 * epoch - 1):
                recorder.step(epoch, step, {"train_loss": float(step)})
            recorder.epoch(MADE_ROW | {"epoch": epoch, "train_loss": float(epoch)})


def test_metrics_are_read_back_in_order(tmp_path: Path) -> None:
    record(tmp_path, 1, 2, append=False)
    rows = read_metrics(tmp_path)
    assert [(row["kind"], row["epoch"]) for row in rows] == [
        ("step", 1),
        ("step", 1),
        ("epoch", 1),
        ("step", 2),
        ("step", 2),
        ("epoch", 2),
    ]
    assert rows[-1] == MADE_ROW | {"kind": "epoch", "epoch": 2, "train_loss": 2.0}
    assert rows[-2] == {"kind": "step", "epoch": 2, "step": 3, "train_loss": 3.0}


def test_a_line_is_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    with RunRecorder(tmp_path, append=False) as recorder:
        recorder.step(1, 0, {"train_loss": 1.0})
        assert len(read_metrics(tmp_path)) == 1


def test_what_is_not_finite_stays_json(tmp_path: Path) -> None:
    with RunRecorder(tmp_path, append=False) as recorder:
        recorder.epoch({"epoch": 1, "train_loss": float("nan"), "lr": float(np.float32(0.5))})
    (row,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(row, parse_constant=pytest.fail) == {
        "kind": "epoch",
        "epoch": 1,
        "train_loss": None,
        "lr": 0.5,
    }


def test_tensorboard_reads_the_scalars_and_the_kernels(tmp_path: Path) -> None:
    image = np.zeros((6, 9, 3), np.uint8)
    with RunRecorder(tmp_path, append=False) as recorder:
        for epoch in (1, 2):
            recorder.step(epoch, epoch, {"train_loss": 4.0})
            recorder.epoch(MADE_ROW | {"epoch": epoch})
        recorder.kernels(2, image)
    expected = {
        "loss/train": 2.0,
        "loss/val": 1.5,
        "top1_error/train": 50.0,
        "top1_error/val": 40.0,
        "top5_error/train": 20.0,
        "top5_error/val": 10.0,
        "lr": 0.01,
        "images_per_second": 100.0,
        "wait_share": 0.1,
    }
    assert sorted(events(tmp_path).Tags()["scalars"]) == sorted(expected)
    for tag, value in expected.items():
        assert scalars(tmp_path, tag) == [(1, value), (2, value)]
    (image,) = events(tmp_path).Images("first_layer")
    assert (image.step, image.height, image.width) == (2, 6, 9)
    assert scalars(tmp_path / "steps", "loss/train") == [(1, 4.0), (2, 4.0)]


def test_a_resumed_run_goes_on_after_the_epoch_it_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Event files of one second and process sort by a counter, wrongly from 9 to 10; real
    # runs of one folder are seconds and processes apart.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    record(tmp_path, 1, 3, append=False)
    record(tmp_path, 3, 4, append=True, keep_until_epoch=2)
    rows = read_metrics(tmp_path)
    assert [row["epoch"] for row in rows if row["kind"] == "epoch"] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(8))
    assert scalars(tmp_path, "loss/train") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert [step for step, _ in scalars(tmp_path / "steps", "loss/train")] == list(range(8))


def test_a_torn_last_line_is_left_out_and_cut_on_append(tmp_path: Path) -> None:
    record(tmp_path, 1, 1, append=False)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "epoch", "epo')
    assert len(read_metrics(tmp_path)) == 3
    with RunRecorder(tmp_path, append=True):
        assert path.read_bytes() == whole
    path.write_bytes(whole.rstrip(b"\n"))
    assert len(read_metrics(tmp_path)) == 2


def test_a_fresh_run_forgets_the_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    record(tmp_path, 1, 3, append=False)
    (tmp_path / "notes.txt").write_text("mine")
    record(tmp_path, 1, 1, append=False)
    assert len(read_metrics(tmp_path)) == 3
    assert scalars(tmp_path, "loss/train") == [(1, 1.0)]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_missing_and_damaged_metrics_are_named(tmp_path: Path) -> None:
    with pytest.raises(ToolError) as missing:
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\nbroken\n{"epoch": 2}\n')
    with pytest.raises(ToolError) as damaged:
        read_metrics(tmp_path)
    with pytest.raises(ToolError, match="line 2 is damaged"):
        RunRecorder(tmp_path, append=True)
    assert [missing.value.code, damaged.value.code] == ["metrics.missing", "metrics.damaged"]


def test_each_kernel_fills_the_range_around_grey() -> None:
    weights = np.zeros((3, 3, 11, 11), np.float32)
    weights[0, :, 0, 0] = (1e-3, -1e-3, 0)
    weights[1, 1, 10, 10] = -7
    image = kernel_grid(weights, columns=2)
    side = 44
    assert image.shape == (1 + 2 * (side + 1), 1 + 2 * (side + 1), 3)
    assert image.dtype == np.uint8
    assert image[1, 1].tolist() == [255, 0, 128]
    assert image[side, 2 * side + 1].tolist() == [128, 0, 128]
    assert (image[side + 2 : -1, 1 : side + 1] == 128).all()
    assert (image[side + 2 :, side + 1 :] == 255).all()
    for border in (image[0], image[:, 0], image[side + 1], image[:, side + 1]):
        assert (border == 255).all()


def test_weights_that_are_not_finite_are_grey() -> None:
    weights = np.full((1, 3, 3, 3), np.nan, np.float32)
    assert (kernel_grid(weights, 1)[1:-1, 1:-1] == 128).all()


@pytest.mark.parametrize("shape", [(4, 2, 3, 3), (4, 3, 3), (0, 3, 3, 3)])
def test_other_weights_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot draw kernels"):
        kernel_grid(np.zeros(shape, np.float32), 4)


def test_the_stamp_names_versions_and_no_person() -> None:
    stamp = environment_stamp()
    text = json.dumps(stamp)
    assert stamp["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert ("pillow-simd" in stamp["versions"]) == stamp["pillow_simd"]
    assert stamp["cpu"]["model"]
    assert set(stamp["cpu"]["flags"]) >= {"bf16", "avx512_bf16", "amx_tile"}
    assert stamp["threads"] >= 1
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text
    words = {word.strip('",:[]{}') for word in text.split()}
    assert words.isdisjoint({socket.gethostname(), getpass.getuser()})


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_the_commit_is_that_of_the_checkout_and_marks_changes(tmp_path: Path) -> None:
    assert _commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert _commit(tmp_path) is None
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "a")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert _commit(tmp_path) == commit
    (tmp_path / "a").write_text("2")
    assert _commit(tmp_path) == commit + "+"
    (tmp_path / "inner").mkdir()
    assert _commit(tmp_path / "inner") is None


def test_a_sample_batch_is_shown_around_mid_grey() -> None:
    images = np.zeros((3, 3, 5, 5), np.float32)
    images[1, 0] = 60.0
    images[2, 2] = -30.0
    image = sample_grid(images)
    assert image.shape == (13, 13, 3)
    assert image[1, 1].tolist() == [128, 128, 128]
    assert image[1, 7].tolist() == [255, 128, 128]
    assert image[7, 1].tolist() == [128, 128, 64]
    assert (image[7:12, 7:12] == 255).all()  # no fourth image


def test_tensorboard_shows_the_layers_in_order_with_their_shapes(tmp_path: Path) -> None:
    with RunRecorder(tmp_path, append=False) as recorder:
        recorder.graph([("features.0", "Conv2d", (96, 55, 55)), ("classifier.6", "Linear", (10,))])
    graph = events(tmp_path).Graph()
    assert [(node.name, node.op, list(node.input)) for node in graph.node] == [
        ("images", "Placeholder", []),
        ("features/0", "Conv2d", ["images"]),
        ("classifier/6", "Linear", ["features/0"]),
    ]
    shapes = [
        [dim.size for dim in node.attr["_output_shapes"].list.shape[0].dim]
        for node in graph.node[1:]
    ]
    assert shapes == [[-1, 96, 55, 55], [-1, 10]]
