"""Raw images and a checkpoint -> the likeliest classes, through the same crop as in training."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagenet_prep.core.errors import Progress, ToolError, UsageError
from imagenet_prep.crop.decode import ImageError
from imagenet_prep.crop.image import crop_pixels
from imagenet_prep.dataset.classes import Classes
from imagenet_prep.storage.location import Url, location_of
from trainer.checkpoint import load_checkpoint
from trainer.device import Precision, choose_device, choose_precision
from trainer.inference.evaluate import model_of
from trainer.inference.preprocess import Preparation

NOT_IMAGES = {".json", ".jsonl", ".txt", ".csv", ".md", ".npz", ".beton", ".pt", ".html"}
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class Input:
    """An image to predict: its name (path, URL, ``archive.zip/member``) and how to read it."""

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Guess:
    """A class (folder name and readable name) with its probability, 0 to 1."""

    name: str
    title: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, best first; or the reason why there are none.

    ``pixels`` (S, S, 3) uint8 is the crop; ``truth`` is the readable name of the class that the
    image's folder is named after, None if it is not named after one; ``right`` is whether the
    likeliest class is that one.
    """

    name: str
    guesses: tuple[Guess, ...]
    reason: str | None = None
    pixels: NDArray[np.uint8] | None = None
    truth: str | None = None
    right: bool | None = None


def truth_of(name: str, classes: Classes) -> int | None:
    """The label of the class after which an image's folder, or the one around that (Tiny
    ImageNet's ``<wnid>/images/``), is named; None if neither is."""
    parts = Path(name).absolute().parts if Path(name).exists() else PurePosixPath(name).parts
    for folder in parts[-2:-4:-1]:
        if folder in classes.names:
            return classes.names.index(folder)
    return None


def list_inputs(words: Sequence[str]) -> list[Input]:
    """Files, folders, archives (zip, tar), URLs and ``-`` (one image on stdin) -> images.

    Folders and archives give all their images, sorted. UsageError where there is none.
    """
    return [found for word in words for found in _inputs(word)]


def _inputs(word: str) -> list[Input]:
    if word == "-":
        return [Input("-", sys.stdin.buffer.read)]
    where = location_of(word)
    if not where.exists():
        message = f"{word}: no such image, folder or URL; name one that is there"
        raise UsageError("predict.missing", message)
    if word.lower().endswith(ARCHIVES) and isinstance(where, Path):
        found = list(_members(where))
    elif not where.is_dir():
        return [Input(str(where), partial(_read, where))]
    elif isinstance(where, Url):
        found = [Input(str(url), partial(_read, url)) for url in _files_below(where)]
    else:
        inside = (path for path in sorted(where.rglob("*")) if path.is_file())
        found = [Input(str(path), path.read_bytes) for path in inside if _is_image(path.name)]
    if not found:
        raise UsageError("predict.empty", f"{word}: contains no images; name another, or files")
    return found


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() not in NOT_IMAGES and not path.name.startswith(".")


def _read(where: Any) -> bytes:
    data: bytes = where.place().read() if isinstance(where, Url) else where.read_bytes()
    return data


def _files_below(folder: Url) -> Iterator[Url]:
    for entry in sorted(folder.entries(), key=str):
        if entry.is_dir():
            yield from _files_below(entry)
        elif _is_image(entry.path.full):
            yield entry


def _members(archive: Path) -> Iterator[Input]:
    """The images in an archive, each read when it is asked for."""
    try:
        if archive.suffix.lower() == ".zip":
            with zipfile.ZipFile(archive) as members:
                names = sorted(i.filename for i in members.infolist() if not i.is_dir())
        else:
            with tarfile.open(archive) as members_of_tar:
                names = sorted(i.name for i in members_of_tar if i.isfile())
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise ToolError("predict.archive", f"{archive}: cannot be read ({error})") from error
    for name in filter(_is_image, names):
        yield Input(f"{archive}/{name}", partial(_member, archive, name))


def _member(archive: Path, name: str) -> bytes:
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as members:
            return members.read(name)
    with tarfile.open(archive) as members_of_tar:
        file = members_of_tar.extractfile(name)
        assert file is not None  # a regular file, as listed
        return file.read()


def predict(
    checkpoint_path: Path,
    inputs: Sequence[Input],
    *,
    top: int = 5,
    batch_size: int = 64,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress,
) -> Iterator[Prediction]:
    """The ``top`` likeliest classes of each image, in order.

    An image that cannot be read gives a Prediction with its reason; ToolError only for the
    checkpoint.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    place = choose_device(device)
    model, config = model_of(checkpoint, place)
    chosen = Precision(place, choose_precision(precision, place))
    prepare = Preparation.of(config, checkpoint.stats, model.spec.test_side)
    classes, settings = checkpoint.classes, checkpoint.crop_settings
    for start in range(0, len(inputs), batch_size):
        some = inputs[start : start + batch_size]
        crops: dict[int, NDArray[np.uint8]] = {}
        reasons: dict[int, str] = {}
        for number, one in enumerate(some):
            try:
                crops[number] = crop_pixels(one.read(), settings)
            except (ImageError, OSError, zipfile.BadZipFile, tarfile.TarError) as error:
                reasons[number] = getattr(error, "strerror", None) or str(error)
        batch = [prepare(torch.tensor(pixels)) for pixels in crops.values()]
        rows = iter(_guess(model, batch, chosen, place, min(top, len(classes))))
        for number, one in enumerate(some):
            if number in reasons:
                yield Prediction(one.name, (), reasons[number])
            else:
                yield _prediction(one.name, next(rows), crops[number], classes)
        progress("predict", min(start + batch_size, len(inputs)), len(inputs))


def _prediction(
    name: str, found: list[tuple[int, float]], pixels: NDArray[np.uint8], classes: Classes
) -> Prediction:
    """Labels and probabilities, best first -> a Prediction."""
    guesses = tuple(Guess(classes.names[i], classes.title(i), share) for i, share in found)
    truth = truth_of(name, classes)
    known = (None, None) if truth is None else (classes.title(truth), truth == found[0][0])
    return Prediction(name, guesses, None, pixels, *known)


@torch.inference_mode()
def _guess(
    model: torch.nn.Module,
    images: list[Tensor],
    precision: Precision,
    device: torch.device,
    top: int,
) -> list[list[tuple[int, float]]]:
    if not images:
        return []
    batch = torch.stack(images).to(device, memory_format=torch.channels_last)
    with precision.context():
        logits = model(batch)
    values, labels = logits.float().softmax(dim=1).topk(top, dim=1)
    return [
        list(zip(row, probabilities, strict=True))
        for row, probabilities in zip(labels.tolist(), values.tolist(), strict=True)
    ]
