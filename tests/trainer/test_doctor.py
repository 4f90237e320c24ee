"""The doctor: real measurements of a small run, and its findings from given rates."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from imagenet_prep.core.errors import quiet
from trainer.config import presets
from trainer.doctor import Diagnosis, Stage, diagnose, examine

if TYPE_CHECKING:
    from tests.trainer.conftest import Sample

CONFIG = dataclasses.replace(
    presets.preset("small"), network="tiny", batch_size=8, crop_size=56, device="cpu",
    precision="float32", jobs=1,
)  # fmt: skip


def diagnosis(
    disk: float = 1e6, loader: float = 1e6, step: float = 1e6, together: float = 1e6,
    copy: float = 1e7, evaluation: float = 1e7, wait: float = 0.0,
    tried: tuple[Stage, ...] = (), cpus: int = 1, jpeg: int = 10, validation: float = 0.0,
) -> Diagnosis:  # fmt: skip
    rates = {"disk": disk, "decode": loader, "copy": copy, "step": step}
    rates |= {"evaluation": evaluation, "together": together}
    stages = tuple(Stage(name, rate) for name, rate in rates.items())
    formats = {"jpeg": jpeg, "raw": 10 - jpeg}
    return diagnose(stages, tried, wait, CONFIG, formats, cpus, validation)


def test_each_stage_of_a_small_run_is_measured(small_beton: Sample, tiny_network: str) -> None:
    found = examine(CONFIG, small_beton.path, seconds=0.05, progress=quiet)
    assert [stage.name for stage in found.stages] == [
        "disk",
        "decode",
        "step",
        "evaluation",
        "together",
    ]
    assert all(stage.images_per_second > 0 for stage in found.stages)
    assert 0 <= found.wait_share <= 1
    assert found.limit in ("disk", "decode", "step", "evaluation")
    assert found.advice


def test_a_loader_that_delays_the_step_is_the_limit_with_advice() -> None:
    found = diagnosis(disk=9e4, loader=500, step=2000, together=480, wait=0.7, cpus=8)
    assert found.limit == "decode"
    assert found.gain == pytest.approx(2000 / 480)
    assert found.advice[0].startswith("--jobs 8")
    assert any("--format raw" in advice for advice in found.advice)
    raw = diagnosis(loader=500, step=2000, together=480, wait=0.7, cpus=1, jpeg=0)
    assert not any("raw" in advice or "--jobs" in advice for advice in raw.advice)


def test_a_disk_slower_than_the_loader_is_the_limit() -> None:
    found = diagnosis(disk=450, loader=500, step=2000, together=440, wait=0.7)
    assert found.limit == "disk"
    assert "--order pages" in found.advice[0]


def test_a_step_that_never_waits_is_the_limit() -> None:
    tried = (Stage("--precision bfloat16", 240.0), Stage("--batch-size 16", 105.0))
    found = diagnosis(loader=3000, step=100, together=98, wait=0.01, tried=tried)
    assert found.limit == "step"
    assert found.advice[0] == "--precision bfloat16: the step alone was 2.4 times as fast"
    assert not any("--batch-size" in advice for advice in found.advice)


def test_a_step_slowed_by_other_programs_is_to_be_measured_again() -> None:
    found = diagnosis(loader=5000, step=25, together=4.4)
    assert found.advice[0].startswith("measure again on a quiet machine")
    assert "18%" in found.advice[0]
    assert not any("measure again" in advice for advice in diagnosis(step=25, together=20).advice)


def test_a_copy_slower_than_decoding_is_the_limit() -> None:
    found = diagnosis(loader=900, copy=500, step=2000, together=480, wait=0.7)
    assert found.limit == "copy"
    assert "decode" in found.advice[0]


def test_a_slow_evaluation_is_named() -> None:
    found = diagnosis(step=100, together=98, evaluation=120)
    assert "evaluation runs at 120 images/s" in found.advice[-1]


def test_an_evaluation_of_half_an_epoch_is_the_limit() -> None:
    found = diagnosis(step=100, together=100, evaluation=300, validation=9)
    assert found.limit == "evaluation"
    assert found.gain == pytest.approx(4)
    assert "takes 75% of an epoch" in found.advice[0]
    assert diagnosis(step=100, together=100, evaluation=300, validation=2).limit == "step"
