"""Who trains: one step of AlexNet with local response normalisation.

A lap is one step on a fixed batch, or as many as a beton feeds. The tutorials' network is
written as they write it: PyTorch's layers in order, eager, float32, channels first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.bench.contender import Contender

CLASSES, INPUT_PX, LR = 1000, 227, 0.01


def fixed_batch(batch: int, side: int = INPUT_PX) -> tuple[Any, Any]:
    """Random levels around a mean, (B, 3, side, side) float32, and labels (B,)."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, side, side)
    images = torch.randint(0, 256, shape, generator=generator).float() - 120
    return images, torch.randint(0, CLASSES, (batch,), generator=generator)


def tutorial_network(small: bool, lrn: Callable[[int], Any] | None = None) -> Any:
    """The tutorials' AlexNet, one tower; ``lrn`` makes its normalisation of so many channels
    (None: the library's)."""
    from torch import nn

    hidden = 64 if small else 4096
    normal = lrn or (lambda _: nn.LocalResponseNorm(5, 5e-4, 0.75, 2))
    return nn.Sequential(
        nn.Conv2d(3, 96, 11, 4), nn.ReLU(), normal(96), nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 5, padding=2), nn.ReLU(), normal(256), nn.MaxPool2d(3, 2),
        nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Flatten(),
        nn.Dropout(), nn.Linear(9216, hidden), nn.ReLU(),
        nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, CLASSES),
    )  # fmt: skip


def tutorial(
    batch: int, threads: int, small: bool, device: str = "cpu", keep: bool = False
) -> Contender:
    """The tutorials' network with their SGD, on a fixed batch; with ``keep`` the C library keeps
    freed memory, as ours lets it, which no tutorial does."""
    import torch
    from torch import nn

    from trainer.training.memory import keep_freed_memory

    if keep:
        keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = tutorial_network(small).to(device)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=5e-4)
    images, labels = (tensor.to(device) for tensor in fixed_batch(batch))
    loss_of = nn.CrossEntropyLoss()

    def lap() -> dict[str, Any]:
        optimizer.zero_grad()
        loss = loss_of(model(images), labels)
        loss.backward()
        optimizer.step()
        return {"count": batch, "loss": loss.item()}

    return Contender(lap)


class Ours:
    """The trainer's own step: network, optimiser and loop as ``trainer run`` has them."""

    def __init__(
        self,
        threads: int,
        precision: str,
        small: bool,
        device: str = "cpu",
        network: str = "paper",
        graph: bool = True,
    ) -> None:
        from dataclasses import replace

        import torch

        from trainer.device import Precision, choose_precision
        from trainer.network.alexnet import build, network_spec
        from trainer.training.memory import keep_freed_memory
        from trainer.training.optim import make_optimizer
        from trainer.training.step import Step, StepSettings

        torch.set_num_threads(threads)
        self.device = torch.device(device)
        if device == "cpu":
            keep_freed_memory()
        spec = network_spec(network, classes=CLASSES)
        if small:
            spec = replace(spec, hidden=(64, 64))
        self.model: torch.nn.Module = build(spec, 0)
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.precision = Precision(self.device, choose_precision(precision, self.device))
        optimizer = make_optimizer(
            self.model, "sgd", momentum=0.9, weight_decay=5e-4, bias_rate=1.0, decay_biases=True
        )
        self.step = Step(self.model, optimizer, self.precision, StepSettings(), graph=graph)

    def train(self, batches: Any) -> dict[str, Any]:
        """Trains once over ``batches``."""
        from trainer.training.step import Sums, train_epoch

        result = train_epoch(self.step, batches, lambda _: LR, 0, Sums(self.device), lambda _: None)
        return {"count": result.images, "loss": result.loss, "precision": self.precision.name}


def ours(batch: int, threads: int, precision: str, small: bool) -> Contender:
    """Our step on a fixed batch."""
    import torch

    from trainer.loader.loader import Batch

    trainer = Ours(threads, precision, small)
    images, labels = fixed_batch(batch)
    images = images.to(memory_format=torch.channels_last)
    fixed = Batch(images, labels, torch.arange(batch))
    return Contender(lambda: trainer.train([fixed]))


def fed(beton: str, stats: str, batch: int, threads: int, precision: str, small: bool) -> Contender:
    """Our step fed by our loader from a beton: an epoch of it is a lap."""
    from imagenet_prep.dataset.statistics import load_stats
    from trainer.loader.loader import train_loader

    trainer = Ours(threads, precision, small)
    loader = train_loader(
        Path(beton), load_stats(Path(stats)), batch_size=batch, crop_size=INPUT_PX, jobs=threads
    )
    return Contender(lambda: trainer.train(loader))
