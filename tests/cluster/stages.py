"""One stage at a time: its command, and whether what it made is what one machine makes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .kit import REPOSITORY, contents

STAGES = ("crop", "stats", "build")


class Stage:
    """The command of a stage that works in ``folder``, on what one machine has made before it."""

    def __init__(self, name: str, many: Path, whole: Path, folder: Path) -> None:
        self.name = name
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
