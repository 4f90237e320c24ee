"""A checkpoint and a beton file -> loss and errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imagenet_prep.core.errors import Progress, ToolError, UsageError
from imagenet_prep.dataset.classes import Classes
from imagenet_prep.dataset.shards import Betons, find_betons
from imagenet_prep.dataset.statistics import Stats
from trainer.checkpoint import Checkpoint, check_classes, load_checkpoint
from trainer.config import run_config as configs
from trainer.device import Precision, choose_device, choose_precision
from trainer.inference.judge import Judged, Result, evaluate
from trainer.loader.loader import BetonLoader, eval_loader
from trainer.network.alexnet import AlexNet, NetworkSpec, takes_squares

VIEWS = {1: "centre", 5: "five", 10: "ten"}
"""Number of views of an image -> the loader's name of them."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Loss and errors (percent) over a set, by class too.

    ``confusion`` (K, K) int64 counts images, true class × predicted class; ``in_top5`` (K,)
    int64 those whose true class is among the five likeliest; ``judged`` has every image.
    """

    result: Result
    confusion: NDArray[np.int64]
    in_top5: NDArray[np.int64]
    judged: Judged

    def by_class(self, classes: Classes) -> list[dict[str, Any]]:
        """A row per class: its images, top-1 and top-5 error in percent (None without
        images), and the class that it is most often taken for, with the count."""
        rows: list[dict[str, Any]] = []
        for label, name in enumerate(classes.names):
            counts = self.confusion[label]
            total = int(counts.sum())
            wrong = counts.copy()
            wrong[label] = 0
            most = int(wrong.argmax())
            right, five = int(counts[label]), int(self.in_top5[label])
            rows.append(
                {
                    "class": name,
                    "name": classes.title(label),
                    "images": total,
                    "top1_error": 100 * (1 - right / total) if total else None,
                    "top5_error": 100 * (1 - five / total) if total else None,
                    "taken_for": classes.names[most] if wrong[most] else None,
                    "taken_for_images": int(wrong[most]),
                }
            )
        return rows


def evaluation_of(judged: Judged, classes: int) -> Evaluation:
    """The outputs for each image -> loss, errors and tables over ``classes``."""
    labels, predicted = judged.labels.numpy(), judged.predicted.numpy()
    cells = np.bincount(labels * classes + predicted, minlength=classes * classes)
    in_top5 = judged.in_top5.numpy()
    count = len(labels)
    result = Result(
        float(judged.losses.double().mean()) if count else 0.0,
        100 * (1 - float((labels == predicted).sum()) / max(count, 1)),
        100 * (1 - float(in_top5.sum()) / max(count, 1)),
        count,
    )
    return Evaluation(
        result,
        cells.reshape(classes, classes).astype(np.int64),
        np.bincount(labels[in_top5], minlength=classes).astype(np.int64),
        judged,
    )


def batch_form(spec: NetworkSpec, precision: Precision) -> dict[str, Any]:
    """``dtype`` and ``layout`` of the batches that a network of ``spec`` takes fastest."""
    if precision.device.type != "cuda":
        return {}
    layout = "space_to_depth" if takes_squares(spec) else "channels_last"
    return {"dtype": precision.name, "layout": layout}


def evaluation_batches(
    beton: Path | Betons,
    stats: Stats,
    spec: NetworkSpec,
    config: configs.RunConfig,
    *,
    views: int = 1,
    rank: int = 0,
    ranks: int = 1,
) -> BetonLoader:
    """The images of ``beton`` as the network sees them: 1, 5 or 10 views of each."""
    if views not in VIEWS:
        raise UsageError("evaluate.views", f"{views} views: choose 1, 5 or 10")
    device = choose_device(config.device)
    precision = Precision(device, choose_precision(config.precision, device))
    return eval_loader(
        beton,
        stats,
        batch_size=max(1, config.batch_size // views),
        view=VIEWS[views],
        crop_size=config.crop_size,
        out_size=spec.test_side,
        mean=config.pixel_mean,
        std=config.pixel_std,
        scaled=config.scaled,
        rank=rank,
        ranks=ranks,
        jobs=config.jobs,
        device=device.type,
        decode=config.decode,
        **batch_form(replace(spec, input_size=spec.test_side), precision),
    )


def counter(progress: Progress, what: str, total: int, done: int = 0) -> Callable[[int], None]:
    """A count of images -> ``progress`` with the sum so far."""

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(what, min(done, total), total)

    return advance


def model_of(checkpoint: Checkpoint, device: torch.device) -> tuple[AlexNet, configs.RunConfig]:
    """The evaluated network of ``checkpoint``, in evaluation mode, and its settings.

    ToolError for weights that are not finite or do not fit their description.
    """
    checkpoint.check_finite()
    try:
        values = dict(checkpoint.config["network"])
        for name in ("widths", "groups", "hidden", "orders", "weight_std", "biases"):
            values[name] = tuple(values[name])
        spec = NetworkSpec(**values)
        config = configs.from_dict(checkpoint.config["run"])
        model = AlexNet(spec)
        model.load_state_dict(checkpoint.average or checkpoint.model)
    except (KeyError, TypeError, ValueError, RuntimeError, configs.ConfigError) as error:
        reason = str(error).splitlines()[0]
        raise ToolError(
            "checkpoint.does_not_fit",
            f"{checkpoint.path}: its weights do not fit its description ({reason}); train again or "
            "use the version that wrote it",
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
    views: int = 1,
) -> tuple[Evaluation, Classes]:
    """A checkpoint over a beton, with the checkpoint's own mean image; and the classes."""
    checkpoint = load_checkpoint(checkpoint_path)
    betons = find_betons(beton)
    manifest = betons.manifest
    check_classes(checkpoint, Classes(manifest.classes, manifest.readable))
    place = choose_device(device)
    model, config = model_of(checkpoint, place)
    config = replace(
        config, device=place.type, jobs=jobs, batch_size=batch_size or config.batch_size,
        decode="auto",
    )  # fmt: skip
    chosen = Precision(place, choose_precision(precision, place))
    batches = evaluation_batches(betons, checkpoint.stats, model.spec, config, views=views)
    with batches:
        count = counter(progress, "evaluate", batches.samples)
        judged = evaluate(model, batches, chosen, count)
    return evaluation_of(judged, len(checkpoint.classes)), checkpoint.classes
