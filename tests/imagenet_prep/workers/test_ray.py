"""The stages on a real Ray cluster: the same bytes, whoever dies."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.cluster import MAPS, Held, RayCluster, Running, must, one_of, one_sentence
from tests.kit.cluster_stages import STAGES, Stage, struck


@pytest.mark.parametrize("name", STAGES)
def test_a_worker_that_is_killed_changes_nothing(
    name: str, many: Path, whole: Path, tmp_path: Path, ray_cluster: RayCluster
) -> None:
    stage, ended, _ = struck(
        lambda folder: Stage(name, many, whole, folder),
        tmp_path,
        ray_cluster.options,
        lambda: one_of(ray_cluster.busy()),
    )
    assert (ended.status, ended.err) == (0, "")
    stage.check()


def test_maps_keep_their_promises(ray_cluster: RayCluster) -> None:
    ended = Running(*ray_cluster.options, code=MAPS).end()
    assert (ended.status, ended.err) == (0, "")
    count, sentence = ended.out.splitlines()
    assert count == "2"
    assert "gave up work at which its workers died" in sentence


def test_another_token_is_one_sentence(many: Path, tmp_path: Path, ray_cluster: RayCluster) -> None:
    command = ["crop", "--src", many, "--dst", tmp_path / "cropped", *ray_cluster.options]
    said = one_sentence(Running(*command, RAY_AUTH_TOKEN="0" * 64).end())
    assert "cannot be joined" in said and "0000" not in said


def test_the_head_that_is_killed_ends_it_with_one_sentence(
    many: Path, whole: Path, tmp_path: Path, ray_cluster: RayCluster
) -> None:
    held = Held(ray_cluster.busy)
    stage, ended, _ = struck(
        lambda folder: Stage("crop", many, whole, folder),
        tmp_path,
        ray_cluster.options,
        lambda: held.catch() and ray_cluster.store(),
    )
    held.free()
    assert "the Ray cluster does not answer any more" in one_sentence(ended)
    stage.check_names()
    must(*stage.command)
    stage.check()
