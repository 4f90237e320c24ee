"""Learning-rate factors against tables computed by hand."""

from __future__ import annotations

import pytest

from trainer.schedule import learning_rate_factor


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
