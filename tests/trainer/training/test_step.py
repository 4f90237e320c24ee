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
from trainer.training.optim import LARS, make_optimizer
from trainer.training.step import Average, Stepper, StepSettings, Sums, train_epoch

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


def settings(**changes: float) -> StepSettings:
    values = {"classes": 4, "label_smoothing": 0.0, "least_batch": 1}
    return StepSettings(**(values | changes))  # type: ignore[arg-type]


def batches(count: int = 4, size: int = 8, seed: int = 0) -> list[Batch]:
    """Linearly separable vectors of four classes."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        labels = torch.randint(0, 4, (size,), generator=generator)
        noise = 0.1 * torch.randn(size, 4, generator=generator)
        found.append(Batch(nn.functional.one_hot(labels, 4).float() + noise, labels))
    return found


def train_once(model: nn.Module, data: list[Batch], lr: float = 0.5) -> Result:
    optimizer = make_optimizer(model, "sgd", lr=lr, momentum=0.9, weight_decay=0.0)
    precision = Precision(CPU, "float32")
    return epoch(model, data, optimizer, precision, lr)


def epoch(
    model: nn.Module,
    data: list[Batch],
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    lr: float,
    clip_norm: float = 0.0,
    **changes: float,
) -> Result:
    stepper = Stepper(model, optimizer, None, precision, clip_norm, lambda _: lr, 0)
    return train_epoch(model, data, stepper, precision, settings(**changes), CPU, ignore)


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    first = train_once(model, batches(8))
    second = train_once(model, batches(8))
    assert second.loss < first.loss
    assert len(first.step_losses) == 8


def test_after_step_sees_the_batch_that_ended_the_step_and_moved_weights() -> None:
    model = nn.Linear(4, 4)
    optimizer = make_optimizer(model, "sgd", lr=0.5, momentum=0.0, weight_decay=0.0)
    precision, sums = Precision(CPU, "float32"), Sums(CPU, 4)
    stepper = Stepper(model, optimizer, None, precision, 0.0, lambda _: 0.5, 0)
    seen: list[tuple[int, int, float]] = []
    train_epoch(
        model, batches(5), stepper, precision, settings(accumulate=2), CPU, ignore, sums=sums,
        after_step=lambda: seen.append((stepper.step, sums.images, model.weight[0, 0].item())),
    )  # fmt: skip
    assert [one[:2] for one in seen] == [(1, 16), (2, 32), (3, 40)]
    assert len({one[2] for one in seen}) == 3


def test_stored_sums_go_on_to_the_same_result() -> None:
    logits, labels = torch.randn(6, 7), torch.tensor([0, 1, 2, 3, 4, 5])
    whole, first, second = (Sums(CPU, 7) for _ in range(3))
    for part in (slice(0, 4), slice(4, 6)):
        whole.add(torch.tensor(0.5 + part.start), logits[part], labels[part])
    first.add(torch.tensor(0.5), logits[:4], labels[:4])
    second.load_state_dict(first.state_dict())
    second.add(torch.tensor(4.5), logits[4:], labels[4:])
    assert second.result() == whole.result()


def test_a_batch_below_the_least_is_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = make_optimizer(model, "adamw", lr=1e-3, momentum=0.9, weight_decay=0.1)
    precision = Precision(CPU, "float32")
    data = batches(1, 8) + batches(1, 1)
    result = epoch(model, data, optimizer, precision, 1e-3, least_batch=2)
    assert result.images == 8


def test_a_loss_that_is_no_number_shows_in_the_step_losses() -> None:
    data = batches(3)
    data[1].images[0, 0] = float("inf")
    losses = train_once(nn.Linear(4, 4), data).step_losses
    assert math.isfinite(losses[0])
    assert not math.isfinite(losses[1])


def test_clipping_bounds_the_step() -> None:
    model = nn.Linear(4, 4)
    before = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = make_optimizer(model, "sgd", lr=1.0, momentum=0.0, weight_decay=0.0)
    precision = Precision(CPU, "float32")
    data = batches(1)
    data[0].images *= 1000
    epoch(model, data, optimizer, precision, 1.0, clip_norm=0.25)
    moved = torch.cat([(model.weight - before[0]).flatten(), model.bias - before[1]])
    assert float(moved.detach().norm()) == pytest.approx(0.25, rel=1e-4)


def test_biases_and_normalisation_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    groups = make_optimizer(model, "adamw", lr=1e-3, momentum=0.9, weight_decay=0.1).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [p.ndim for p in groups[0]["params"]] == [2]
    assert len(groups[1]["params"]) == 3


def test_the_average_follows_weights_and_statistics_and_copies_counters() -> None:
    model, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    running = Average(model, average, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.running_mean.fill_(7.0)  # type: ignore[union-attr]
        model.num_batches_tracked.fill_(9)  # type: ignore[union-attr]
    running.update(step=1000)
    assert average.weight.tolist() == [2.0, 2.0]
    assert average.running_mean is not None
    assert average.running_mean.tolist() == [3.5, 3.5]
    assert average.num_batches_tracked is not None
    assert int(average.num_batches_tracked) == 9
    assert not average.training


def test_bfloat16_trains_too() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = make_optimizer(model, "sgd", lr=0.5, momentum=0.9, weight_decay=0.0)
    precision = Precision(CPU, "bfloat16")
    losses = [epoch(model, batches(8), optimizer, precision, 0.5).loss for _ in range(2)]
    assert losses[1] < losses[0]


def test_precision_is_taken_from_the_hardware_only_under_auto() -> None:
    assert choose_precision("bfloat16", CPU) == "bfloat16"
    assert choose_precision("auto", CPU) in ("float32", "bfloat16")


def test_accumulated_batches_make_the_step_of_one_large_batch() -> None:
    data = batches(3, 8)
    whole = Batch(torch.cat([b.images for b in data]), torch.cat([b.labels for b in data]))
    precision = Precision(CPU, "float32")
    weights = []
    for pieces, accumulate in ((data, 3), ([whole], 1)):
        torch.manual_seed(3)
        model = nn.Linear(4, 4)
        optimizer = make_optimizer(model, "sgd", lr=0.5, momentum=0.9, weight_decay=0.0)
        epoch(model, pieces, optimizer, precision, 0.5, accumulate=accumulate)
        weights.append(model.weight.detach())
    assert torch.allclose(weights[0], weights[1], atol=1e-6)


def test_a_frozen_layer_stays_and_the_others_learn() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    first.requires_grad_(False)
    before = first.weight.clone(), second.weight.detach().clone()
    train_once(nn.Sequential(first, second), batches(2))
    assert torch.equal(first.weight, before[0])
    assert not torch.equal(second.weight, before[1])


def test_lars_takes_the_published_step() -> None:
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = LARS([{"params": [weight], "weight_decay": 0.1}], lr=2.0, momentum=0.9, trust=0.01)
    weight.grad = torch.tensor([[0.0, 1.0]])
    optimizer.step()
    # trust 0.01 · ‖w‖ 5 / (‖g‖ 1 + 0.1 · 5) = 1/30, times lr 2, on g + 0.1 w = (0.3, 1.4)
    assert weight.tolist()[0] == pytest.approx([3 - 0.3 / 15, 4 - 1.4 / 15])
    weight.grad = None
    optimizer.step()
    assert weight.tolist()[0] == pytest.approx([3 - 0.3 / 15, 4 - 1.4 / 15])


def test_lars_moves_a_weight_of_zeros_and_biases_plainly() -> None:
    weight, bias = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2))
    groups: list[dict[str, Any]] = [{"params": [weight]}, {"params": [bias], "adapt": False}]
    optimizer = LARS(groups, lr=0.5, momentum=0.0)
    weight.grad, bias.grad = torch.ones(2, 2), torch.ones(2)
    optimizer.step()
    assert weight.tolist() == [[-0.5, -0.5]] * 2
    assert bias.tolist() == [0.5, 0.5]


def test_biases_learn_and_decay_as_they_are_told() -> None:
    model = nn.Linear(3, 3)
    groups = make_optimizer(
        model, "sgd", lr=1.0, momentum=0.9, weight_decay=0.1, bias_rate=2.0, decay_biases=True
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
    assert 0 < _convolution_s(torch.float32) < 60
