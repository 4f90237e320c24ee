"""Runs the command line in processes of its own, to be killed or to lack disk and files."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit.journal import tree

REPOSITORY = Path(__file__).resolve().parents[2]
PREP = [sys.executable, "-m", "imagenet_prep"]


def prep(*arguments: object) -> list[str]:
    """The command line ``imagenet-prep`` with these arguments."""
    return [*PREP, *map(str, arguments)]


@dataclass(frozen=True)
class Ended:
    """Exit status and output of a process."""

    status: int
    out: str
    err: str


def complete(command: list[str]) -> Ended:
    """Runs a command to its end."""
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Ended(done.returncode, done.stdout, without_progress(done.stderr))


def without_progress(text: str) -> str:
    """Messages without the layout and the lines of progress, which a slow machine prints too."""
    line = r"^((crop|stats|build): \d+ of \d+|layout \w+: .*)\n"
    return re.sub(line, "", text, flags=re.MULTILINE)


def must(*arguments: object) -> None:
    """Runs ``imagenet-prep``, which must succeed."""
    done = complete(prep(*arguments))
    assert done.status == 0, done.err


def contents(folder: Path) -> dict[str, str]:
    """Every file below ``folder``, hidden ones included -> the digest of what it holds."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in tree(folder).items()}


def children(process: int) -> list[int]:
    """The running children of a process."""
    try:
        found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [int(child) for child in found]


def workers(process: int) -> list[int]:
    """Its worker processes, without the tracker of their semaphores."""
    found = []
    for child in children(process):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if b"resource_tracker" not in command and b"loky" in command:
            found.append(child)
    return found


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory, make_waves: Callable[[Path], Path]) -> Path:
    """240 raw images of two classes, each a few milliseconds of work."""
    return make_waves(tmp_path_factory.mktemp("faults") / "raw")


@pytest.fixture(scope="session")
def whole(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Uninterrupted runs over ``many``: cropped/ with stats.npz, and both kinds of betons."""
    folder = tmp_path_factory.mktemp("whole")
    must("crop", "--src", many, "--dst", folder / "cropped", "--jobs", 2)
    must("stats", "--src", folder / "cropped", "--jobs", 2)
    for form in ("jpeg", "raw"):
        must(*build(folder / "cropped", folder / form, form))
    return folder


def build(cropped: Path, betons: Path, form: str) -> list[object]:
    """The arguments of a build with two jobs, which are threads."""
    return ["build", "--src", cropped, "--dst", betons, "--format", form, "--jobs", 2]


def crops_of(folder: Path) -> dict[str, str]:
    """``contents`` of cropped/ without the statistics."""
    return {name: digest for name, digest in contents(folder).items() if name != "stats.npz"}


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
MOMENTS = int(os.environ.get("FAULT_MOMENTS", "3"))
