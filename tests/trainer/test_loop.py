"""One epoch and one evaluation on tensors: the arithmetic of errors, steps and averages."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from trainer import loop

CPU = torch.device("cpu")


@dataclass
class Batch:
    """Images and labels as a loader would yield them."""

    images: Tensor
    labels: Tensor


def ignore(_: int) -> None:
    """Progress that nobody watches."""


def settings(**changes: float) -> loop.StepSettings:
    values = {"classes": 4, "label_smoothing": 0.0, "clip_norm": 0.0, "least_batch": 1}
    return loop.StepSettings(**(values | changes))  # type: ignore[arg-type]


def batches(count: int = 4, size: int = 8, seed: int = 0) -> list[Batch]:
    """Linearly separable vectors of four classes."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        labels = torch.randint(0, 4, (size,), generator=generator)
        noise = 0.1 * torch.randn(size, 4, generator=generator)
        found.append(Batch(nn.functional.one_hot(labels, 4).float() + noise, labels))
    return found


def train_once(model: nn.Module, data: list[Batch], lr: float = 0.5) -> loop.Result:
    optimizer = loop.make_optimizer(model, "sgd", lr=lr, momentum=0.9, weight_decay=0.0)
    precision = loop.Precision(CPU, "float32")
    return loop.train_epoch(
        model, data, optimizer, None, precision, settings(), lambda _: lr, 0, CPU, ignore
    )


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    first = train_once(model, batches(8))
    second = train_once(model, batches(8))
    assert second.loss < first.loss
    assert len(first.step_losses) == 8


def test_errors_and_confusion_are_counted_in_percent() -> None:
    # The identity predicts the largest input: class 0 always right, class 1 taken for 2.
    images = torch.eye(6)[[0, 0, 0, 2]] - 0.01 * torch.arange(6)
    labels = torch.tensor([0, 0, 0, 1])
    result, confusion = loop.evaluate(
        nn.Identity(), [Batch(images, labels)], loop.Precision(CPU, "float32"), 6, CPU, ignore
    )
    assert (result.top1_error, result.images) == (25.0, 4)
    assert result.top5_error == 0.0
    assert confusion[0, 0] == 3
    assert confusion[1, 2] == 1
    assert confusion.sum() == 4


def test_loss_is_the_mean_over_pictures_not_over_batches() -> None:
    data = batches(2, 8) + batches(1, 3, seed=9)
    whole = Batch(torch.cat([b.images for b in data]), torch.cat([b.labels for b in data]))
    model = nn.Linear(4, 4)
    precision = loop.Precision(CPU, "float32")
    parts, _ = loop.evaluate(model, data, precision, 4, CPU, ignore)
    at_once, _ = loop.evaluate(model, [whole], precision, 4, CPU, ignore)
    assert parts.loss == pytest.approx(at_once.loss, rel=1e-6)
    assert parts.images == 19


def test_a_batch_below_the_least_is_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = loop.make_optimizer(model, "adamw", lr=1e-3, momentum=0.9, weight_decay=0.1)
    precision = loop.Precision(CPU, "float32")
    data = batches(1, 8) + batches(1, 1)
    result = loop.train_epoch(
        model, data, optimizer, None, precision, settings(least_batch=2), lambda _: 1e-3, 0, CPU,
        ignore,
    )  # fmt: skip
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
    optimizer = loop.make_optimizer(model, "sgd", lr=1.0, momentum=0.0, weight_decay=0.0)
    precision = loop.Precision(CPU, "float32")
    data = batches(1)
    data[0].images *= 1000
    loop.train_epoch(
        model, data, optimizer, None, precision, settings(clip_norm=0.25), lambda _: 1.0, 0, CPU,
        ignore,
    )  # fmt: skip
    moved = torch.cat([(model.weight - before[0]).flatten(), model.bias - before[1]])
    assert float(moved.detach().norm()) == pytest.approx(0.25, rel=1e-4)


def test_biases_and_normalisation_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    groups = loop.make_optimizer(
        model, "adamw", lr=1e-3, momentum=0.9, weight_decay=0.1
    ).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [p.ndim for p in groups[0]["params"]] == [2]
    assert len(groups[1]["params"]) == 3


def test_the_average_follows_the_weights_and_copies_statistics() -> None:
    model, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    running = loop.Average(model, average, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.running_mean.fill_(7.0)  # type: ignore[union-attr]
    running.update(step=1000)
    assert average.weight.tolist() == [2.0, 2.0]
    assert average.running_mean is not None
    assert average.running_mean.tolist() == [7.0, 7.0]
    assert not average.training


def test_bfloat16_trains_too() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = loop.make_optimizer(model, "sgd", lr=0.5, momentum=0.9, weight_decay=0.0)
    precision = loop.Precision(CPU, "bfloat16")
    losses = [
        loop.train_epoch(
            model, batches(8), optimizer, None, precision, settings(), lambda _: 0.5, 0, CPU, ignore
        ).loss
        for _ in range(2)
    ]
    assert losses[1] < losses[0]


def test_precision_is_taken_from_the_hardware_only_under_auto() -> None:
    assert loop.choose_precision("bfloat16", CPU) == "bfloat16"
    assert loop.choose_precision("auto", CPU) in ("float32", "bfloat16")
