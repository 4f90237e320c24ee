"""A checkpoint and a beton -> loss and errors, on the pictures as the network sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from imagenet_prep.artifacts import Classes, Progress, Stats, ToolError, load_manifest
from trainer import config as configs
from trainer import loop
from trainer.checkpoint import Checkpoint, check_classes, load_checkpoint
from trainer.loader import BetonLoader, eval_loader
from trainer.model import AlexNet, NetworkSpec
from trainer.session import choose_device


def evaluation_batches(
    beton: Path, stats: Stats, spec: NetworkSpec, config: configs.RunConfig
) -> BetonLoader:
    """The centre crops of ``beton`` as the network sees them."""
    return eval_loader(
        beton,
        stats,
        batch_size=config.batch_size,
        crop_size=config.crop_size,
        out_size=spec.input_size,
        jobs=config.jobs,
        device=choose_device(config.device).type,
    )


def counter(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(what, done, total)

    return advance


def model_of(checkpoint: Checkpoint, device: torch.device) -> tuple[AlexNet, configs.RunConfig]:
    """The network that ``checkpoint`` was evaluated with, in evaluation mode."""
    try:
        values = dict(checkpoint.config["network"])
        for name in ("widths", "groups", "hidden", "orders", "weight_std", "biases"):
            values[name] = tuple(values[name])
        spec = NetworkSpec(**values)
        config = configs.from_dict(checkpoint.config["run"])
        model = AlexNet(spec)
        model.load_state_dict(checkpoint.average or checkpoint.model)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ToolError(
            f"{checkpoint.path}: its weights and its description do not belong together "
            f"({reason}); train again or use the version that wrote it"
        ) from error
    model.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, config


def evaluate_beton(
    checkpoint_path: Path,
    beton: Path,
    *,
    device: str,
    batch_size: int | None,
    precision: str,
    jobs: int | None,
    progress: Progress,
) -> loop.Result:
    """Loss and errors of a checkpoint over a beton, with the checkpoint's own mean image."""
    checkpoint = load_checkpoint(checkpoint_path)
    manifest = load_manifest(beton)
    check_classes(checkpoint, Classes(manifest.classes, manifest.readable))
    place = choose_device(device)
    model, config = model_of(checkpoint, place)
    config = replace(
        config, device=place.type, jobs=jobs, batch_size=batch_size or config.batch_size
    )
    chosen = loop.Precision(place, loop.choose_precision(precision, place))
    with evaluation_batches(beton, checkpoint.stats, model.spec, config) as batches:
        count = counter(progress, "evaluate", batches.samples)
        result, _ = loop.evaluate(model, batches, chosen, len(checkpoint.classes), place, count)
    return result
