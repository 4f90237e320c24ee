"""The CUDA kernels of LRN without CUDA: interpreted on the CPU, and compiled for a GPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kit.command import python
from trainer.network import lrn
from trainer.network import lrn_cpu as lrn_kernels

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def run(what: str, cache: Path, **environment: str) -> dict[str, Any]:
    """The output of ``interpreted.py``, in a process of its own."""
    program = Path(__file__).with_name("interpreted.py")
    printed = python(program, what, TRITON_CACHE_DIR=str(cache), **environment)
    found: dict[str, Any] = json.loads(printed)
    return found


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("values", tmp_path_factory.mktemp("triton"), TRITON_INTERPRET="1")


@needs_triton
def test_both_directions_equal_the_definition(values: dict[str, Any]) -> None:
    assert len(values["cases"]) == 14
    for case in values["cases"]:
        # The interpreter cuts bfloat16 off where a GPU rounds: one place of eight bits.
        most = 2**-7 if case["half"] else 1e-6
        assert case["forward"] < most, case
        assert case["backward"] < most, case


@needs_triton
def test_results_keep_dtype_and_layout(values: dict[str, Any]) -> None:
    assert [case["case"] for case in values["cases"] if not case["alike"]] == []


@needs_triton
def test_what_is_not_a_number_spreads_over_its_window_only(values: dict[str, Any]) -> None:
    assert values["damaged"] == [False] * 3 + [True] * 5 + [False] * 4


@needs_triton
@pytest.mark.skipif(sys.platform != "linux", reason="Triton assembles on Linux only")
def test_kernels_compile_for_a_gpu_and_read_neighbours_once(tmp_path: Path) -> None:
    made = run("machine", tmp_path)
    # The windows of five neighbours reach over nine channels; their gradients over five.
    assert 0 < made["forward"]["loads"] <= 5 * made["per_thread"]
    assert 0 < made["backward"]["loads"] <= (9 + 5) * made["per_thread"]
    for kernel in ("forward", "backward"):
        assert 0 < made[kernel]["stores"] <= made["per_thread"]
        assert made[kernel]["bytes"] > 0


def test_the_cpu_has_kernels_of_its_own() -> None:
    batch = torch.randn(2, 8, 3, 3).to(memory_format=torch.channels_last)
    assert lrn._one_pass(batch) is lrn_kernels
    assert lrn._one_pass(batch.double()) is None


def test_sums_over_a_band_give_the_same_as_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = (20 * torch.randn(2, 8, 4, 4)).to(memory_format=torch.channels_last)
    layer = lrn.LocalResponseNorm(8)
    once = layer(batch)
    monkeypatch.setattr(lrn.LocalResponseNorm, "one_pass", False)
    monkeypatch.setattr(lrn_kernels, "forward", None)  # nothing may call it now
    torch.testing.assert_close(layer(batch), once, rtol=1e-5, atol=1e-6)
