"""``python -m imagenet_prep`` and ``python -m trainer``: the same as the console scripts."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.kit.command import Ended, Running

PROGRAMS = {"imagenet-prep": "imagenet_prep", "trainer": "trainer"}


def start(module: str, *words: str, path: Path) -> Ended:
    return Running([sys.executable, "-m", module, *words], PYTHONPATH=str(path)).end()


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_while_the_program_is_imported(program: str, tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt\n")
    done = start(PROGRAMS[program], "--help", path=tmp_path)
    assert done.status == 130
    (line,) = done.err.splitlines()
    assert line.startswith(f"{program}: interrupted; ")


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_console_script_is_the_same_program(program: str, tmp_path: Path) -> None:
    (script,) = entry_points(group="console_scripts", name=program)
    assert script.value == f"{PROGRAMS[program]}.__main__:main"
    done = start(PROGRAMS[program], "--version", path=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(program)
