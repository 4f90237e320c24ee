"""Learning-rate factors against tables computed by hand."""

from __future__ import annotations

import pytest

from trainer.network.alexnet import NETWORKS
from trainer.training.schedule import (
    epochs_without_gain,
    image_side,
    learning_rate_factor,
    plateau_drops,
    training_sides,
)


@pytest.mark.parametrize(("step", "factor"), [(0, 1.0), (25, 0.75), (50, 0.5), (99, 0.01)])
def test_linear_falls_to_zero(step: int, factor: float) -> None:
    assert learning_rate_factor("linear", step, 100) == pytest.approx(factor)


@pytest.mark.parametrize(("step", "factor"), [(0, 1.0), (50, 0.5), (100, 0.0)])
def test_cosine_passes_one_half_in_the_middle(step: int, factor: float) -> None:
    assert learning_rate_factor("cosine", step, 100) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(("epoch", "factor"), [(0, 1.0), (29, 1.0), (30, 0.1), (60, 0.01)])
def test_step_divides_by_ten(epoch: int, factor: float) -> None:
    assert learning_rate_factor("step", 7, 100, epoch=epoch) == pytest.approx(factor)


def test_warm_up_rises_linearly_and_ends() -> None:
    factors = [learning_rate_factor("constant", step, 100, warmup_steps=4) for step in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_unknown_schedule_is_an_error() -> None:
    with pytest.raises(ValueError, match="zigzag"):
        learning_rate_factor("zigzag", 0, 1)


@pytest.mark.parametrize(("epoch", "factor"), [(24, 1.0), (25, 0.1), (51, 0.01), (79, 1e-3)])
def test_drops_divide_at_the_epochs_of_the_2012_code(epoch: int, factor: float) -> None:
    found = learning_rate_factor("drops", 7, 100, epoch=epoch, drops=(25, 51, 79))
    assert found == pytest.approx(factor)


def test_a_plateau_divides_after_patience_three_times_at_most() -> None:
    errors = [50.0, 40.0, 41.0, 40.0, 39.0, 39.5, 39.5]
    assert plateau_drops(errors[:3], patience=2) == 0
    assert plateau_drops(errors[:4], patience=2) == 1
    assert plateau_drops(errors[:6], patience=2) == 1
    assert plateau_drops(errors, patience=2) == 2
    assert plateau_drops([10.0] * 50, patience=2) == 3
    assert learning_rate_factor("plateau", 0, 1, plateau=2) == pytest.approx(0.01)


def test_epochs_without_gain_counts_from_the_least_error() -> None:
    assert epochs_without_gain([]) == 0
    assert epochs_without_gain([3.0, 2.0, 2.5, 2.0]) == 2


@pytest.mark.parametrize(
    ("epochs", "start", "sides"),
    [
        (8, 67, [67, 67, 83, 99, 115, 131, 131, 131]),
        (9, 99, [99, 99, 99, 115, 115, 115, 131, 131, 131]),
        (3, 67, [67, 99, 131]),  # no time for every side
        (1, 67, [131]),
        (4, 131, [131] * 4),
        (4, 0, [131] * 4),
    ],
)
def test_images_grow_in_two_thirds_of_the_epochs(epochs: int, start: int, sides: list[int]) -> None:
    assert [image_side(epoch, epochs, 131, start) for epoch in range(epochs)] == sides


@pytest.mark.parametrize(
    ("network", "sides"),
    [
        ("best", [131, 115, 99, 83, 67]),
        ("thumbnail", [67]),
        ("torchvision", [*range(224, 63, -16)]),
    ],
)
def test_training_sides_are_those_that_the_layers_fit(network: str, sides: list[int]) -> None:
    assert training_sides(NETWORKS[network]) == sides
