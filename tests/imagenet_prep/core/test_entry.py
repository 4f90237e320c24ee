"""The start of a program where nothing can be written beside it (containers)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagenet_prep.core.entry import use_writable_cache


def test_compiled_code_goes_to_a_temporary_folder_if_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "mine")
    assert use_writable_cache(Path("/proc/none")) is None
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert use_writable_cache(tmp_path) is None
    assert "NUMBA_CACHE_DIR" not in os.environ
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    message = use_writable_cache(Path("/proc/none"))
    assert message is not None
    assert str(tmp_path) in message
    code = "import numba\n@numba.njit(cache=True)\ndef f(x): return x + 1\nassert f(1) == 2\n"
    script = tmp_path / "f.py"
    script.write_text(code)
    subprocess.run([sys.executable, str(script)], check=True, timeout=120)
    assert list(Path(os.environ["NUMBA_CACHE_DIR"]).rglob("*.nbi"))
    monkeypatch.delenv("NUMBA_CACHE_DIR")
