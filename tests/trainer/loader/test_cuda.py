"""The CUDA back end without a GPU: in numba's simulator, and the error where it cannot run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imagenet_prep.core.errors import UsageError
from tests.kit.command import python
from tests.kit.loading import Sample, train


def test_the_back_end_in_the_simulator() -> None:
    cases = Path(__file__).with_name("simulated.py")
    # The kernels compute modulo 2^32, and NumPy remarks on it.
    quiet = ["-W", "ignore:overflow encountered:RuntimeWarning", "-p", "no:cacheprovider"]
    printed = python("-m", "pytest", "-q", "-x", *quiet, cases, NUMBA_ENABLE_CUDASIM="1")
    assert "skipped" not in printed


def test_the_kernel_of_own_colours_compiles_for_a_device() -> None:
    assert python("-m", "tests.kit.loader_ptx", "9.0") == "no local memory"


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("decode", {"decode": "gpu"}),
        ("resident", {"resident": "on"}),
        ("resident", {"resident": "on", "decode": "cpu"}),
    ],
)
def test_options_of_a_gpu_need_one(
    small_beton: Sample, option: str, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError) as caught:
        train(small_beton, **options)
    assert caught.value.code == f"loader.{option}"
