"""The stages on real Dask and Ray clusters: the same bytes, whoever dies; errors with codes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import pytest

from imagenet_prep.cli.options import Where
from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.workers import cluster as clusters
from imagenet_prep.workers import dask, ray
from imagenet_prep.workers.cluster import ENGINES, Fitness, versions
from imagenet_prep.workers.processes import Local, workers_of
from tests.kit.cluster import DaskCluster, RayCluster
from tests.kit.command import (
    PREP,
    Running,
    command_line,
    contents,
    crops_of,
    descendants,
    free_port,
    must,
    needs_namespaces,
    one_message,
    prep,
)

Clusters = DaskCluster | RayCluster


def test_a_killed_worker_changes_nothing(
    many: Path, whole: Path, tmp_path: Path, cluster: Clusters
) -> None:
    workers = cluster.workers()
    words = ["prepare", "--src", many, "--dst", tmp_path, "--format", "raw"]
    run = Running([*PREP, *words, *cluster.options])

    def victim() -> int | None:
        begun = any((tmp_path / "cropped/train").rglob("*.JPEG"))
        return next(iter(workers or cluster.workers()), None) if begun else None

    killed = run.strike(victim)
    ended = run.end()
    assert (ended.status, ended.err) == (0, "")
    assert not command_line(killed)
    assert contents(tmp_path) == contents(whole)


MAPS = """
import contextlib, math, operator, os, sys
from imagenet_prep.core.errors import ToolError
from imagenet_prep.workers.cluster import open_workers
def main():
    with open_workers(sys.argv[2], sys.argv[4], None, reads=[]) as workers:
        results = list(workers.map(operator.neg, range(100)))
        assert sorted(results) == [-number for number in reversed(range(100))], results
        assert set(workers.map(os.getenv, ["OMP_NUM_THREADS"])) == {"1"}
        with contextlib.closing(workers.map(operator.neg, iter(range(10**9)))) as endless:
            assert -100 < next(endless) <= 0
        try:
            list(workers.map(math.factorial, [3, -1]))
        except ValueError as error:
            assert "negative" in str(error), error
        else:
            raise AssertionError("an exception was lost")
        try:
            list(workers.map(os._exit, [9]))
        except ToolError as error:
            print(error.code)
if __name__ == "__main__":
    main()
"""


def test_maps_keep_results_and_errors_and_retries_are_bounded(cluster: Clusters) -> None:
    ended = Running([sys.executable, "-c", MAPS, *cluster.options]).end()
    assert (ended.status, ended.out, ended.err) == (0, "cluster.workers_lost\n", "")


def test_a_worker_with_another_version_is_named(
    many: Path, tmp_path: Path, dask_cluster: DaskCluster
) -> None:
    package = tmp_path / "other/imagenet_prep"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "0.0.1"\n')
    command = ["crop", "--src", many, "--dst", tmp_path / "cropped"]
    with dask_cluster.one_more(PYTHONPATH=str(tmp_path / "other")):
        message = one_message(prep(*command, *dask_cluster.options))
    assert "imagenet_prep" in message and "install the same versions there" in message


@needs_namespaces
def test_a_worker_that_does_not_see_the_disk_is_named(
    many: Path, tmp_path: Path, dask_cluster: DaskCluster
) -> None:
    raw, made = tmp_path / "raw", tmp_path / "made"
    made.mkdir()
    raw.mkdir()
    shutil.copytree(many / "val", raw / "val")
    command = ["crop", "--src", raw, "--dst", made / "cropped", *dask_cluster.options]
    apart = ["unshare", "-rm", "bash", "-c", 'mount -t tmpfs none "$0" && exec "$@"']
    with dask_cluster.one_more(*apart, str(made)):
        message = one_message(prep(*command))
    assert "does not see" in message and str(made) in message


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_an_interrupted_local_cluster_leaves_nothing_running(
    backend: str, many: Path, whole: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(f"{backend}_cluster")  # whether it starts here at all
    made = tmp_path / "cropped"
    command = ["crop", "--src", many, "--dst", made, "--jobs", 2]
    with tempfile.TemporaryDirectory(prefix="c") as place:  # short: sockets lie there
        run = Running([*PREP, *command, "--backend", backend], TMPDIR=place, HOME=place)
        while not any((made / "train").rglob("*.JPEG")):
            assert run.process.poll() is None, run.end()
            time.sleep(0.005)
        started = descendants(run.process.pid)
        os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does
        assert "the same command continues" in one_message(run.end(), status=130)
        assert started
        assert [command_line(process) for process in started if command_line(process)] == []
        assert list(Path(place).iterdir()) == []
    must(*command)
    assert contents(made) == crops_of(whole / "cropped")


def opened(backend: str, address: str | None, jobs: int | None = None) -> ToolError:
    """The error of joining."""
    with pytest.raises(ToolError) as caught, Where(backend, address, jobs).workers(reads=[]):
        pytest.fail("there are workers")
    return caught.value


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_wrong_options_are_usage_errors(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened("local", "127.0.0.1:1").code == "cluster.address_without_backend"
    assert opened(backend, "127.0.0.1:1", 2).code == "cluster.jobs_with_address"
    monkeypatch.setitem(ENGINES, backend, "a_module_that_is_not_there")
    error = opened(backend, None)
    assert isinstance(error, UsageError) and error.code == "cluster.not_installed"
    assert f"[{backend}]" in str(error)


@pytest.mark.parametrize("backend", ["dask", "ray"])
@pytest.mark.parametrize("address", ["me:hunter2@127.0.0.1:{port}", "nowhere", "tcp://:8786"])
def test_an_address_without_a_cluster_is_an_error(backend: str, address: str) -> None:
    pytest.importorskip(ENGINES[backend])
    error = opened(backend, address.format(port=free_port()))
    assert error.code == "cluster.address" and "hunter2" not in str(error)


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_server_that_sends_nothing_is_an_error(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(ENGINES[backend])
    monkeypatch.setattr(dask, "_ANSWER_S", 1)
    monkeypatch.setattr(ray, "_JOIN_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        error = opened(backend, address)
    assert error.code == "cluster.address" and address in str(error)


def test_a_worker_is_checked_until_it_passes(tmp_path: Path) -> None:
    file = tmp_path / "image"
    work = clusters._Work("Dask", Fitness(versions(), ((str(file), 0),)), len)
    error = work("abc")
    assert isinstance(error, ToolError) and error.code == "cluster.worker_unfit"
    file.write_bytes(b"")
    assert work("abc") == 3
    old = clusters._Work("Dask", Fitness((("imagenet_prep", "0.0.1"),)), len)
    assert "not 0.0.1" in str(old("abc"))


def test_local_workers_are_processes_of_this_machine() -> None:
    with Where("local", None, 3).workers(reads=[]) as jobs:
        workers = workers_of(jobs)
    assert isinstance(workers, Local) and workers.count == 3


# The last test: it ends the clusters.
def test_a_killed_cluster_is_an_error_and_the_command_continues(
    many: Path, whole: Path, tmp_path: Path, cluster: Clusters
) -> None:
    made = tmp_path / "cropped"
    command = ["crop", "--src", many, "--dst", made]
    run = Running([*PREP, *command, *cluster.options])
    run.strike(lambda: cluster.head() if any((made / "train").rglob("*.JPEG")) else None)
    assert "cluster does not answer any more" in one_message(run.end())
    must(*command, "--jobs", 2)
    assert contents(made) == crops_of(whole / "cropped")
