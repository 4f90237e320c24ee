"""The folder of a run: free names, one process at a time, nothing deleted unasked."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.command import REPOSITORY
from tests.kit.errors import fails
from trainer.training.folder import CONTENTS, LOCK_NAME, RunFolder

_HOLD = """
import sys, time
from pathlib import Path
from trainer.training.folder import RunFolder
with RunFolder(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def choose(base: Path, out: Path | None = None, **options: bool) -> RunFolder:
    return RunFolder.choose(base, out, **{"resume": False, "overwrite": False, **options})


def test_runs_without_out_get_names_of_their_own(tmp_path: Path) -> None:
    with choose(tmp_path / "small") as first, choose(tmp_path / "small") as second:
        assert [folder.path.name for folder in (first, second)] == ["small", "small-2"]
        (first.path / "config.json").touch()
    # The second wrote nothing and leaves nothing.
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_lock_names_its_owner_and_ends_when_it_is_killed(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert owner.stdout is not None
    assert owner.stdout.readline() == "locked\n"
    words = (f"process {owner.pid} on {socket.gethostname()}", "--out")
    for options in ({}, {"overwrite": True}):
        with fails("run.locked", *words):
            choose(tmp_path, tmp_path, **options)
    (tmp_path / "config.json").touch()
    with fails("run.locked", *words):  # also of the run that it trains
        choose(tmp_path, resume=True)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    with choose(tmp_path, resume=True) as found:
        assert f"process {os.getpid()}" in (found.path / LOCK_NAME).read_text()


@pytest.mark.parametrize("name", CONTENTS)
def test_a_folder_with_a_run_needs_resume_or_overwrite(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("content")
    with fails("run.exists", name, "--resume", "--overwrite", usage=True):
        choose(tmp_path / "base", tmp_path)
    for options in ({"overwrite": True}, {"resume": True}):
        choose(tmp_path / "base", tmp_path, **options).close()
    assert (tmp_path / name).read_text() == "content"


def test_impossible_choices_are_usage_errors(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for code, out, options in (
        ("run.none", tmp_path / "new", {"resume": True}),
        ("run.resume_and_overwrite", tmp_path, {"resume": True, "overwrite": True}),
        ("run.overwrite_without_out", None, {"overwrite": True}),
        ("run.not_a_folder", tmp_path / "file", {}),
    ):
        with fails(code, usage=True):
            choose(tmp_path / "base", out, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
