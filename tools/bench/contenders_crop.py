"""Who crops: from an image's file to the written 256 x 256 JPEG of quality 90."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.bench.contender import Contender

SIZE_PX = 256
QUALITY = 90


def _each(files: Sequence[str], folder: str, crop: Callable[[str, str], object]) -> Contender:
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    pairs = [(path, str(target / f"{number:06d}.jpg")) for number, path in enumerate(files)]

    def lap() -> dict[str, int]:
        for path, out in pairs:
            crop(path, out)
        return {"count": len(pairs)}

    return Contender(lap)


def ours(files: Sequence[str], folder: str) -> Contender:
    """imagenet_prep's function in one process."""
    from imagenet_prep.crop.image import crop_image
    from imagenet_prep.dataset.crop_settings import CropSettings

    settings = CropSettings(size=SIZE_PX, quality=QUALITY)

    def crop(path: str, out: str) -> None:
        Path(out).write_bytes(crop_image(Path(path).read_bytes(), settings).jpeg)

    return _each(files, folder, crop)


def tutorial(files: Sequence[str], folder: str) -> Contender:
    """PIL open, convert, torchvision's Resize and CenterCrop, save; of whichever Pillow
    this process has."""
    import torch
    from PIL import Image
    from torchvision.transforms import CenterCrop, Compose, Resize

    torch.set_num_threads(1)
    recipe = Compose([Resize(SIZE_PX), CenterCrop(SIZE_PX)])

    def crop(path: str, out: str) -> None:
        with Image.open(path) as image:
            recipe(image.convert("RGB")).save(out, quality=QUALITY)

    return _each(files, folder, crop)


def libvips(files: Sequence[str], folder: str) -> Contender:
    """libvips' thumbnail with centre crop, which decodes at a fraction of the size where it
    can. It writes 4:2:0 as all others here do: its own default at this quality, 4:4:4, is
    slower."""
    os.environ["VIPS_CONCURRENCY"] = "1"
    import pyvips

    pyvips.cache_set_max(0)  # files are read again in each lap

    def crop(path: str, out: str) -> None:
        image: Any = pyvips.Image.thumbnail(path, SIZE_PX, height=SIZE_PX, crop="centre")
        image.jpegsave(out, Q=QUALITY, subsample_mode="on")

    return _each(files, folder, crop)


def stage(src: str, dst: str, jobs: int) -> Contender:
    """The whole stage of imagenet_prep: sources, workers, journal. Workers start in the lap."""
    from imagenet_prep.core.errors import quiet
    from imagenet_prep.crop.run import run_crop
    from imagenet_prep.dataset.crop_settings import CropSettings

    target = Path(dst)

    def reset() -> None:
        shutil.rmtree(target, ignore_errors=True)

    def lap() -> dict[str, int]:
        settings = CropSettings(size=SIZE_PX, quality=QUALITY)
        report = run_crop(Path(src), target, settings, jobs=jobs, max_failures=None, progress=quiet)
        return {"count": report.ok, "failed": report.failed}

    return Contender(lap, reset)
