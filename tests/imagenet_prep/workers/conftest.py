"""Clusters that are started once, and the result of one machine for the same images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.cluster import DaskCluster, RayCluster, served
from tests.kit.command import must


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory, make_waves: Callable[[Path], Path]) -> Path:
    """A raw collection of 240 images in two classes, and a broken one."""
    raw = make_waves(tmp_path_factory.mktemp("cluster") / "raw")
    (raw / "train/ant/broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    return raw


@pytest.fixture(scope="session")
def whole(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one machine makes of ``many``: cropped/ with stats.npz, and raw betons."""
    folder = tmp_path_factory.mktemp("whole")
    must("prepare", "--src", many, "--dst", folder, "--format", "raw", "--jobs", 2)
    return folder


@pytest.fixture(params=["dask", "ray"])  # of a function, so that tests keep their order
def cluster(request: pytest.FixtureRequest) -> DaskCluster | RayCluster:
    """A running cluster of each kind."""
    found: DaskCluster | RayCluster = request.getfixturevalue(f"{request.param}_cluster")
    return found


@pytest.fixture(scope="session")
def dask_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A Dask scheduler with three worker processes."""
    pytest.importorskip("distributed")
    with served(tmp_path_factory.mktemp("dask")) as server:
        yield DaskCluster(server)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """A Ray head with two workers."""
    pytest.importorskip("ray")
    # Its sockets lie in the folder, and their names must be short.
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
        served(Path(folder)) as server,
    ):
        yield RayCluster(server)
