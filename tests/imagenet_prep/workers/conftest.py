"""Clusters that are started once for a module, and what one machine makes of the same pictures."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.cluster import DaskCluster, RayCluster, must, served


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory, make_waves: Callable[[Path], Path]) -> Path:
    """A raw collection of 240 pictures in two classes, and a broken one."""
    raw = make_waves(tmp_path_factory.mktemp("cluster") / "raw")
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
