"""What is said of options that mean nothing, and of clusters that are not there."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.workers import cluster
from imagenet_prep.workers import remote_worker as cluster_worker
from imagenet_prep.workers.cluster import open_workers
from imagenet_prep.workers.processes import Local, workers_of
from imagenet_prep.workers.remote_worker import Fitness, versions
from tests.kit.cluster import Running, free_port, one_sentence, prep


@pytest.mark.parametrize(
    "command",
    [
        ("crop", "--src", "raw", "--dst", "cropped"),
        ("stats",),
        ("build",),
        ("prepare", "--src", "raw"),
    ],
)
def test_an_address_without_a_backend_is_wrong_use(command: tuple[str, ...]) -> None:
    said = one_sentence(prep(*command, "--address", "127.0.0.1:1"), status=2)
    assert "--address" in said and "--backend dask" in said


def test_jobs_are_not_for_a_cluster_that_is_there() -> None:
    with (
        pytest.raises(UsageError, match=r"--jobs: .* leave one of the two out"),
        open_workers("ray", "127.0.0.1:1", 2, reads=[]),
    ):
        pytest.fail("there are workers")


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_an_engine_that_is_not_installed_is_named_with_its_extra(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cluster.ENGINES, backend, "a_module_that_is_not_there")
    with (
        pytest.raises(UsageError, match=rf"{backend} is not installed; .*\[{backend}\]"),
        open_workers(backend, None, None, reads=[]),
    ):
        pytest.fail("there are workers")


@pytest.mark.parametrize("backend", ["dask", "ray"])
@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "nowhere", "tcp://:8786", "host:port"])
def test_an_address_at_which_nobody_answers_is_one_sentence(backend: str, address: str) -> None:
    pytest.importorskip(cluster.ENGINES[backend])
    place = address.format(port=free_port())
    with (
        pytest.raises(ToolError, match=f"no {backend.title()} cluster answers at {place} "),
        open_workers(backend, place, None, reads=[]),
    ):
        pytest.fail("there are workers")


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_password_in_an_address_is_not_shown(backend: str) -> None:
    pytest.importorskip(cluster.ENGINES[backend])
    place = f"tcp://me:hunter2@127.0.0.1:{free_port()}"
    with (
        pytest.raises(ToolError, match=r"answers at tcp://\*\*\*@127\.0\.0\.1") as told,
        open_workers(backend, place, None, reads=[]),
    ):
        pytest.fail("there are workers")
    assert "hunter2" not in str(told.value)


def test_a_worker_whose_disk_comes_later_is_fit_then(tmp_path: Path) -> None:
    file = tmp_path / "picture"
    fitness = Fitness(versions(), ((str(file), 0),))
    assert "does not see" in cluster_worker._unfit_once(fitness)
    file.write_bytes(b"")
    assert cluster_worker._unfit_once(fitness) == ""


_HASTY = """
import sys
from imagenet_prep.cli import main as cli
from imagenet_prep.workers import dask as cluster_dask
from imagenet_prep.workers import ray as cluster_ray
cluster_dask._CONNECT_S = cluster_ray._JOIN_S = 2
if __name__ == "__main__":
    cli.main()
"""


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_an_address_at_which_somebody_else_is_silent_is_one_sentence(
    backend: str, tmp_path: Path
) -> None:
    pytest.importorskip(cluster.ENGINES[backend])
    command = ["crop", "--src", tmp_path, "--dst", tmp_path / "cropped", "--backend", backend]
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        ended = Running(*command, "--address", address, code=_HASTY).end()
    assert address in one_sentence(ended)
    assert not (tmp_path / "cropped").exists()


def test_local_workers_are_processes_of_this_machine() -> None:
    with open_workers("local", None, 3, reads=[]) as jobs:
        assert workers_of(jobs) == Local(3)
