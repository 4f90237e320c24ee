"""The device's kernels without a device: in numba-cuda's simulator, and compiled to PTX."""

from __future__ import annotations

import importlib.util

import pytest

from tests.kit.command import python

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is for Linux only"
)


def test_simulated_kernels_equal_pillow() -> None:
    found = python("-m", "tests.kit.jpeg_device", NUMBA_ENABLE_CUDASIM="1")
    assert found.count(": 0 differ") == found.count("differ") == 22


@pytest.mark.parametrize(("capability", "every", "count"), [("8.0", 4, 7), ("9.0", 1, 28)])
def test_kernels_compile_without_spills(capability: str, every: int, count: int) -> None:
    lines = python("-m", "tests.kit.jpeg_ptx", capability, str(every)).splitlines()
    assert len(lines) == count
    for line in lines:
        assert "no local memory" in line
        assert " 0 bytes spilled" in line or "not assembled" in line
