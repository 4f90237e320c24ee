"""A cluster that is started for one command: the same bytes, and nothing of it is left."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from imagenet_prep.workers import cluster
from tests.kit.cluster import Running, command_line, contents, descendants, must, one_sentence


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_an_interrupt_leaves_nothing_running_and_the_same_command_continues(
    backend: str, many: Path, whole: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip(cluster.ENGINES[backend])
    if backend == "ray":
        request.getfixturevalue("ray_cluster")  # whether Ray starts here at all
    made = tmp_path / "cropped"
    command = ["crop", "--src", many, "--dst", made, "--jobs", 2]
    with tempfile.TemporaryDirectory(prefix="c") as place:  # short: sockets lie there
        run = Running(*command, "--backend", backend, TMPDIR=place, HOME=place)
        started: list[int] = []

        def when_it_crops() -> int | None:
            if not any((made / "train").rglob("*.JPEG")):
                return None
            started.extend(descendants(run.process.pid))
            os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does
            return run.process.pid

        run.strike(when_it_crops, number=0)
        ended = run.end()
        assert one_sentence(ended, status=130).endswith("the same command continues")
        assert started
        assert [command_line(process) for process in started if command_line(process)] == []
        assert list(Path(place).iterdir()) == []
    assert list(made.rglob("*.tmp")) == []
    must(*command)
    assert contents(made) == {
        name: digest for name, digest in contents(whole / "cropped").items() if name != "stats.npz"
    }
