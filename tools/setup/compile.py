"""Compiles the CPU's kernels into numba's cache, so that the first command does not wait for it.

python tools/setup/compile.py
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image

from imagenet_prep.dataset.beton_tables import BetonInfo
from imagenet_prep.jpeg import cpu
from imagenet_prep.jpeg.index import fault, index_images
from imagenet_prep.stats import moments
from trainer.loader.cpu import MOST_THREADS, Decoder
from trainer.loader.packing import Packer
from trainer.views.views import Views

SIDE_PX = 32


def jpegs() -> None:
    """The row index and its check; the decoder."""
    file = io.BytesIO()
    Image.new("RGB", (SIDE_PX, SIDE_PX)).save(file, "JPEG")
    data = np.frombuffer(file.getvalue(), np.uint8)
    problem = fault(index_images(data, np.zeros(1, np.int64), np.array([len(data)])))
    assert not problem, problem
    cpu.decoder().decode(data, np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8))


def batches() -> None:
    """The kernels of the loader, in one thread and in several."""
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE_PX, SIDE_PX, 3), np.uint8)
    stats = moments.finish(moments.moments_of(images), "0" * 64)
    info = BetonInfo(
        samples=1, side_px=SIDE_PX, label_max=0, kind=(), page_size_bytes=1 << 21,
        extents=np.array([[0, 1, 0, 0]]), labels=np.zeros(1, np.int64), stamps=(),
        first_pages=np.array([0, 1]),
    )  # fmt: skip
    none = np.empty(0, np.uint64)
    for jobs in {1, MOST_THREADS}:
        decoder = Decoder(info, stats, Views(16, 16), batch_size=1, jobs=jobs)
        decoder.run(none, 0)
    Packer(info.extents, decoder.files, 1).copy(none, np.empty(0, np.int64), 0)


def main() -> None:
    """Compiles, or finds all of it compiled."""
    jpegs()
    batches()


if __name__ == "__main__":
    main()
