"""The device's kernels without a device: in numba-cuda's simulator, and compiled to PTX."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is for Linux only"
)


def run_module(name: str, *arguments: str, **environment: str) -> str:
    """Runs a module of the tests in a process of its own -> what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_simulated_kernels_equal_pillow() -> None:
    found = run_module("tests.kit.jpeg_device", NUMBA_ENABLE_CUDASIM="1")
    assert found.count(": 0 differ") == found.count("differ") == 22


@pytest.mark.parametrize(("capability", "every", "count"), [("8.0", 4, 7), ("9.0", 1, 28)])
def test_kernels_compile_without_spills(capability: str, every: int, count: int) -> None:
    lines = run_module("tests.kit.jpeg_ptx", capability, str(every)).splitlines()
    assert len(lines) == count
    for line in lines:
        assert "no local memory" in line
        assert " 0 bytes spilled" in line or "not assembled" in line
