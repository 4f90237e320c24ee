"""The state of a run between epochs, and the data that it reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from imagenet_prep.artifacts import (
    Classes,
    Manifest,
    Stats,
    ToolError,
    UsageError,
    load_manifest,
    load_stats,
    stats_beside,
    validation_beside,
)
from trainer import config as configs
from trainer import loop
from trainer.checkpoint import Checkpoint, check_classes, save_checkpoint
from trainer.model import build, network_spec
from trainer.optim import make_optimizer
from trainer.record import environment_stamp

# Settings that may differ between a run and its continuation: they change no result.
FREE_ON_RESUME = {"jobs", "device", "precision", "preset"}


@dataclass(frozen=True)
class Data:
    """What a run reads: betons that belong together, their statistics and classes."""

    train: Path
    validation: Path | None
    stats: Stats
    classes: Classes
    manifest: Manifest


def find_data(beton: Path) -> Data:
    """The betons and statistics that belong to ``beton``; ToolError where they do not fit."""
    manifest = load_manifest(beton)
    stats = load_stats(stats_beside(beton))
    if stats.size_px != manifest.size_px:
        raise ToolError(
            f"{stats_beside(beton)}: statistics of {stats.size_px} px pictures beside a beton "
            f"of {manifest.size_px} px; make both again with imagenet-prep stats and build"
        )
    classes = Classes(manifest.classes, manifest.readable)
    validation: Path | None = validation_beside(beton)
    if validation == beton or not validation_beside(beton).exists():
        validation = None
    if validation is not None and load_manifest(validation).classes != manifest.classes:
        raise ToolError(
            f"{validation}: has other classes than {beton}; build both from one source, or "
            "move one of them elsewhere"
        )
    return Data(beton, validation, stats, classes, manifest)


def choose_device(name: str) -> torch.device:
    """``auto`` -> CUDA where there is a device; UsageError for CUDA without one."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device cuda: this machine has no usable CUDA device; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


class Session:
    """The state of a run between epochs: model, average, optimiser, place in the schedule."""

    def __init__(self, config: configs.RunConfig, data: Data) -> None:
        self.config, self.data = config, data
        self.device = choose_device(config.device)
        self.precision = loop.Precision(
            self.device, loop.choose_precision(config.precision, self.device)
        )
        self.spec = network_spec(config.network, classes=len(data.classes))
        self.model = build(self.spec, config.seed)
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average: loop.Average | None = None
        if config.average > 0:
            copy = build(self.spec, config.seed)
            copy.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.average = loop.Average(self.model, copy, config.average)
        self.optimizer = make_optimizer(
            self.model,
            config.optimizer,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            bias_rate=config.bias_rate,
            decay_biases=config.decay_biases,
        )
        self.epochs_done = 0
        self.step = 0
        self.errors: list[float] = []  # validation top-1, percent, of each epoch
        self.best: dict[str, Any] | None = None
        self.environment = environment_stamp() | {"precision": self.precision.name}

    @property
    def evaluated(self) -> torch.nn.Module:
        """The weights that count: the running average where there is one."""
        return self.model if self.average is None else self.average.average

    def freeze(self) -> None:
        """Stops the layers of ``config.freeze`` from learning, from their epoch on."""
        config = self.config
        known = [name for name, _ in self.model.named_modules() if name]
        for name in config.freeze:
            if name not in known:
                raise UsageError(f"freeze: the network has no layer {name}; see trainer summary")
            frozen = self.epochs_done >= config.freeze_epoch
            self.model.get_submodule(name).requires_grad_(not frozen)

    def stored_config(self) -> dict[str, Any]:
        """What ``config.json`` and checkpoints hold: the recipe and the network."""
        return {"run": configs.as_dict(self.config), "network": asdict(self.spec)}

    def save(self, path: Path, *, whole: bool) -> None:
        """A checkpoint: everything to continue (``whole``), or the evaluated weights."""
        average = self.average.average.state_dict() if self.average and whole else None
        save_checkpoint(
            path,
            model=(self.model if whole else self.evaluated).state_dict(),
            optimizer=self.optimizer.state_dict() if whole else None,
            average=average,
            progress={
                "epochs_done": self.epochs_done,
                "step": self.step,
                "best": self.best,
                "errors": self.errors,
            },
            config=self.stored_config(),
            classes=self.data.classes,
            stats=self.data.stats,
            environment=self.environment,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continues from ``checkpoint``; ToolError if it belongs to another run."""
        check_classes(checkpoint, self.data.classes)
        stored = configs.from_dict(checkpoint.config["run"])
        ours, theirs = configs.as_dict(self.config), configs.as_dict(stored)
        differ = [k for k in ours if ours[k] != theirs[k] and k not in FREE_ON_RESUME]
        if differ:
            what = ", ".join(f"{k} {theirs[k]} there and {ours[k]} here" for k in differ)
            raise ToolError(
                f"{checkpoint.path}: was trained with other settings ({what}); repeat the "
                "run's own options, or start a new run with another --out"
            )
        if checkpoint.stats_source != self.data.stats.source:
            raise ToolError(
                f"{checkpoint.path}: was trained on other pictures than {self.data.train}; name "
                "the run's own beton, or start a new run with another --out"
            )
        if checkpoint.optimizer is None:
            raise ToolError(f"{checkpoint.path}: holds no optimiser state; resume from a last.pt")
        self.model.load_state_dict(checkpoint.model)
        if self.average is not None and checkpoint.average is not None:
            self.average.average.load_state_dict(checkpoint.average)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.epochs_done = int(checkpoint.progress["epochs_done"])
        self.step = int(checkpoint.progress["step"])
        self.best = checkpoint.progress["best"]
        self.errors = [float(error) for error in checkpoint.progress["errors"]]
