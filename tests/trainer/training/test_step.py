"""One epoch and one evaluation on tensors: the arithmetic of errors, steps and averages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.device import Precision, _bfloat16_pays, _convolution_s, choose_precision
from trainer.inference.judge import Result
from trainer.training.optim import make_optimizer
from trainer.training.step import Average, Step, StepSettings, Sums, count, train_epoch

CPU = torch.device("cpu")


@dataclass
class Batch:
    """Images and labels as a loader would yield them."""

    images: Tensor
    labels: Tensor

    @property
    def indices(self) -> Tensor:
        return torch.arange(len(self.labels))


def ignore(_: int) -> None:
    """Progress that nobody watches."""


def batches(count: int = 4, size: int = 8, seed: int = 0) -> list[Batch]:
    """Linearly separable vectors of four classes."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        labels = torch.randint(0, 4, (size,), generator=generator)
        noise = 0.1 * torch.randn(size, 4, generator=generator)
        found.append(Batch(nn.functional.one_hot(labels, 4).float() + noise, labels))
    return found


def step_of(
    model: nn.Module, name: str = "sgd", precision: str = "float32", momentum: float = 0.9,
    **changes: Any,
) -> Step:  # fmt: skip
    optimizer = make_optimizer(model, name, momentum=momentum, weight_decay=0.0)
    return Step(model, optimizer, Precision(CPU, precision), StepSettings(**changes))


def epoch(step: Step, data: list[Batch], lr: float = 0.5) -> Result:
    return train_epoch(step, data, lambda _: lr, 0, Sums(CPU), ignore)


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    step = step_of(model)
    first, second = epoch(step, batches(8)), epoch(step, batches(8))
    assert second.loss < first.loss
    assert len(first.step_losses) == 8


def test_after_step_gets_the_last_batch_and_moved_weights() -> None:
    model, sums = nn.Linear(4, 4), Sums(CPU)
    step = step_of(model, momentum=0.0, accumulate=2)
    seen: list[tuple[int, float]] = []
    rates: list[int] = []

    def rate(number: int) -> float:
        rates.append(number)
        return 0.5

    train_epoch(
        step, batches(5), rate, 7, sums, ignore,
        after_step=lambda: seen.append((sums.images, model.weight[0, 0].item())),
    )  # fmt: skip
    assert [one[0] for one in seen] == [16, 32, 40]
    assert len({one[1] for one in seen}) == 3
    assert rates == [7, 8, 9]


def test_stored_sums_go_on_to_the_same_result() -> None:
    logits, labels = torch.randn(6, 7), torch.tensor([0, 1, 2, 3, 4, 5])
    whole, first, second = (Sums(CPU) for _ in range(3))
    for part, loss in ((slice(0, 4), 0.5), (slice(4, 6), 4.5)):
        counted = count(torch.tensor(loss), logits[part], labels[part])
        for sums in (whole, first if loss < 1 else second):
            if sums is second:
                second.load_state_dict(first.state_dict())
            sums.add(counted, len(labels[part]))
    assert second.result() == whole.result()
    assert whole.result().images == 6


def test_hits_are_those_of_the_largest_logits() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 9), torch.randint(0, 9, (50,))
    ranked = logits.topk(5).indices == labels[:, None]
    expected = [2.0 * 50, float(ranked[:, 0].sum()), float(ranked.sum())]
    assert count(torch.tensor(2.0), logits, labels).tolist() == expected


def test_equal_logits_hit_only_the_first_classes_and_nan_none() -> None:
    labels = torch.arange(8)
    loss = torch.tensor(0.0)
    assert count(loss, torch.zeros(8, 8), labels).tolist() == [0, 1, 5]
    assert count(loss, torch.full((8, 8), math.nan), labels).tolist() == [0, 0, 0]


def test_a_batch_below_the_least_is_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    data = batches(1, 8) + batches(1, 1)
    result = epoch(step_of(model, "adamw", least_batch=2), data, 1e-3)
    assert result.images == 8


def test_a_loss_that_is_no_number_shows_in_the_step_losses() -> None:
    data = batches(3)
    data[1].images[0, 0] = float("inf")
    losses = epoch(step_of(nn.Linear(4, 4)), data).step_losses
    assert math.isfinite(losses[0])
    assert not math.isfinite(losses[1])


def test_clipping_bounds_the_step() -> None:
    model = nn.Linear(4, 4)
    before = model.weight.detach().clone(), model.bias.detach().clone()
    data = batches(1)
    data[0].images *= 1000
    epoch(step_of(model, momentum=0.0, clip_norm=0.25), data, 1.0)
    moved = torch.cat([(model.weight - before[0]).flatten(), model.bias - before[1]])
    assert float(moved.detach().norm()) == pytest.approx(0.25, rel=1e-4)


def test_biases_and_normalisation_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    groups = make_optimizer(model, "adamw", momentum=0.9, weight_decay=0.1).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [p.ndim for p in groups[0]["params"]] == [2]
    assert len(groups[1]["params"]) == 3


def test_the_average_follows_weights_and_statistics() -> None:
    model, average = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    running = Average(model, average, decay=0.5)
    optimizer = make_optimizer(model, "sgd", momentum=0.0, weight_decay=0.0)
    step = Step(model, optimizer, Precision(CPU, "float32"), StepSettings(), running)
    for parameter in model.parameters():
        parameter.grad = torch.ones(4)
    with torch.no_grad():
        model.running_mean.fill_(7.0)  # type: ignore[union-attr]
        model.num_batches_tracked.fill_(9)  # type: ignore[union-attr]
    step.prepare(0.5, 1000)
    step.move()
    assert model.weight.tolist() == [0.5] * 4
    assert average.weight.tolist() == [0.75] * 4
    assert average.running_mean is not None
    assert average.running_mean.tolist() == [3.5] * 4
    assert average.num_batches_tracked is not None
    assert int(average.num_batches_tracked) == 9
    assert not average.training


def test_the_average_is_faster_in_the_first_steps() -> None:
    running = Average(nn.Linear(2, 2), nn.Linear(2, 2), decay=0.999)
    assert [round(running.share(step), 6) for step in (0, 9, 10**6)] == [0.909091, 0.5, 0.001]


def test_the_average_of_a_frozen_weight_goes_on_to_it() -> None:
    model, average = nn.Linear(2, 2), nn.Linear(2, 2)
    running = Average(model, average, decay=0.5)
    model.weight.requires_grad_(False)
    for _ in range(40):
        running.follow(torch.tensor(0.5))
    assert torch.allclose(average.weight, model.weight)


def test_bfloat16_weights_follow_float32_masters() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    step = step_of(model, precision="bfloat16")
    data = [Batch(batch.images.bfloat16(), batch.labels) for batch in batches(8)]
    losses = [epoch(step, data).loss for _ in range(2)]
    assert losses[1] < losses[0]
    network = step.network
    assert isinstance(network, nn.Linear)
    assert network.weight.dtype == torch.bfloat16
    assert model.weight.dtype == torch.float32
    assert torch.equal(network.weight, model.weight.bfloat16())
    assert not torch.equal(network.weight.float(), model.weight)


def test_masters_and_working_weights_share_normalisation() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    step = step_of(model, precision="bfloat16")
    epoch(step, [Batch(batch.images.bfloat16(), batch.labels) for batch in batches(2)])
    network = step.network
    assert isinstance(network, nn.Sequential)
    assert network[1].weight is model[1].weight
    assert network[1].running_mean is model[1].running_mean
    assert float(model[1].running_mean.abs().sum()) > 0  # type: ignore[operator]


def test_precision_is_taken_from_the_hardware_only_under_auto() -> None:
    assert choose_precision("bfloat16", CPU) == "bfloat16"
    assert choose_precision("auto", CPU) in ("float32", "bfloat16")


def test_accumulated_batches_make_the_step_of_one_large_batch() -> None:
    data = batches(3, 8)
    whole = Batch(torch.cat([b.images for b in data]), torch.cat([b.labels for b in data]))
    weights = []
    for pieces, accumulate in ((data, 3), ([whole], 1)):
        torch.manual_seed(3)
        model = nn.Linear(4, 4)
        epoch(step_of(model, accumulate=accumulate), pieces)
        weights.append(model.weight.detach())
    assert torch.allclose(weights[0], weights[1], atol=1e-6)


def test_a_frozen_layer_stays_and_the_others_learn() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    first.requires_grad_(False)
    before = first.weight.clone(), second.weight.detach().clone()
    epoch(step_of(nn.Sequential(first, second)), batches(2))
    assert torch.equal(first.weight, before[0])
    assert not torch.equal(second.weight, before[1])


def test_biases_learn_and_decay_as_they_are_told() -> None:
    model = nn.Linear(3, 3)
    groups = make_optimizer(
        model, "sgd", momentum=0.9, weight_decay=0.1, bias_rate=2.0, decay_biases=True
    ).param_groups
    assert [group["lr_factor"] for group in groups] == [1.0, 2.0]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1]


@pytest.mark.parametrize(("half_s", "chosen"), [(0.5, "bfloat16"), (0.9, "float32")])
def test_auto_on_a_cpu_takes_bfloat16_only_where_it_is_faster(
    half_s: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {torch.float32: 1.0, torch.bfloat16: half_s}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr("trainer.device._convolution_s", seconds.__getitem__)
    _bfloat16_pays.cache_clear()
    try:
        assert choose_precision("auto", CPU) == chosen
    finally:
        _bfloat16_pays.cache_clear()


def test_the_trial_of_a_precision_is_a_time() -> None:
    assert 0 < _convolution_s(torch.float32) < math.inf
