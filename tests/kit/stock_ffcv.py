"""All pixels and labels of a beton by FFCV's own loader, in a process of its own.

FFCV 1.0.2 marks types of numba that all code in the process shares as read-only; functions that
were compiled before are then not found any more.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.kit.command import python


def ffcv_batches(path: Path, *, os_cache: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """-> pixels (N, S, S, 3) and labels (N,), in the order of the file."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "batches.npz")
        more = ["--os-cache"] if os_cache else []
        python("-m", "tests.kit.stock_ffcv", path, out, *more)
        with np.load(out) as found:
            return found["images"], found["labels"]


def main(path: str, out: str, os_cache: bool) -> None:
    """Reads the beton with FFCV's loader and decoders, into ``out``."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    loader = Loader(
        path, batch_size=40, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False,
        pipelines={"image": [SimpleRGBImageDecoder(), ToTensor()],
                   "label": [IntDecoder(), ToTensor()]},
        os_cache=os_cache,
    )  # fmt: skip
    # Batches are views into a ring of buffers.
    batches = [(image.numpy().copy(), label.numpy().copy()) for image, label in loader]
    images, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    np.savez(out, images=images, labels=labels.ravel())


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    main(sys.argv[1], sys.argv[2], "--os-cache" in sys.argv)
