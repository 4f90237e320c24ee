"""The CUDA back end without a GPU: in numba's simulator, and what is said where it cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imagenet_prep.core.errors import ToolError
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_decoding_on_a_gpu_needs_one(small_beton: Sample) -> None:
    with pytest.raises(ToolError) as caught:
        train(small_beton, decode="gpu")
    assert caught.value.code in ("loader.numba_cuda", "loader.decode")
