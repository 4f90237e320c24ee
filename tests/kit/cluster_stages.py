"""One stage at a time: its command, and whether what it made is what one machine makes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.kit.cluster import REPOSITORY, Ended, EndedFirstError, Running, contents

STAGES = ("crop", "stats", "build")
_ATTEMPTS = 20


class Stage:
    """The command of a stage that works in ``folder``, on what one machine has made before it."""

    def __init__(self, name: str, many: Path, whole: Path, folder: Path) -> None:
        self.name = name
        folder.mkdir(parents=True, exist_ok=True)
        cropped, betons = folder / "cropped", folder / "betons"
        if name != "crop":
            shutil.copytree(whole / "cropped", cropped)
        if name == "stats":
            (cropped / "stats.npz").unlink()
        self.made = betons if name == "build" else cropped
        commands: dict[str, list[object]] = {
            "crop": ["crop", "--src", many, "--dst", cropped],
            "stats": ["stats", "--src", os.path.relpath(cropped, REPOSITORY)],
            "build": ["build", "--src", cropped, "--dst", betons, "--format", "raw"],
        }
        self.command = commands[name]
        self.expected = contents(whole / "cropped")
        if name == "crop":
            del self.expected["stats.npz"]
        if name == "build":
            self.expected = {
                file: digest for file, digest in contents(whole).items() if "/" not in file
            }

    def check(self) -> None:
        """The same files with the same bytes as on one machine, and no others."""
        assert contents(self.made) == self.expected

    def check_names(self) -> None:
        """What bears a final name is whole, and there may be less than there will be."""
        for file, digest in contents(self.made).items():
            if not Path(file).name.startswith(".") and file != "crop.jsonl":
                assert self.expected[file] == digest, f"{file} is not what it will be"


def struck(
    stage: Callable[[Path], Stage],
    folder: Path,
    options: Sequence[str],
    victim: Callable[[], int | None],
) -> tuple[Stage, Ended, int]:
    """Runs a stage on a cluster and kills ``victim`` in the middle of it -> the stage, how it
    ended, and who was killed.

    Where the stage is over before there is a victim it is done again in another folder.
    """
    for attempt in range(_ATTEMPTS - 1, -1, -1):
        made = stage(folder / f"attempt-{attempt}")
        run = Running(*made.command, *options)
        try:
            killed = run.strike(victim)
        except EndedFirstError:
            if not attempt:
                raise
            continue
        return made, run.end(), killed
    raise AssertionError("no attempt was made")
