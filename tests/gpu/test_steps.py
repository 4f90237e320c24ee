"""Training steps on a device: nothing waits for it, half precision learns, batches arrive."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.gpu.devices import on_each_device, unwaited
from tests.trainer.conftest import Sample, make_beton
from trainer.device import Precision
from trainer.inference.judge import Result
from trainer.loader.loader import Batch, train_loader
from trainer.network.alexnet import NetworkSpec, build
from trainer.training.notices import LossWatch
from trainer.training.optim import make_optimizer
from trainer.training.step import Average, Step, StepSettings, Sums, train_epoch

SPEC = NetworkSpec(
    classes=3, input_size=67, widths=(8, 8, 8, 8, 8), pooled=1, hidden=(16, 16), init="he",
    input_scale=1 / 64, dropout=0.0,
)  # fmt: skip
LOADER: dict[str, Any] = {"batch_size": 4, "crop_size": 67, "seed": 3, "jobs": 1}


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """22 images of 72 px in three classes."""
    return make_beton(tmp_path_factory.mktemp("gpu"), 22, 72)


class Trainer:
    """A small network of the family with its optimiser and the loop's parts."""

    def __init__(self, device: str, precision: str = "float32", norm: str = "lrn") -> None:
        self.device = torch.device(device)
        self.model = build(replace(SPEC, norm=norm), 0)
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.precision = Precision(self.device, precision)
        optimizer = make_optimizer(
            self.model, "sgd", momentum=0.9, weight_decay=5e-4, bias_rate=2.0
        )
        average = build(replace(SPEC, norm=norm), 0).to(self.device)
        settings = StepSettings(label_smoothing=0.1, least_batch=2, clip_norm=1.0)
        running = Average(self.model, average, 0.9)
        self.step = Step(self.model, optimizer, self.precision, settings, running)

    def train(self, batches: Any, sums: Sums | None = None, **more: Any) -> Result:
        sums = sums or Sums(self.device)
        return train_epoch(self.step, batches, lambda _: 0.02, 0, sums, lambda _: None, **more)


def fixed_batch(device: str, size: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = 60 * torch.randn(size, 3, 67, 67, generator=generator)
    images = images.to(device, memory_format=torch.channels_last)
    return Batch(images, (torch.arange(size) % 3).to(device), torch.arange(size))


@on_each_device
@pytest.mark.parametrize("norm", ["lrn", "batch"])
def test_steps_wait_for_nothing_on_the_device(device: str, norm: str) -> None:
    trainer, batch = Trainer(device, norm=norm), fixed_batch(device)
    trainer.train([batch] * 2)  # memory is found, kernels are chosen
    sums = Sums(torch.device(device))
    watch, seen = LossWatch(torch.device(device)), list[bool]()
    steps = 120 if device == "cuda" else 12  # the watch looks at every fiftieth
    result = trainer.train(
        unwaited([batch] * steps, device),
        sums=sums,
        after_step=lambda: seen.append(watch.broken(sums.values[0])),
    )
    assert result.images == steps * 6
    assert seen == [False] * steps


@on_each_device
def test_the_loaders_thread_waits_for_nothing_in_an_epoch(beton: Sample, device: str) -> None:
    trainer = Trainer(device)
    with train_loader(beton.path, beton.stats, device=device, **LOADER) as batches:
        trainer.train(batches)
        result = trainer.train(unwaited(batches, device))
    assert result.images == 22


@on_each_device
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_every_precision_learns_a_batch_by_heart(device: str, precision: str) -> None:
    trainer, batch = Trainer(device, precision), fixed_batch(device)
    losses = trainer.train([batch] * 30).step_losses
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]


@on_each_device
def test_batches_are_whole_however_late_the_device_gets_to_them(beton: Sample, device: str) -> None:
    wanted, found = [], []
    with train_loader(beton.path, beton.stats, **LOADER) as host:
        for epoch in range(2):
            host.set_epoch(epoch)
            wanted += [(batch.images.clone(), batch.labels.clone()) for batch in host]
    with train_loader(beton.path, beton.stats, device=device, **LOADER) as batches:
        for epoch in range(2):  # the second one begins while the device is in the first
            batches.set_epoch(epoch)
            for batch in batches:
                if device == "cuda":
                    # The device is behind while the loader's thread runs ahead of it.
                    torch.cuda._sleep(50_000_000)  # type: ignore[no-untyped-call]
                found.append((batch.images.clone(), batch.labels.clone()))
    assert len(found) == len(wanted) == 12
    for (images, labels), (its_images, its_labels) in zip(found, wanted, strict=True):
        assert torch.equal(labels.cpu(), its_labels)
        assert float((images.cpu() - its_images).abs().max()) < 1e-3


@on_each_device
def test_images_and_labels_arrive_on_the_device_channels_last(beton: Sample, device: str) -> None:
    with train_loader(beton.path, beton.stats, device=device, **LOADER) as batches:
        for batch in batches:
            assert batch.images.device.type == batch.labels.device.type == device
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert batch.indices.device.type == "cpu"
