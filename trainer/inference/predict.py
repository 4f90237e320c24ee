"""Raw pictures and a checkpoint -> the likeliest classes, through the same crop as training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagenet_prep.core.errors import Progress, ToolError, UsageError
from imagenet_prep.crop.decode import ImageError
from imagenet_prep.crop.image import crop_pixels
from imagenet_prep.dataset.classes import Classes
from trainer.checkpoint import load_checkpoint
from trainer.device import Precision, choose_device, choose_precision
from trainer.inference.evaluate import model_of
from trainer.inference.preprocess import Preparation

NOT_PICTURES = {".json", ".jsonl", ".txt", ".csv", ".md", ".npz", ".beton", ".pt", ".html"}


@dataclass(frozen=True)
class Guess:
    """A class (folder name and name for people) with its probability, 0 to 1."""

    name: str
    title: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one picture, best first; or the reason why there are none.

    ``pixels`` (S, S, 3) uint8 is the crop that was judged; ``truth`` is the class, as people
    call it, that the picture's folder is named after, None where it is not named after one;
    ``right`` is whether the likeliest class is that, None where nobody knows.
    """

    path: Path
    guesses: tuple[Guess, ...]
    reason: str | None = None
    pixels: NDArray[np.uint8] | None = None
    truth: str | None = None
    right: bool | None = None


def truth_of(path: Path, classes: Classes) -> int | None:
    """The label of the class after which a picture's folder, or the one around that
    (Tiny ImageNet's ``<wnid>/images/``), is called; None if neither is."""
    for folder in path.absolute().parts[-2:-4:-1]:
        if folder in classes.names:
            return classes.names.index(folder)
    return None


def list_pictures(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as all the pictures in them, sorted; UsageError if none."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = (p for p in sorted(path.rglob("*")) if p.is_file())
            pictures = [
                p
                for p in inside
                if p.suffix.lower() not in NOT_PICTURES and not p.name.startswith(".")
            ]
            if not pictures:
                raise UsageError(f"{path}: no pictures in this folder; name another, or files")
            found += pictures
        elif path.exists():
            found.append(path)
        else:
            raise UsageError(f"{path}: no such picture or folder; check the spelling")
    return found


def predict(
    checkpoint_path: Path,
    pictures: Sequence[Path],
    *,
    top: int = 5,
    batch_size: int = 64,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress,
) -> Iterator[Prediction]:
    """The ``top`` likeliest classes of each picture, in order.

    A picture that cannot be read gives a Prediction with its reason; ToolError only for
    the checkpoint.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    place = choose_device(device)
    model, config = model_of(checkpoint, place)
    chosen = Precision(place, choose_precision(precision, place))
    prepare = Preparation.of(config, checkpoint.stats, model.spec.input_size)
    classes, settings = checkpoint.classes, checkpoint.crop_settings
    top = min(top, len(classes))
    for start in range(0, len(pictures), batch_size):
        some = pictures[start : start + batch_size]
        inputs: list[Tensor] = []
        crops: dict[Path, NDArray[np.uint8]] = {}
        reasons: dict[Path, str] = {}
        for path in some:
            try:
                pixels = crop_pixels(path.read_bytes(), settings)
            except (ImageError, OSError) as error:
                reasons[path] = getattr(error, "strerror", None) or str(error)
                continue
            crops[path] = pixels
            inputs.append(prepare(torch.tensor(pixels)))
        rows = iter(_guess(model, inputs, chosen, place, top))
        for path in some:
            if path in reasons:
                yield Prediction(path, (), reasons[path])
                continue
            found = next(rows)
            guesses = tuple(
                Guess(classes.names[label], classes.title(label), probability)
                for label, probability in found
            )
            truth = truth_of(path, classes)
            known = (None, None) if truth is None else (classes.title(truth), truth == found[0][0])
            yield Prediction(path, guesses, None, crops[path], *known)
        progress("predict", min(start + batch_size, len(pictures)), len(pictures))


@torch.inference_mode()
def _guess(
    model: torch.nn.Module,
    inputs: list[Tensor],
    precision: Precision,
    device: torch.device,
    top: int,
) -> list[list[tuple[int, float]]]:
    if not inputs:
        return []
    batch = torch.stack(inputs).to(device, memory_format=torch.channels_last)
    with precision.context():
        logits = model(batch)
    values, labels = logits.float().softmax(dim=1).topk(top, dim=1)
    if not torch.isfinite(values).all():
        raise ToolError("the network gives no numbers for these pictures; train it again")
    return [
        list(zip(row, probabilities, strict=True))
        for row, probabilities in zip(labels.tolist(), values.tolist(), strict=True)
    ]
