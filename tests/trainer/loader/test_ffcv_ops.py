"""``ffcv_cases`` in a process of its own: FFCV's loader changes numba's types for all others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


def test_our_views_in_stock_ffcv_and_ffcv_beside_our_loader() -> None:
    cases = Path(__file__).with_name("ffcv_cases.py")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(cases)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=800,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "6 passed" in result.stdout
