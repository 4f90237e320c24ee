"""Clusters that are started once for a module, and what one machine makes of the same pictures."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .kit import DaskCluster, RayCluster, must, served


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw collection of 240 pictures in two classes, one of which is broken."""
    raw = tmp_path_factory.mktemp("cluster") / "raw"
    y, x = np.mgrid[0:300, 0:400]
    for index in range(240):
        folder = raw / ("train" if index % 6 else "val") / ("ant" if index % 2 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        wave = np.sin(x / (5 + index % 7) + y / (9 + index % 11) + index)
        pixels = np.stack([127 + 100 * wave, 127 - 80 * wave, np.full(x.shape, index)], axis=-1)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.jpg", quality=90)
    (raw / "train/ant/broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return raw


@pytest.fixture(scope="session")
def whole(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one machine makes of ``many``: cropped/ with stats.npz, and raw betons."""
    folder = tmp_path_factory.mktemp("whole")
    must("prepare", "--src", many, "--dst", folder, "--format", "raw", "--jobs", 2)
    return folder


@pytest.fixture(scope="module")
def dask_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A Dask scheduler with three worker processes."""
    pytest.importorskip("distributed")
    with served(tmp_path_factory.mktemp("dask")) as server:
        yield DaskCluster(server, workers=3)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[RayCluster]:
    """A Ray head with two workers."""
    pytest.importorskip("ray")
    # Its sockets lie there, and their names must be short.
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    try:
        with served(folder) as server:
            yield RayCluster(server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
