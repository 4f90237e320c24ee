"""What a variant of the speedup is made of: a feed of batches and a network trained on them.

A lap is one epoch of a set of fixed size: every image is read, prepared and trained on. The
loops are as tutorials write them, with the loss asked for after each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench.contender import Contender, quick_ffcv
from tools.bench.contenders_step import INPUT_PX, LR, Ours, tutorial_network
from tools.bench.contenders_torch import Files

# What tutorials subtract and divide by, for images of 0 to 1.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Place:
    """What all variants share: images a step, threads, the device, whether it is a smoke test."""

    batch: int
    threads: int
    device: str
    small: bool


@dataclass(frozen=True)
class Data:
    """What there is to read: ``files`` with ``labels`` at original sizes or cropped, and a
    beton with its statistics. A feed takes what it needs."""

    files: Sequence[str] = ()
    labels: Sequence[int] = ()
    beton: str = ""
    stats: str = ""


Pair = tuple[Any, Any]
Feed = Callable[[], Iterator[Pair]]


def _files(data: Data, place: Place, workers: int, original: bool) -> Feed:
    """A map-style set of image files in PyTorch's DataLoader."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchvision import transforms

    first = [transforms.Resize(256)] if original else []
    augment = transforms.Compose([
        *first,
        transforms.RandomCrop(INPUT_PX),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(_MEAN, _DEVIATION),
    ])  # fmt: skip

    def make(path: str) -> Any:
        with Image.open(path) as image:
            return augment(image.convert("RGB"))

    files: Any = Files(data.files, data.labels, make)
    loader: Any = DataLoader(
        files, batch_size=place.batch, shuffle=True, num_workers=workers,
        persistent_workers=workers > 0, pin_memory=workers > 0 and place.device == "cuda",
    )  # fmt: skip
    device = torch.device(place.device)

    def epoch() -> Iterator[Pair]:
        for images, labels in loader:
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    return epoch


def _originals(data: Data, place: Place) -> Feed:
    return _files(data, place, 0, True)


def _crops(data: Data, place: Place) -> Feed:
    return _files(data, place, 0, False)


def _workers(data: Data, place: Place) -> Feed:
    return _files(data, place, place.threads, False)


def _ffcv(data: Data, place: Place) -> Feed:
    """FFCV's decoder of random, resized crops, its mirror and its threads; the mean is
    subtracted on the device, since FFCV's own layer for that wants another package on CUDA."""
    import torch

    with quick_ffcv():
        from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.pipeline.compiler import Compiler
        from ffcv.transforms import (
            RandomHorizontalFlip,
            Squeeze,
            ToDevice,
            ToTensor,
            ToTorchImage,
        )

    Compiler.set_enabled(not place.small)
    device = torch.device(place.device)
    moved = [ToDevice(device, non_blocking=True)] if place.device == "cuda" else []
    image = [
        RandomResizedCropRGBImageDecoder((INPUT_PX, INPUT_PX)), RandomHorizontalFlip(),
        ToTensor(), *moved, ToTorchImage(channels_last=False),
    ]  # fmt: skip
    loader = Loader(
        data.beton, batch_size=place.batch, num_workers=place.threads, order=OrderOption.RANDOM,
        os_cache=True, drop_last=False,
        pipelines={"image": image, "label": [IntDecoder(), ToTensor(), Squeeze(), *moved]},
    )  # fmt: skip
    mean, deviation = (
        torch.tensor([255 * level for level in levels], device=device)[None, :, None, None]
        for levels in (_MEAN, _DEVIATION)
    )

    def epoch() -> Iterator[Pair]:
        for images, labels in loader:
            yield (images.float() - mean) / deviation, labels.reshape(-1)

    return epoch


def _loader(data: Data, place: Place, layout: str, decode: str) -> Any:
    """The trainer's loader; JPEGs are decoded on the CPU (``decode`` "cpu") or on the GPU."""
    from imagenet_prep.dataset.statistics import load_stats
    from trainer.loader.loader import train_loader

    return train_loader(
        Path(data.beton), load_stats(Path(data.stats)), batch_size=place.batch,
        crop_size=INPUT_PX, jobs=place.threads, device=place.device, layout=layout, decode=decode,
    )  # fmt: skip


def _ours(data: Data, place: Place, decode: str = "cpu") -> Feed:
    loader = _loader(data, place, "channels_first", decode)

    def epoch() -> Iterator[Pair]:
        for batch in loader:
            yield batch.images, batch.labels

    return epoch


def _decoded(data: Data, place: Place) -> Feed:
    return _ours(data, place, "gpu")


def _last(data: Data, place: Place) -> Feed:
    """The fastest loader of the device, which the variants after the loaders keep."""
    return _ours(data, place, _fastest(place))


def _fastest(place: Place) -> str:
    return "gpu" if place.device == "cuda" else "cpu"


FEEDS: dict[str, Callable[[Data, Place], Feed]] = {
    "originals": _originals,
    "crops": _crops,
    "workers": _workers,
    "ffcv": _ffcv,
    "ours": _ours,
    "decoded": _decoded,
    "last": _last,
}


@dataclass(frozen=True)
class Network:
    """The tutorials' network with none, some or all of the later changes."""

    our_lrn: bool = False
    channels_last: bool = False
    precision: str = "float32"
    compiled: bool = False

    def steps(self, place: Place) -> Callable[[Any, Any], float]:
        """(images, labels) -> the loss, after one step of SGD."""
        import torch

        from trainer.device import Precision
        from trainer.network.lrn import LocalResponseNorm

        torch.set_num_threads(place.threads)
        torch.manual_seed(0)
        device = torch.device(place.device)
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        lrn = LocalResponseNorm if self.our_lrn else None
        plain = tutorial_network(place.small, lrn).to(device, memory_format=order)
        optimizer = torch.optim.SGD(plain.parameters(), LR, momentum=0.9, weight_decay=5e-4)
        loss_of = torch.nn.CrossEntropyLoss()
        precision = Precision(device, self.precision)
        model: Any = plain
        if self.compiled:
            model = torch.compile(plain, dynamic=False)

        def step(images: Any, labels: Any) -> float:
            optimizer.zero_grad()
            with precision.context():
                loss = loss_of(model(images.contiguous(memory_format=order)), labels)
            precision.scaler.scale(loss).backward()
            precision.scaler.step(optimizer)
            precision.scaler.update()
            return float(loss.item())

        return step


def variant(
    feed: str, network: Mapping[str, Any], data: Mapping[str, Any], place: Mapping[str, Any]
) -> Contender:
    """A variant from plain values, as they come from another process."""
    where, given = Place(**place), Data(**data)
    if feed == "trainer":
        return _trainer(given, where, **network)
    epoch, step = FEEDS[feed](given, where), Network(**network).steps(where)

    def lap() -> dict[str, Any]:
        count, total = 0, 0.0
        for images, labels in epoch():
            total += step(images, labels)
            count += len(labels)
        return {"count": count, "loss": total}

    return Contender(lap)


def _trainer(data: Data, place: Place, *, graph: bool, precision: str) -> Contender:
    """The trainer's step and loader: what ``trainer run --preset paper`` runs."""
    made = Ours(place.threads, precision, place.small, place.device, graph=graph)
    loader = _loader(data, place, "channels_last", _fastest(place))
    return Contender(lambda: made.train(loader))
