"""The state of a run between two steps."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from imagenet_prep.core.errors import ToolError, UsageError
from trainer.checkpoint import Checkpoint, check_classes, save_checkpoint
from trainer.config import run_config as configs
from trainer.data import Data
from trainer.device import Precision, choose_device, choose_precision
from trainer.distributed.world import World
from trainer.network.alexnet import build, network_spec, summarise
from trainer.network.compile import compiled
from trainer.report.environment import environment_stamp
from trainer.training.memory import keep_freed_memory
from trainer.training.notices import LearningWatch
from trainer.training.optim import make_optimizer
from trainer.training.schedule import peak_rate
from trainer.training.step import Average


class Session:
    """The state of a run between steps: model, average, optimiser, place in the schedule."""

    def __init__(self, config: configs.RunConfig, data: Data, world: World) -> None:
        self.config, self.data, self.world = config, data, world
        self.device = choose_device(config.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            if world.local_rank >= torch.cuda.device_count():
                raise UsageError(
                    f"this machine has {torch.cuda.device_count()} CUDA devices for more "
                    "processes; give torchrun --nproc-per-node as many as there are at most"
                )
            if world.ranks > 1:
                torch.cuda.set_device(world.local_rank)
        self.precision = Precision(self.device, choose_precision(config.precision, self.device))
        self.spec = network_spec(
            config.network, classes=len(data.classes), channels=config.channels
        )
        if self.spec.norm == "batch" and config.batch_size < 2:
            raise UsageError(
                f"batch_size is {config.batch_size}: batch normalisation cannot train on one "
                "picture; use --batch-size 2 or more, or a --network without it"
            )
        self.model = build(self.spec, config.seed)
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.learner = compiled(self.model, self.device, config.compile)
        self.average: Average | None = None
        if config.average > 0:
            copy = build(self.spec, config.seed)
            copy.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.average = Average(self.model, copy, config.average)
        self.optimizer = make_optimizer(
            self.model,
            config.optimizer,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            bias_rate=config.bias_rate,
            decay_biases=config.decay_biases,
            trust=config.trust,
        )
        self.epochs_done = 0
        self.step = 0
        self.partial: dict[str, Any] | None = None  # where a resumed run stands in its epoch
        self.errors: list[float] = []  # validation top-1, percent, of each epoch
        self.best: dict[str, Any] | None = None
        self.learning = LearningWatch(data.classes, config.lr, self.spec.norm)
        self.environment = environment_stamp() | {"precision": self.precision.name}

    @property
    def evaluated(self) -> torch.nn.Module:
        """The weights that count: the running average where there is one."""
        return self.model if self.average is None else self.average.average

    @property
    def total_batch(self) -> int:
        """Pictures of a whole step, over all processes."""
        return self.config.batch_size * self.config.accumulate * self.world.ranks

    @property
    def peak_rate(self) -> float:
        """The learning rate that the schedule multiplies."""
        return peak_rate(self.config.lr, self.config.lr_per, self.total_batch)

    def layers(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Name, kind and output shape of one picture, of every layer in order."""
        return [(row.layer, row.kind, row.output) for row in summarise(self.spec).rows]

    def freeze(self) -> None:
        """Stops the layers of ``config.freeze`` from learning, from their epoch on."""
        config = self.config
        known = [name for name, _ in self.model.named_modules() if name]
        for name in config.freeze:
            if name not in known:
                raise UsageError(f"freeze: the network has no layer {name}; see trainer summary")
            frozen = self.epochs_done >= config.freeze_epoch
            self.model.get_submodule(name).requires_grad_(not frozen)
        taken = {p for name in config.freeze for p in self.model.get_submodule(name).parameters()}
        if taken.issuperset(self.model.parameters()):
            raise UsageError("freeze: no layer is left that learns; name fewer of them")

    def stored_config(self) -> dict[str, Any]:
        """What ``config.json`` and checkpoints hold: the recipe, the network, what it reads."""
        manifest, validation = self.data.manifest, self.data.validation
        return {
            "run": configs.as_dict(self.config),
            "network": asdict(self.spec),
            "beton": {"digest": manifest.digest, "samples": len(manifest.keys)},
            "validation": None if validation is None else validation.manifest.digest,
            "crop": manifest.settings.get("crop"),
            "ranks": self.world.ranks,
            "total_batch": self.total_batch,
            "peak_lr": self.peak_rate,
        }

    def save(self, path: Path, *, whole: bool, partial: dict[str, Any] | None = None) -> None:
        """A checkpoint: everything to continue (``whole``), or the evaluated weights.

        ``partial`` says where the run stands inside an epoch. Only rank 0 writes.
        """
        if not self.world.main:
            return
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
                "learning": self.learning.state_dict(),
                "scaler": self.precision.scaler.state_dict(),
            },
            partial=partial,
            config=self.stored_config(),
            classes=self.data.classes,
            stats=self.data.stats,
            environment=self.environment,
        )

    def restore(self, checkpoint: Checkpoint, *, force: bool) -> None:
        """Continues from ``checkpoint``; ToolError if it belongs to another run.

        With ``force`` other settings, pictures and ranks are taken as they are here; inside
        an epoch of another beton or order that epoch begins again, and with another validation
        set no epoch before is the best one.
        """
        check_classes(checkpoint, self.data.classes)
        if checkpoint.optimizer is None:
            raise ToolError(f"{checkpoint.path}: holds no optimiser state; resume from a last.pt")
        try:
            differ = self._differences(checkpoint)
            self._check_network(checkpoint)
            if differ and not force:
                raise ToolError(
                    f"{checkpoint.path}: the run was another one ({', '.join(differ)}); repeat "
                    "its own options, add --force to go on with these, or give another --out"
                )
            self.model.load_state_dict(checkpoint.model)
            if self.average is not None:
                weights = checkpoint.average or checkpoint.model
                self.average.average.load_state_dict(weights)
            self._load_optimizer(checkpoint)
            progress = checkpoint.progress
            self.epochs_done, self.step = int(progress["epochs_done"]), int(progress["step"])
            self.best = progress["best"]
            self.errors = [float(error) for error in progress["errors"]]
            self.learning.load_state_dict(progress["learning"])
            if checkpoint.config["validation"] != self.stored_config()["validation"]:
                self.best, self.errors = None, []  # errors of another set compare with none here
            if progress["scaler"]:
                self.precision.scaler.load_state_dict(progress["scaler"])
            self.partial = checkpoint.partial
            if self.partial is not None:
                self.step = int(self.partial["step"])
        except (KeyError, TypeError, ValueError, RuntimeError, configs.ConfigError) as error:
            reason = str(error).splitlines()[0]
            raise ToolError(
                f"{checkpoint.path}: does not fit the run ({reason}); start a new run with "
                "another --out"
            ) from error

    def _differences(self, checkpoint: Checkpoint) -> list[str]:
        """What the checkpoint's run did in another way than this one, in words."""
        stored, here = checkpoint.config, self.stored_config()
        differ = list(configs.differences(configs.from_dict(stored["run"]), self.config))
        if checkpoint.stats_source != self.data.stats.source:
            differ.append(f"it was trained on other pictures than {self.data.train}")
        elif stored["beton"] != here["beton"]:
            differ.append(f"its beton was another file than {self.data.train}")
        if stored["validation"] != here["validation"]:
            differ.append(f"the validation set beside {self.data.train} was another, or none")
        if stored["ranks"] != here["ranks"]:
            differ.append(f"{stored['ranks']} processes there and {here['ranks']} here")
        return differ

    def _check_network(self, checkpoint: Checkpoint) -> None:
        """ToolError where the weights are of another network: no force helps there."""
        theirs = {name: tuple(value.shape) for name, value in checkpoint.model.items()}
        ours = {name: tuple(value.shape) for name, value in self.model.state_dict().items()}
        if theirs != ours:
            name = checkpoint.config["run"]["network"]
            raise ToolError(
                f"{checkpoint.path}: holds the weights of network {name}, which do not fit "
                f"{self.config.network}; add --network {name}, or give another --out"
            )

    def _load_optimizer(self, checkpoint: Checkpoint) -> None:
        """The optimiser's memory; with another optimiser (under force) it begins empty."""
        assert checkpoint.optimizer is not None
        if checkpoint.config["run"]["optimizer"] == self.config.optimizer:
            groups = [dict(group) for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(checkpoint.optimizer)
            # The recipe is the configuration's, whatever the file says.
            for group, ours in zip(self.optimizer.param_groups, groups, strict=True):
                group.update({k: v for k, v in ours.items() if k != "params"})
