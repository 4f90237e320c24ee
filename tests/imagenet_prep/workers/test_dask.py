"""The stages on a real Dask cluster: the same bytes, whoever dies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.kit.cluster import (
    MAPS,
    DaskCluster,
    Held,
    Running,
    must,
    needs_namespaces,
    one_of,
    one_sentence,
    prep,
    served,
)
from tests.kit.cluster_stages import STAGES, Stage, struck


@pytest.mark.parametrize("name", STAGES)
def test_a_worker_that_is_killed_changes_nothing(
    name: str, many: Path, whole: Path, tmp_path: Path, dask_cluster: DaskCluster
) -> None:
    dask_cluster.wait()
    with dask_cluster.watched() as busy:
        stage, ended, killed = struck(
            lambda folder: Stage(name, many, whole, folder),
            tmp_path,
            dask_cluster.options,
            lambda: one_of(busy()),
        )
    assert (ended.status, ended.err) == (0, "")
    assert killed not in dask_cluster.names().values()
    stage.check()


def test_maps_keep_their_promises(dask_cluster: DaskCluster) -> None:
    dask_cluster.wait()
    ended = Running(*dask_cluster.options, code=MAPS).end()
    assert (ended.status, ended.err) == (0, "")
    count, sentence = ended.out.splitlines()
    assert count == "3"
    assert "gave up work at which several workers died" in sentence


def test_a_worker_with_another_version_is_named(
    many: Path, tmp_path: Path, dask_cluster: DaskCluster
) -> None:
    package = tmp_path / "other/imagenet_prep"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "0.0.1"\n')
    command = ["crop", "--src", many, "--dst", tmp_path / "cropped"]
    with dask_cluster.one_more(PYTHONPATH=str(tmp_path / "other")):
        said = one_sentence(prep(*command, *dask_cluster.options))
    assert "has imagenet_prep 0.0.1 where here is" in said
    assert not (tmp_path / "cropped").exists()


@needs_namespaces
@pytest.mark.parametrize("hidden", ["raw", "made"])
def test_a_worker_that_does_not_see_the_disk_is_named(
    hidden: str, many: Path, tmp_path: Path, dask_cluster: DaskCluster
) -> None:
    raw, made = tmp_path / "raw", tmp_path / "made"
    made.mkdir()
    raw.mkdir()
    shutil.copytree(many / "val", raw / "val")
    apart = ["unshare", "-rm", "bash", "-c", 'mount -t tmpfs none "$0" && exec "$@"']
    with dask_cluster.one_more(*apart, str(tmp_path / hidden)):
        said = one_sentence(
            prep("crop", "--src", raw, "--dst", made / "cropped", *dask_cluster.options)
        )
    assert "does not see" in said and str(tmp_path / hidden) in said
    assert list(made.iterdir()) == []


def test_the_scheduler_that_is_killed_ends_it_with_one_sentence_and_it_continues(
    many: Path, whole: Path, tmp_path: Path
) -> None:
    pytest.importorskip("distributed")
    (tmp_path / "logs").mkdir()
    with served(tmp_path / "logs") as server:
        cluster = DaskCluster(server, workers=2)
        with cluster.watched() as busy:
            held = Held(busy)
            stage, ended, _ = struck(
                lambda folder: Stage("crop", many, whole, folder),
                tmp_path / "work",
                cluster.options,
                lambda: held.catch() and cluster.scheduler.pid,
            )
            held.free()
        sentence = one_sentence(ended)
        assert "the Dask cluster does not answer any more" in sentence
        stage.check_names()
        cluster.start_scheduler()
        cluster.start_workers()
        must(*stage.command, *cluster.options)
    stage.check()
