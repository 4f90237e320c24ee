"""Who computes the mean image and the colour covariance of a folder of crops."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tools.bench.contender import Contender


def ours(cropped: str, out: str, jobs: int) -> Contender:
    """The whole stage of imagenet_prep: list, workers, digests, the file. Workers start in
    the lap."""
    from imagenet_prep.stats.run import run_stats

    def lap() -> dict[str, int]:
        return {"count": run_stats(Path(cropped), Path(out), jobs=jobs).count}

    return Contender(lap, lambda: Path(out).unlink(missing_ok=True))


def two_passes(files: Sequence[str]) -> Contender:
    """PIL and NumPy as one writes it down: the mean image, then the covariance of what
    differs from its channel means. Of several processes each works on its own part; adding
    their few numbers up is left out."""
    import numpy as np
    from PIL import Image

    def lap() -> dict[str, float]:
        total = np.zeros((256, 256, 3))
        for path in files:
            total += np.asarray(Image.open(path), dtype=np.float64)
        channels = (total / len(files)).mean(axis=(0, 1))
        covariance = np.zeros((3, 3))
        for path in files:
            pixels = np.asarray(Image.open(path), dtype=np.float64).reshape(-1, 3) - channels
            covariance += pixels.T @ pixels
        covariance /= len(files) * 256 * 256
        return {"count": len(files), "variance": float(np.trace(covariance))}

    return Contender(lap)


def decode(files: Sequence[str]) -> Contender:
    """Only decodes the crops, with PIL: what no way of computing can do without."""
    from PIL import Image

    def lap() -> dict[str, int]:
        for path in files:
            with Image.open(path) as image:
                image.load()
        return {"count": len(files)}

    return Contender(lap)
