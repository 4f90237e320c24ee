"""Who feeds a training from files of 256 x 256 crops: PyTorch's DataLoader, in two ways.

A lap is one epoch of shuffled batches, made by worker processes that live as long as the
loader does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.bench.contender import Contender

CROP_PX = 227


class Files:
    """A map-style data set: ``make(path)`` and the label, by number."""

    def __init__(
        self, files: Sequence[str], labels: Sequence[int], make: Callable[[str], Any]
    ) -> None:
        self.files, self.labels, self.make = files, labels, make

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.make(self.files[index]), self.labels[index]


def _epochs(dataset: Files, batch: int, workers: int) -> Contender:
    from torch.utils.data import DataLoader

    files: Any = dataset  # torch asks for no more than these two methods
    loader: Any = DataLoader(
        files, batch_size=batch, shuffle=True, num_workers=workers, persistent_workers=True
    )

    def lap() -> dict[str, int]:
        return {"count": sum(len(images) for images, _ in loader)}

    return Contender(lap)


def decode_jpeg(files: Sequence[str], labels: Sequence[int], batch: int, workers: int) -> Contender:
    """torchvision's own decoder and v2 transforms, uint8 throughout."""
    from torchvision.io import ImageReadMode, read_file
    from torchvision.io import decode_jpeg as decode
    from torchvision.transforms import v2

    augment = v2.Compose([v2.RandomCrop(CROP_PX), v2.RandomHorizontalFlip()])

    def make(path: str) -> Any:
        return augment(decode(read_file(path), mode=ImageReadMode.RGB))

    return _epochs(Files(files, labels, make), batch, workers)


def tutorial(
    files: Sequence[str],
    labels: Sequence[int],
    stats: str,
    batch: int,
    workers: int,
    own_colours: bool,
) -> Contender:
    """The tutorial's pipeline: PIL, torchvision, colour noise drawn per image, levels minus
    the mean image (its centre). With ``own_colours``, as the tutorial does it, the noise is
    along the image's own colour directions; without, less work, along the data set's."""
    import numpy as np
    import torch
    from PIL import Image
    from torchvision import transforms

    from imagenet_prep.dataset.statistics import load_stats

    loaded = load_stats(Path(stats))
    edge = (256 - CROP_PX) // 2
    centre = loaded.mean[edge : edge + CROP_PX, edge : edge + CROP_PX]
    mean = torch.from_numpy(centre).permute(2, 0, 1).contiguous()
    basis = torch.from_numpy(0.1 / 255 * loaded.eigenvectors * loaded.eigenstdev).float()
    augment = transforms.Compose([
        transforms.RandomCrop(CROP_PX),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
    ])  # fmt: skip

    def noise(image: Any) -> Any:
        if not own_colours:
            return basis @ torch.randn(3)
        values, vectors = np.linalg.eigh(np.cov(image.reshape(3, -1).numpy()))
        return torch.from_numpy(vectors @ (np.random.normal(0, 0.1, 3) * values)).float()

    def make(path: str) -> Any:
        with Image.open(path) as image:
            image = augment(image.convert("RGB"))
        return (image + noise(image)[:, None, None]) * 255 - mean

    return _epochs(Files(files, labels, make), batch, workers)
