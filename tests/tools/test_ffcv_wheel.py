"""tools/setup/build_ffcv_wheel.sh: what it refuses, in one sentence, before it begins."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "setup" / "build_ffcv_wheel.sh"


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False
    )


def interpreter(folder: Path, says: str) -> Path:
    """What stands for a Python that answers with ``says``."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{says}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "one or two arguments are needed, not 0"),
        (("a", "b", "c"), "one or two arguments are needed, not 3"),
        (("--help",), "--help is not an interpreter"),
        (("no-such-python",), "no-such-python is no interpreter that can be run"),
    ],
)
def test_wrong_usage_is_refused_in_one_sentence(words: tuple[str, ...], complaint: str) -> None:
    result = run(*words)
    assert result.returncode == 2
    assert result.stdout == ""
    assert complaint in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("says", "complaint"),
    [("echo 3.10", "is Python 3.10, not 3.11 to 3.13"), ("exit 1", "is no Python")],
)
def test_other_interpreters_are_refused(tmp_path: Path, says: str, complaint: str) -> None:
    result = run(interpreter(tmp_path, says))
    assert result.returncode == 2
    assert complaint in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    result = run(interpreter(tmp_path, "echo 3.12"), tmp_path / "out")
    assert result.returncode == 2
    assert "cannot be made a folder" in result.stderr
