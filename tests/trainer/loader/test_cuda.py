"""The CUDA back end without a GPU: in numba's simulator, and the error where it cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imagenet_prep.core.errors import UsageError
from tests.kit.loading import Sample, train

HERE = Path(__file__).parent


def test_the_back_end_in_the_simulator() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
         # The kernels compute modulo 2^32, and NumPy remarks on it.
         "-W", "ignore:overflow encountered:RuntimeWarning",
         str(HERE / "simulated.py")],
        cwd=HERE.parents[2], env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout


def test_the_kernel_of_own_colours_compiles_for_a_device() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kit.loader_ptx", "9.0"],
        cwd=HERE.parents[2], capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout == "no local memory", done.stderr[-2000:]


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
