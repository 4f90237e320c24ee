"""Experiment trackers besides TensorBoard: Weights & Biases and MLflow, where installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from imagenet_prep.core.errors import UsageError
from imagenet_prep.core.files import read_json, write_json

PROJECT = "imagenet-alexnet"
IDS_NAME = "trackers.json"


class Tracker(Protocol):
    """Where the figures of a run go, epoch by epoch."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Takes an epoch's row; its numbers become metrics of step ``row["epoch"]``."""

    def close(self) -> None:
        """Ends the run there."""


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The single numbers of a row."""
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and name != "epoch"
    }


class _WandB:
    def __init__(self, folder: Path, config: Mapping[str, Any], known: str | None) -> None:
        self._run = importlib.import_module("wandb").init(
            project=PROJECT, name=folder.name, dir=str(folder), config=dict(config), id=known,
            resume="allow",
        )  # fmt: skip
        self.id = str(self._run.id)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """One row of the run's history."""
        self._run.log(numbers(row), step=int(row["epoch"]))

    def close(self) -> None:
        """Uploads what is left."""
        self._run.finish()


class _MLflow:
    def __init__(self, folder: Path, config: Mapping[str, Any], known: str | None) -> None:
        self._mlflow = mlflow = importlib.import_module("mlflow")
        mlflow.set_experiment(PROJECT)
        started = mlflow.start_run(run_id=known, run_name=None if known else folder.name)
        self.id = str(started.info.run_id)
        if known is None:
            mlflow.log_params(dict(config["run"]))

    def epoch(self, row: Mapping[str, Any]) -> None:
        """One metric for each number."""
        self._mlflow.log_metrics(numbers(row), step=int(row["epoch"]))

    def close(self) -> None:
        """Marks the run as ended."""
        self._mlflow.end_run()


_KINDS: dict[str, type[_WandB] | type[_MLflow]] = {"wandb": _WandB, "mlflow": _MLflow}


def start_trackers(names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """The trackers of ``--log``, started; a resumed run continues under its id in ``folder``.

    UsageError where one is not installed.
    """
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder of that name is no package
            raise UsageError(
                "log.not_installed", f"--log {name}: is not installed; run pip install {name}"
            )
    path = folder / IDS_NAME
    ids = read_json(path, "ids of trackers", "delete it") if path.exists() else {}
    trackers: list[Tracker] = []
    for name in names:
        tracker = _KINDS[name](folder, config, ids.get(name))
        ids[name] = tracker.id
        trackers.append(tracker)
    if names:
        write_json(path, ids)
    return trackers
