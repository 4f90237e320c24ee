"""``ffcv_cases`` in a process of its own: FFCV's loader changes numba's types for all others."""

from __future__ import annotations

from pathlib import Path

from tests.kit.command import python


def test_our_views_in_stock_ffcv_and_ffcv_beside_our_loader() -> None:
    cases = Path(__file__).with_name("ffcv_cases.py")
    assert "6 passed" in python("-m", "pytest", "-p", "no:cacheprovider", cases)
