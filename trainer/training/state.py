"""The state of a run between two steps, how it is stored and restored."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagenet_prep.core.errors import ToolError, UsageError
from trainer.checkpoint import Checkpoint, check_classes, save_checkpoint
from trainer.config import run_config as configs
from trainer.data import Data
from trainer.device import Precision, choose_device, choose_precision
from trainer.distributed.world import World
from trainer.network.alexnet import AlexNet, build, network_spec
from trainer.network.summary import summarise
from trainer.network.working import working_copy
from trainer.report.environment import environment_stamp
from trainer.training.memory import keep_freed_memory
from trainer.training.notices import LearningWatch
from trainer.training.optim import make_optimizer
from trainer.training.schedule import image_side, training_sides
from trainer.training.step import Average, Step, StepSettings


class Session:
    """The state of a run between steps: model, average, optimiser, place in the schedule.

    ``weights`` is the state dict that a new run starts from (None: random weights).
    """

    def __init__(
        self,
        config: configs.RunConfig,
        data: Data,
        world: World,
        *,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.config, self.data, self.world = config, data, world
        self.device = choose_device(config.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        if self.device.type == "cuda":
            self._use_device()
        self.precision = Precision(self.device, choose_precision(config.precision, self.device))
        self.spec = network_spec(
            config.network, classes=len(data.classes), channels=config.channels
        )
        if self.spec.norm == "batch" and config.batch_size < 2:
            raise UsageError(
                "config.batch_norm_of_one",
                "--batch-size 1: batch normalisation needs at least 2 images; use --batch-size 2 "
                "or a --network without it",
            )
        sides = training_sides(self.spec)
        if config.start_size and config.start_size not in sides:
            raise UsageError(
                "config.start_size",
                f"--start-size {config.start_size}: --network {config.network} trains on images of "
                f"{', '.join(map(str, sides))} px; use one of them, or 0",
            )
        self.model = self._network(weights or {})
        self.average: Average | None = None
        if config.average > 0:
            copy = self._network(self.model.state_dict())
            self.average = Average(self.model, copy, config.average)
        self.optimizer = make_optimizer(
            self.model,
            config.optimizer,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            bias_rate=config.bias_rate,
            decay_biases=config.decay_biases,
            backbone_rate=config.lr_backbone,
        )
        settings = StepSettings(
            config.label_smoothing,
            2 if self.spec.norm == "batch" else 1,
            config.accumulate,
            config.clip_norm,
        )
        # Other processes' gradients arrive by calls of the host, which a graph does not make.
        self.stepping = Step(
            self.model, self.optimizer, self.precision, settings, self.average,
            graph=world.ranks == 1,
        )  # fmt: skip
        self.saved_at = time.monotonic()  # when there was a checkpoint to continue from
        self.epochs_done = 0
        self.step = 0
        self.partial: dict[str, Any] | None = None  # where a resumed run stands in its epoch
        self.errors: list[float] = []  # validation top-1, percent, of each epoch
        self.best: dict[str, Any] | None = None
        self.learning = LearningWatch(data.classes, config.lr, self.spec.norm)
        self.environment = environment_stamp() | {"precision": self.precision.name}

    def _network(self, weights: Mapping[str, Tensor]) -> AlexNet:
        """The network on the device, with its first weights where ``weights`` has none."""
        model = build(self.spec, self.config.seed)
        model.load_state_dict({**model.state_dict(), **weights})
        return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    @staticmethod
    def new_model(config: configs.RunConfig, data: Data) -> torch.nn.Module:
        """The network with its first weights."""
        spec = network_spec(config.network, classes=len(data.classes), channels=config.channels)
        return build(spec, config.seed)

    def _use_device(self) -> None:
        """Chooses this rank's CUDA device; UsageError when there are fewer devices."""
        torch.backends.cudnn.benchmark = True
        if self.world.local_rank >= torch.cuda.device_count():
            raise UsageError(
                "device.too_few",
                f"this machine has {torch.cuda.device_count()} CUDA devices; give torchrun "
                "--nproc-per-node at most as many",
            )
        if self.world.ranks > 1:
            torch.cuda.set_device(self.world.local_rank)

    @property
    def evaluated(self) -> torch.nn.Module:
        """The weights that count: the running average where there is one."""
        return self.model if self.average is None else self.average.average

    def judging(self) -> torch.nn.Module:
        """A network with the weights that count, as they are now, in the step's precision."""
        if self.average is None:
            return self.stepping.network
        half = self.stepping.network is not self.model
        return working_copy(self.average.average, self.precision.dtype if half else None)

    @property
    def image_side(self) -> int:
        """Side of the training images in the epoch that is next, in pixels."""
        config = self.config
        return image_side(self.epochs_done, config.epochs, self.spec.input_size, config.start_size)

    @property
    def total_batch(self) -> int:
        """Images of a whole step, over all processes."""
        return self.config.batch_size * self.config.accumulate * self.world.ranks

    def layers(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Name, kind and output shape of one image, of every layer in order."""
        return [(row.layer, row.kind, row.output) for row in summarise(self.spec).rows]

    def freeze(self) -> None:
        """Stops the layers of ``config.freeze`` from learning, from their epoch on."""
        config = self.config
        known = [name for name, _ in self.model.named_modules() if name]
        for name in config.freeze:
            if name not in known:
                raise UsageError(
                    "config.no_layer",
                    f"--freeze {name}: the network has no such layer; see trainer summary",
                )
            frozen = self.epochs_done >= config.freeze_epoch
            self.stepping.freeze(name, frozen)
        taken = {p for name in config.freeze for p in self.model.get_submodule(name).parameters()}
        if taken.issuperset(self.model.parameters()):
            raise UsageError(
                "config.all_frozen", "--freeze: no layer is left that learns; name fewer layers"
            )

    def stored_config(self) -> dict[str, Any]:
        """What ``config.json`` and checkpoints hold: settings, network, data."""
        manifest, validation = self.data.manifest, self.data.validation
        return {
            "run": configs.as_dict(self.config),
            "network": asdict(self.spec),
            "beton": {"digest": manifest.digest, "samples": len(manifest.keys)},
            "validation": None if validation is None else validation.manifest.digest,
            "crop": manifest.settings.get("crop"),
            "ranks": self.world.ranks,
            "total_batch": self.total_batch,
        }

    def check_finite(self) -> None:
        """ToolError when a weight is infinite or NaN: such weights are never stored."""
        weights = [*self.model.parameters()]
        if self.average is not None:
            weights += self.average.average.parameters()
        if not bool(
            torch.stack(torch._foreach_norm([w.detach() for w in weights])).isfinite().all()
        ):
            raise ToolError(
                "run.diverged",
                f"the weights are not finite after step {self.step}, in epoch "
                f"{self.epochs_done + 1}: the run diverged; use a smaller --lr (it was "
                f"{self.config.lr:g}), a --warmup-epochs or --clip-norm 1",
            )

    def save(self, path: Path, *, whole: bool, partial: dict[str, Any] | None = None) -> None:
        """A checkpoint: everything to continue (``whole``), or the evaluated weights.

        ``partial`` is the position inside an epoch. Only rank 0 writes. ToolError,
        on every rank, for weights that are not finite.
        """
        self.check_finite()
        self.saved_at = time.monotonic() if whole else self.saved_at
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

    def restore(self, checkpoint: Checkpoint, *, force: bool) -> list[str]:
        """Continues from ``checkpoint`` -> the settings and data that differ, in words.

        ToolError if the checkpoint belongs to another run; with ``force`` the settings, images
        and ranks of this run are used. Inside an epoch of another beton file or order that epoch
        begins again, and with another validation set earlier errors are forgotten.
        """
        check_classes(checkpoint, self.data.classes)
        if checkpoint.optimizer is None:
            raise ToolError(
                "checkpoint.no_optimizer",
                f"{checkpoint.path}: holds no optimiser state; resume from a last.pt",
            )
        checkpoint.check_finite()
        try:
            differ = self._differences(checkpoint)
            self._check_network(checkpoint)
            if differ and not force:
                raise ToolError(
                    "run.other_settings",
                    f"{checkpoint.path}: the run had other settings ({', '.join(differ)}); repeat "
                    "its options, add --force to use these, or give another --out",
                )
            self.model.load_state_dict(checkpoint.model)
            if self.average is not None:
                weights = checkpoint.average or checkpoint.model
                self.average.average.load_state_dict(weights)
            self._load_optimizer(checkpoint)
            self._load_progress(checkpoint)
            self.optimizer.refresh()
        except (KeyError, TypeError, ValueError, RuntimeError, configs.ConfigError) as error:
            reason = str(error).splitlines()[0]
            raise ToolError(
                "checkpoint.does_not_fit",
                f"{checkpoint.path}: does not fit the run ({reason}); start a new run with "
                "another --out",
            ) from error
        return differ

    def _load_progress(self, checkpoint: Checkpoint) -> None:
        progress = checkpoint.progress
        self.epochs_done, self.step = int(progress["epochs_done"]), int(progress["step"])
        self.best = progress["best"]
        self.errors = [float(error) for error in progress["errors"]]
        self.learning.load_state_dict(progress["learning"])
        if checkpoint.config["validation"] != self.stored_config()["validation"]:
            self.best, self.errors = None, []  # errors of two sets do not compare
        if progress["scaler"]:
            self.precision.scaler.load_state_dict(progress["scaler"])
        self.partial = checkpoint.partial
        if self.partial is not None:
            self.step = int(self.partial["step"])

    def _differences(self, checkpoint: Checkpoint) -> list[str]:
        """What the checkpoint's run did differently, in words."""
        stored, here = checkpoint.config, self.stored_config()
        differ = list(configs.differences(configs.from_dict(stored["run"]), self.config))
        if checkpoint.stats.source != self.data.stats.source:
            differ.append(f"it was trained on other images than {self.data.train}")
        elif stored["beton"] != here["beton"]:
            differ.append(f"its beton file was another than {self.data.train}")
        if stored["validation"] != here["validation"]:
            differ.append("the validation set was another, or there was none")
        if stored["ranks"] != here["ranks"]:
            differ.append(f"{stored['ranks']} processes there and {here['ranks']} here")
        return differ

    def _check_network(self, checkpoint: Checkpoint) -> None:
        """ToolError where the weights are of another network, with ``force`` too."""
        theirs = {name: tuple(value.shape) for name, value in checkpoint.model.items()}
        ours = {name: tuple(value.shape) for name, value in self.model.state_dict().items()}
        if theirs != ours:
            name = checkpoint.config["run"]["network"]
            raise ToolError(
                "checkpoint.other_network",
                f"{checkpoint.path}: holds the weights of network {name}, which do not fit "
                f"{self.config.network}; add --network {name}, or give another --out",
            )

    def _load_optimizer(self, checkpoint: Checkpoint) -> None:
        """The optimiser's state; another optimiser (with ``force``) starts with an empty one."""
        assert checkpoint.optimizer is not None
        if checkpoint.config["run"]["optimizer"] == self.config.optimizer:
            groups = [dict(group) for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(checkpoint.optimizer)
            # The settings are those of the configuration, not of the file.
            for group, ours in zip(self.optimizer.param_groups, groups, strict=True):
                group.update({k: v for k, v in ours.items() if k != "params"})
