"""``kill -9`` at random moments: no incomplete file, and the next run ends with the same bytes.

The long form: FAULT_MOMENTS=30 pytest tests/end_to_end/test_kill.py
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.conftest import build
from tests.kit.command import PREP, Ended, Running, command_line, contents, descendants
from tests.kit.journal import journal_rows

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
MOMENTS = int(os.environ.get("FAULT_MOMENTS", "3"))


class Stage:
    """One stage: its command, its folder, and the files that may be there at any moment."""

    def __init__(self, name: str, many: Path, whole: Path, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.expected = contents(whole)
        if name == "crop":
            self.target = folder / "cropped"
            words: list[object] = ["crop", "--src", many, "--dst", self.target, "--jobs", 2]
        elif name == "stats":
            shutil.copytree(whole / "cropped", folder / "cropped")
            (folder / "cropped/stats.npz").unlink()
            self.target = folder / "cropped"
            words = ["stats", "--src", self.target, "--jobs", 2]
        else:
            shutil.copytree(whole / "cropped", folder / "cropped")
            self.target = folder / name
            words = build(folder / "cropped", self.target, name)
        self.command = [*PREP, *words]

    def has_begun(self, process: int) -> bool:
        """Whether a crop's workers have started, the statistics load numba, a build writes."""
        if self.name == "crop":
            return bool(workers(process))
        if self.name == "stats":
            with contextlib.suppress(OSError):  # it has ended meanwhile
                return "llvmlite" in Path(f"/proc/{process}/maps").read_text()
            return False
        return next(self.target.glob(".*.tmp"), None) is not None

    def begin_again(self) -> None:
        """Removes what the command makes."""
        if self.name == "stats":
            (self.target / "stats.npz").unlink()
        else:
            shutil.rmtree(self.target)

    def check_at_any_moment(self) -> None:
        """Files with a final name are complete; a manifest is only beside its own beton."""
        copy = self.folder.with_name(f"{self.folder.name}-copy")  # SQLite repairs what it opens
        shutil.copytree(self.folder, copy)
        for path, digest in contents(copy).items():
            name = Path(path).name
            if name.startswith((".", "crop.sqlite")):
                continue
            assert self.expected[path] == digest, f"{path} is incomplete"
        if (copy / "cropped/crop.sqlite").exists():
            with contextlib.closing(sqlite3.connect(copy / "cropped/crop.sqlite")) as journal:
                assert journal.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        for row in journal_rows(copy / "cropped/crop.sqlite"):
            crop = copy / "cropped" / row["crop"]
            assert row["status"] == "ok" and crop.stat().st_size == row["crop_bytes"]
        shutil.rmtree(copy)
        for manifest in self.target.glob("*.beton.json"):
            json.loads(manifest.read_text())
            assert manifest.with_suffix("").exists()

    def check_at_the_end(self) -> None:
        """The same files with the same bytes as without any interruption, and no others."""
        part = f"{self.target.name}/"
        expected = {name: digest for name, digest in self.expected.items() if name.startswith(part)}
        if self.name == "crop":
            del expected[f"{part}stats.npz"]
        found = {f"{part}{name}": digest for name, digest in contents(self.target).items()}
        assert found == expected


def workers(process: int) -> list[int]:
    """Its worker processes, without the tracker of their semaphores."""
    lines = {child: command_line(child) for child in descendants(process)}
    return [c for c, line in lines.items() if "loky" in line and "resource_tracker" not in line]


def ends_after(stage: Stage, kill: Callable[[int], bool], delay_s: float) -> Ended:
    """Runs the stage's command and calls ``kill(its pid)`` ``delay_s`` after it began."""
    running = Running(stage.command)
    process = running.process
    try:
        while process.poll() is None and not stage.has_begun(process.pid):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.002)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay_s)
        if process.poll() is None:
            kill(process.pid)
    except BaseException:
        process.kill()
        raise
    return running.end()


def kill_parent(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    return True


def kill_worker(process: int) -> bool:
    found = workers(process)
    with contextlib.suppress(ProcessLookupError, IndexError):
        os.kill(found[0], signal.SIGKILL)
    return bool(found)


# A build is over in no time; neither it nor the statistics have workers that could be killed.
LONGEST_DELAY_S = {"crop": 0.5, "stats": 0.5, "raw": 0.1, "jpeg": 0.05}


@pytest.mark.parametrize(
    ("name", "victim"),
    [
        *(("crop", "parent"), ("crop", "worker"), ("stats", "parent")),
        *(("raw", "parent"), ("jpeg", "parent")),
    ],
)
def test_kill_9_leaves_no_incomplete_file(
    name: str, victim: str, many: Path, whole: Path, tmp_path: Path
) -> None:
    stage = Stage(name, many, whole, tmp_path)
    moments = random.Random(f"{name} {victim}")
    kill = {"parent": kill_parent, "worker": kill_worker}[victim]
    struck, longest_s = 0, LONGEST_DELAY_S[name]
    for _ in range(MOMENTS + 5):
        if struck == MOMENTS:
            break
        ended = ends_after(stage, kill, moments.uniform(0, longest_s))
        assert "Traceback" not in ended.err
        if ended.status != 0:
            struck += 1
            if victim == "parent":
                assert ended.status == -signal.SIGKILL
            else:
                assert ended.status == 1
                assert ended.err.strip().count("\n") <= 1  # the layout, then the error
                assert "a worker process ended by itself" in ended.err
        stage.check_at_any_moment()
        if ended.status == 0:  # it was done before: strike earlier
            stage.begin_again()
            longest_s /= 4
    assert struck > 0
    last = Running(stage.command).end()
    assert last.status == 0, last.err
    stage.check_at_the_end()
