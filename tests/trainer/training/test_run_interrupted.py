"""Runs that end before their time: killed, terminated, interrupted; and how they go on.

FAULT_MOMENTS=30 pytest tests/trainer/training/test_run_interrupted.py   is the long form.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.kit.command import REPOSITORY
from tests.kit.errors import fails
from tests.kit.short_run import CONFIG, train_short
from trainer.checkpoint import Checkpoint, load_checkpoint
from trainer.interrupt import Stop, StoppedError
from trainer.report.metrics import read_metrics

if TYPE_CHECKING:
    from tests.trainer.conftest import Sample

MOMENTS = int(os.environ.get("FAULT_MOMENTS", "3"))
# 25 images in batches of 3 make eight batches of training (a last image alone is left
# out) and nine of validation, in each of three epochs.
BATCHES = 3 * 17


def place(sample: Sample, folder: Path) -> Path:
    """train.beton and val.beton (the same images) in ``folder`` -> train.beton."""
    for split in ("train", "val"):
        for suffix in (".beton", ".beton.json", ".stats.npz"):
            source = sample.path.with_name("train" + suffix)
            (folder / (split + suffix)).write_bytes(source.read_bytes())
    return folder / "train.beton"


@pytest.fixture(scope="module")
def beton(small_beton: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place(small_beton, tmp_path_factory.mktemp("betons"))


@pytest.fixture(scope="module")
def undisturbed(beton: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_short(CONFIG, beton, folder)
    return folder


def program(*words: object) -> subprocess.CompletedProcess[str]:
    """short_run in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tests.kit.short_run", *map(str, words)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def same(first: Any, second: Any) -> bool:
    """Whether two values of checkpoints are equal, tensors bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second) and first.dtype == second.dtype
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def assert_ended_alike(folder: Path, undisturbed: Path) -> None:
    """Weights, average, optimiser and progress are those of the undisturbed run."""
    clock = {"seconds", "images_per_second", "wait_share", "step_share"}
    for name in ("last.pt", "best.pt"):
        ours, theirs = load_checkpoint(folder / name), load_checkpoint(undisturbed / name)
        for part in ("model", "average", "optimizer", "partial"):
            assert same(getattr(ours, part), getattr(theirs, part)), (name, part)
        for part in ("epochs_done", "step", "errors", "learning"):
            assert ours.progress[part] == theirs.progress[part], (name, part)
        assert without(ours, clock) == without(theirs, clock)
    steps = [
        [row for row in read_metrics(f) if row["kind"] == "step"] for f in (folder, undisturbed)
    ]
    assert steps[0] == steps[1]
    assert not list(folder.glob(".*.tmp"))


def without(checkpoint: Checkpoint, names: set[str]) -> dict[str, Any]:
    """The best epoch's row without times."""
    return {k: v for k, v in checkpoint.progress["best"].items() if k not in names}


def test_a_run_killed_at_any_step_ends_with_the_same_bits(
    beton: Path, undisturbed: Path, tmp_path: Path
) -> None:
    random_moments = random.Random(20121203)
    for sitting in range(-(-MOMENTS // 3)):
        folder, left, moments = tmp_path / f"run{sitting}", BATCHES, []
        for _ in range(min(3, MOMENTS - 3 * sitting)):
            # At least ``left`` batches are to be done: a kill loses some and never adds any.
            moments.append(random_moments.randint(1, left // 2))
            left -= moments[-1]
        ended = program(beton, folder, "--kills", ",".join(map(str, moments)))
        assert ended.returncode == 0, (moments, ended.stderr)
        assert_ended_alike(folder, undisturbed)


@pytest.mark.parametrize("moment", [1, 7, 8, 9, 17, 40])
def test_a_stop_anywhere_ends_with_a_checkpoint_and_same_bits(
    beton: Path, undisturbed: Path, tmp_path: Path, moment: int
) -> None:
    # Steps end with batches 2, 4, 6 and 8; 9 to 17 are the validation.
    stop = Stop()

    def wish(number: int) -> None:
        stop.request(143 if number >= moment else 0)

    with pytest.raises(
        StoppedError, match=r"run: stopped by a signal after step \d+.*--resume"
    ) as caught:
        train_short(CONFIG, beton, tmp_path / "run", at_batch=wish, stop=stop)
    assert caught.value.status == 143
    partial = load_checkpoint(tmp_path / "run" / "last.pt").partial
    assert partial is not None
    assert partial["loader"]["position"] <= 25
    train_short(CONFIG, beton, tmp_path / "run", resume=True)
    assert_ended_alike(tmp_path / "run", undisturbed)


def test_two_stops_in_one_validation_train_nothing_twice(
    beton: Path, undisturbed: Path, tmp_path: Path
) -> None:
    for first in (9, 1):  # of what comes then: the validation
        stop = Stop()

        def wish(number: int, stop: Stop = stop, first: int = first) -> None:
            stop.request(143 if number >= first else 0)

        with pytest.raises(StoppedError):
            train_short(CONFIG, beton, tmp_path / "run", resume=True, at_batch=wish, stop=stop)
        partial = load_checkpoint(tmp_path / "run" / "last.pt").partial
        assert partial is not None
        assert partial["loader"]["position"] == 25
    train_short(CONFIG, beton, tmp_path / "run", resume=True)
    assert_ended_alike(tmp_path / "run", undisturbed)


def test_sigterm_ends_the_process_with_a_checkpoint_and_143(beton: Path, tmp_path: Path) -> None:
    ended = program(beton, tmp_path / "run", "--signal-at", 12, "SIGTERM")
    assert ended.returncode == 143, ended.stderr
    assert re.fullmatch(r".*: stopped by a signal after step 4, in epoch 1; .*\n", ended.stderr)
    found = load_checkpoint(tmp_path / "run" / "last.pt")
    assert found.progress["epochs_done"] == 0
    assert found.partial is not None


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = Stop()
    monkeypatch.setattr("trainer.interrupt.REPEAT_S", 3600.0)
    before = signal.getsignal(signal.SIGTERM)
    with stop.listening():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # the same request
        assert stop.status == 143
        monkeypatch.setattr("trainer.interrupt.REPEAT_S", -1.0)
        with pytest.raises(StoppedError, match="at once"):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def interrupted(beton: Path, folder: Path) -> None:
    """A run that stands inside its second epoch."""
    stop = Stop()

    def wish(number: int) -> None:
        stop.request(130 if number >= 21 else 0)

    with pytest.raises(StoppedError):
        train_short(CONFIG, beton, folder, at_batch=wish, stop=stop)


def test_another_recipe_is_named_and_goes_on_with_force(beton: Path, tmp_path: Path) -> None:
    interrupted(beton, tmp_path)
    other = dataclasses.replace(CONFIG, preset="demo", lr=5e-4, batch_size=4)
    changes = ("preset small there and demo here", "lr 0.001 there and 0.0005 here")
    with fails("run.other_settings", *changes, "batch_size 3 there and 4 here", "--force"):
        train_short(other, beton, tmp_path, resume=True)
    train_short(other, beton, tmp_path, resume=True, force=True)
    found = load_checkpoint(tmp_path / "last.pt")
    # Seven batches of at most four make four steps.
    assert (found.progress["epochs_done"], found.progress["step"]) == (3, 12)
    assert found.config["run"]["lr"] == 5e-4


def test_another_beton_is_named_and_force_restarts_the_epoch(
    beton: Path, tmp_path: Path, other_beton: Callable[[], Path]
) -> None:
    interrupted(beton, tmp_path / "run")
    other = other_beton()
    with fails("run.other_settings", "other images than", "--force"):
        train_short(CONFIG, other, tmp_path / "run", resume=True)
    train_short(CONFIG, other, tmp_path / "run", resume=True, force=True)
    assert load_checkpoint(tmp_path / "run" / "last.pt").progress["epochs_done"] == 3


def test_another_validation_set_is_named_force_resets_the_best(
    beton: Path, tmp_path: Path, other_beton: Callable[[], Path]
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(beton.parent, mine)
    interrupted(mine / "train.beton", tmp_path / "run")
    for path in other_beton().parent.glob("val.*"):
        shutil.copy(path, mine)
    with fails("run.other_settings", "the validation set was another", "--force"):
        train_short(CONFIG, mine / "train.beton", tmp_path / "run", resume=True)
    train_short(CONFIG, mine / "train.beton", tmp_path / "run", resume=True, force=True)
    progress = load_checkpoint(tmp_path / "run" / "last.pt").progress
    assert len(progress["errors"]) == 2
    assert progress["best"]["epoch"] in (2, 3)


@pytest.fixture
def other_beton(tmp_path: Path) -> Callable[[], Path]:
    """A beton of the same classes with other images."""

    def make() -> Path:
        from tests.trainer.conftest import make_beton

        (tmp_path / "other").mkdir()
        return place(make_beton(tmp_path / "other", 20, 64, quality=70), tmp_path / "other")

    return make


def test_overwrite_leaves_nothing_of_the_run_before(beton: Path, tmp_path: Path) -> None:
    train_short(dataclasses.replace(CONFIG, epochs=1), beton, tmp_path)
    assert (tmp_path / "best.pt").exists()

    def die(_: int) -> None:
        raise RuntimeError("before the first checkpoint")

    with pytest.raises(RuntimeError, match="before the first"):
        train_short(CONFIG, beton, tmp_path, at_batch=die, overwrite=True)
    for name in ("last.pt", "best.pt"):
        assert not (tmp_path / name).exists()


def test_no_force_makes_another_network_fit(beton: Path, tmp_path: Path) -> None:
    interrupted(beton, tmp_path)
    other = dataclasses.replace(CONFIG, network="small")
    with fails("checkpoint.other_network", "network short, which do not fit small"):
        train_short(other, beton, tmp_path, resume=True, force=True)


def test_a_damaged_last_checkpoint_is_an_error(beton: Path, tmp_path: Path) -> None:
    interrupted(beton, tmp_path)
    last = tmp_path / "last.pt"
    last.write_bytes(last.read_bytes()[:-1000])
    with fails("checkpoint.truncated"):
        train_short(CONFIG, beton, tmp_path, resume=True)


def test_weights_of_an_evaluation_are_no_place_to_resume_from(beton: Path, tmp_path: Path) -> None:
    one = dataclasses.replace(CONFIG, epochs=1)
    train_short(one, beton, tmp_path)
    (tmp_path / "best.pt").replace(tmp_path / "last.pt")
    with fails("checkpoint.no_optimizer"):
        train_short(one, beton, tmp_path, resume=True)
