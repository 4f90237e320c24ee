"""Trackers besides TensorBoard, with small packages in the place of the real ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.kit.errors import fails
from trainer.training.trackers import IDS_NAME, start_trackers

# What trackers.py uses of each package, writing its calls to calls.jsonl in the working folder.
_WANDB = """
import json, pathlib
def write(*call):
    with pathlib.Path("calls.jsonl").open("a") as file:
        file.write(json.dumps(call) + "\\n")
class Run:
    def __init__(self, id): self.id = id or "new"
    def log(self, values, step): write("log", values, step)
    def finish(self): write("finish")
def init(*, project, name, dir, config, id, resume):
    write("init", project, name, config["run"]["lr"], id, resume)
    return Run(id)
"""
_MLFLOW = """
import json, pathlib, types
def write(*call):
    with pathlib.Path("calls.jsonl").open("a") as file:
        file.write(json.dumps(call) + "\\n")
def set_experiment(name): write("experiment", name)
def start_run(run_id, run_name):
    write("start", run_id, run_name)
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or "new"))
def log_params(values): write("params", values)
def log_metrics(values, step): write("metrics", values, step)
def end_run(): write("end")
"""


@pytest.mark.parametrize(("name", "source"), [("wandb", _WANDB), ("mlflow", _MLFLOW)])
def test_figures_go_to_the_tracker_and_a_resumed_run_keeps_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    folder = tmp_path / "small-2"
    folder.mkdir()
    row = {"epoch": 3, "train_loss": 1.5, "by_rank": {"wait_share": [0.1]}}
    for _ in range(2):
        (tracker,) = start_trackers((name,), folder, {"run": {"lr": 0.5}})
        tracker.epoch(row)
        tracker.close()
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    metrics = [call[1:] for call in calls if call[0] in ("log", "metrics")]
    assert metrics == [[{"train_loss": 1.5}, 3]] * 2
    ids = [call[4] for call in calls if call[0] == "init"]
    ids += [call[1] for call in calls if call[0] == "start"]
    assert ids == [None, "new"]
    assert json.loads((folder / IDS_NAME).read_text()) == {name: "new"}
    monkeypatch.delitem(sys.modules, name)


def test_a_tracker_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow").mkdir()  # a folder of runs, not the package
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with fails("log.not_installed", "pip install mlflow", usage=True):
        start_trackers(("mlflow",), tmp_path, {})
