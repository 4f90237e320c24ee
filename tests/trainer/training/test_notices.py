"""Training health checks: a loss that is no number, a network that does not begin to learn."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from imagenet_prep.core.errors import quiet
from imagenet_prep.dataset.classes import Classes
from tests.kit.errors import fails
from trainer.config import presets
from trainer.training import notices as watch
from trainer.training.run import train

if TYPE_CHECKING:
    from tests.trainer.conftest import Sample

NAN = float("nan")
TEN = Classes(tuple(f"n{label}" for label in range(10)), {"n3": "tench"})
STILL = dataclasses.replace(
    presets.preset("small"), network="tiny", epochs=2, batch_size=8, crop_size=56, lr=1e-12,
    warmup_epochs=0.0, average=0.0, label_smoothing=0.0, device="cpu", precision="float32", jobs=1,
)  # fmt: skip


def test_the_step_and_the_cause_of_a_loss_that_is_no_number() -> None:
    assert watch.loss_message([2.0, 1.9], 0, 0.1, "float32") is None
    first = watch.loss_message([NAN], 0, 0.1, "float32")
    assert first is not None
    assert "epoch 1, step 1" in first
    assert "--mean" in first
    rising = watch.loss_message([2.3, 2.2, 9.0, 80.0, math.inf], 3, 0.1, "float32")
    assert rising is not None
    assert "epoch 4, step 5" in rising
    assert "was rising" in rising
    assert "it was 0.1" in rising
    half = watch.loss_message([2.3, 2.2, NAN], 0, 0.1, "float16")
    assert half is not None
    assert "--precision bfloat16" in half


def test_the_watch_sees_a_broken_sum_at_its_next_look() -> None:
    eye = watch.LossWatch(torch.device("cpu"))
    sums = [torch.tensor(1.0)] * 60 + [torch.tensor(NAN)] * 60
    seen = [eye.broken(total) for total in sums]
    assert seen.index(True) == 2 * watch.LOOK_EVERY_STEPS - 1


def look(losses: list[float], confusion: Any = None, **changes: Any) -> str | None:
    known: dict[str, Any] = {"steps": 200, "classes": TEN, "lr": 0.01, "norm": "lrn"}
    known |= changes
    steps = known.pop("steps")
    return watch.stuck(losses, steps, confusion, **known)


def test_a_loss_at_chance_is_notes_from_one_that_falls() -> None:
    chance = math.log(10)
    found = look([chance] * 100)
    assert found is not None
    assert "ln(10) = 2.303" in str(found)
    assert "--lr 0.001 or 0.03" in str(found)
    assert "batch normalisation" in str(found)
    assert "0-255" in str(found)
    assert look([chance] * 100 + [0.95 * chance] * 100) is None
    assert look([chance] * 100, steps=199) is None


def test_a_short_run_is_judged_when_it_has_ended() -> None:
    found = look([math.log(10)] * 20, steps=20, ended=True)
    assert found is not None
    assert "after 20 steps the loss is 2.303" in str(found)
    assert "try more steps (--epochs); another learning rate" in str(found)
    assert look([1.5] * 20, steps=20, ended=True) is None
    assert look([math.log(10)] * 19, steps=19, ended=True) is None
    # The first steps were too long, and it has come back from there.
    assert look([30.0] * 10 + [2.0] * 10, steps=20, ended=True) is None


@pytest.mark.parametrize(("right", "begun"), [(9, False), (30, True)])
def test_who_is_right_more_often_than_by_chance_has_begun(right: int, begun: bool) -> None:
    confusion = np.full((10, 10), 10, np.int64)
    np.fill_diagonal(confusion, right)
    assert (look([math.log(10)] * 200, confusion) is None) is begun


def test_one_class_for_everything_is_reported_if_the_loss_fell() -> None:
    confusion = np.zeros((10, 10), np.int64)
    confusion[:, 3] = 5
    found = look([0.5] * 100, confusion, norm="batch")
    assert found is not None
    assert "predicts class 'tench' for all images" in str(found)
    assert "--network small" not in str(found)
    confusion[1] = np.eye(10, dtype=np.int64)[1]
    assert look([0.5] * 100, confusion) is None
    # A set of one class alone: to predict it always is right.
    only = np.zeros((10, 10), np.int64)
    only[3, 3] = 50
    assert look([0.5] * 100, only) is None


def test_one_class_for_three_epochs_is_reported_early() -> None:
    eye = watch.LearningWatch(TEN, 0.01, "none")
    only = np.zeros((10, 10), np.int64)
    only[:, 3] = 20
    losses = [math.log(10)] * 10
    assert eye(losses, 10, only, ended=False) is None
    assert eye(losses, 20, only, ended=False) is None
    notes = eye(losses, 30, only, ended=False)
    assert notes is not None
    assert "after 30 steps the network predicts class 'tench' for all images, for 3 " in notes
    assert "epochs: it does not learn yet; try more steps" in notes
    assert eye(losses, 40, only, ended=False) is None
    other = np.eye(10, dtype=np.int64) * 20
    assert eye([2.0] * 10, 50, other, ended=False) is None
    assert eye(losses, 60, only, ended=False) is None  # it has fallen back
    assert eye([2.0] * 10, 70, other, ended=False) is None
    notes = eye([2.0] * 10, 80, other, ended=False)
    assert notes == "after 80 steps the network learns"
    for step, confusion in ((90, only), (100, other), (110, other)):
        assert eye(losses, step, confusion, ended=step == 110) is None  # twice is enough


def test_one_class_in_scattered_epochs_is_not_reported() -> None:
    eye = watch.LearningWatch(TEN, 0.01, "none")
    only = np.zeros((10, 10), np.int64)
    only[:, 3] = 20
    mixed = np.full((10, 10), 2, np.int64)
    for epoch, confusion in enumerate((only, only, mixed, only, only)):
        assert eye([2.2] * 10, 10 * (epoch + 1), confusion, ended=False) is None


def test_the_watch_continues_in_a_resumed_run() -> None:
    only = np.zeros((10, 10), np.int64)
    only[:, 3] = 20
    eye = watch.LearningWatch(TEN, 0.01, "none")
    notes = []
    other = np.eye(10, dtype=np.int64) * 20
    for epoch, confusion in enumerate((only, only, only, only, other, other)):
        state = eye.state_dict()
        eye = watch.LearningWatch(TEN, 0.01, "none")
        eye.load_state_dict(state)
        notes.append(eye([2.3] * 10, 10 * (epoch + 1), confusion, ended=False))
    assert [message is None for message in notes] == [True, True, False, True, True, False]


def test_two_steps_an_epoch_are_too_few_to_judge() -> None:
    eye = watch.LearningWatch(TEN, 0.01, "none")
    only = np.zeros((10, 10), np.int64)
    only[:, 3] = 20
    notes = [eye([2.3, 2.3], 2 * epoch, only, ended=False) for epoch in range(1, 11)]
    assert [message is None for message in notes] == [True] * 9 + [False]


def test_a_run_that_does_not_move_is_reported_once(
    small_beton: Sample, tiny_network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "STUCK_AFTER_STEPS", 3)
    notes: list[str] = []
    train(
        STILL, small_beton.path, tmp_path, resume=False, report=lambda _: None,
        notice=notes.append, progress=quiet,
    )  # fmt: skip
    assert len(notes) == 1
    assert "does not learn yet; try" in notes[0]


def test_a_run_that_patience_ends_is_judged_by_then(
    small_beton: Sample, tiny_network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in (".beton", ".beton.json", ".stats.npz"):
        data = small_beton.path.with_name(f"train{suffix}").read_bytes()
        for split in ("train", "val"):
            (tmp_path / f"{split}{suffix}").write_bytes(data)
    monkeypatch.setattr(watch, "_FEWEST_STEPS", 4)
    notes: list[str] = []
    result = train(
        dataclasses.replace(STILL, epochs=9, patience=1), tmp_path / "train.beton",
        tmp_path / "run", resume=False, report=lambda _: None, notice=notes.append, progress=quiet,
    )  # fmt: skip
    assert len(result.rows) == 2
    assert len(notes) == 1
    assert "does not learn yet; try" in notes[0]


def test_a_loss_that_breaks_is_seen_before_the_epoch_ends(
    small_beton: Sample, tiny_network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOK_EVERY_STEPS", 1)
    wild = dataclasses.replace(STILL, optimizer="sgd", lr=1e30, clip_norm=0.0, batch_size=2)
    counted: list[int] = []
    with fails("run.diverged", "epoch 1, step "):
        train(
            wild, small_beton.path, tmp_path, resume=False, report=lambda _: None,
            progress=lambda what, done, total: counted.append(done),
        )  # fmt: skip
    assert max(counted) < 25
    assert not (tmp_path / "last.pt").exists()


@pytest.mark.parametrize(
    ("changes", "word"), [({"schedule": "plateau"}, "plateau"), ({"patience": 2}, "--patience")]
)
def test_what_needs_a_validation_set_is_refused_without_one(
    small_beton: Sample, tiny_network: str, tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    with fails("run.no_validation", word):
        train(
            dataclasses.replace(STILL, **changes), small_beton.path, tmp_path, resume=False,
            report=lambda _: None, progress=quiet,
        )  # fmt: skip
