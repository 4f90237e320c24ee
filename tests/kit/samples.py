"""Statistics and files made up for the kernels' tests."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np

from imagenet_prep.dataset.beton_tables import BetonInfo
from imagenet_prep.dataset.statistics import Stats


def made_stats(side: int) -> Stats:
    """Statistics of images of ``side`` px that nobody took: a mean image and a basis."""
    rng = np.random.default_rng(side)
    mean = rng.uniform(0, 255, (side, side, 3)).astype(np.float32)
    vectors = np.linalg.qr(np.arange(9.0).reshape(3, 3) ** 2)[0]
    deviations = np.array([9.0, 30.0, 99.0])
    covariance = vectors * deviations**2 @ vectors.T
    return Stats(
        mean=mean,
        sum=mean.astype(np.uint64),
        products=np.zeros((3, 3), np.uint64),
        count=1,
        channel_mean=mean.mean(axis=(0, 1), dtype=np.float64),
        channel_std=np.sqrt(np.diag(covariance)),
        covariance=covariance,
        eigenvalues=deviations**2,
        eigenstdev=deviations,
        eigenvectors=vectors,
        source="made up",
    )


def made_info(side: int, extents: list[list[int]]) -> BetonInfo:
    """Tables of a file whose samples of ``side`` px lie at ``extents``."""
    count = len(extents)
    return BetonInfo(
        samples=count, side_px=side, label_max=0, kind=(), page_size_bytes=1,
        extents=np.array(extents, np.int64), labels=np.zeros(count, np.int64), stamps=(),
        first_pages=np.zeros(2, np.int64),
    )  # fmt: skip


@contextlib.contextmanager
def memory_file(data: bytes) -> Iterator[int]:
    """The descriptor of a file in memory with these bytes."""
    with os.fdopen(os.memfd_create("beton"), "wb") as file:
        file.write(data)
        file.flush()
        yield file.fileno()
