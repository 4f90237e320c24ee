"""What numba's compiled code is kept by, each time in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imagenet_prep.core import compiled

Run = Callable[[str], str]
OUTER = """
import numba
import numpy as np
from imagenet_prep.core.compiled import kept
from trainer.inner import times

@kept
@numba.njit
def outer(x):
    return times(x)

def call(kind):
    found = outer(np.dtype(kind).type(3))
    return f"{found} {sum(outer.stats.cache_hits.values())}"
"""
INNER = """
import numba

@numba.njit
def times(x):
    return x * {}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A small project with ``compiled``; -> a function that runs code there -> its output."""
    for package in ("imagenet_prep", "imagenet_prep/core", "trainer"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    shutil.copy(compiled.__file__, tmp_path / "imagenet_prep/core/compiled.py")
    (tmp_path / "trainer/outer.py").write_text(OUTER)
    (tmp_path / "trainer/inner.py").write_text(INNER.format(2))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def go(code: str) -> str:
        command = [sys.executable, "-B", "-c", f"from trainer.outer import *\n{code}"]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return ended.stdout.strip()

    return go


def test_code_is_found_again_until_a_source_of_it_changes(run: Run, tmp_path: Path) -> None:
    assert run("print(call('i8'))") == "6 0"
    assert run("print(call('i8'))") == "6 1"
    inner = tmp_path / "trainer/inner.py"
    inner.write_text(INNER.format(5))
    os.utime(inner, (0, 0))
    assert run("print(call('i8'))") == "15 0"
    assert run("print(call('i8'))") == "15 1"


def test_two_types_compiled_at_the_same_time_keep_their_code(run: Run) -> None:
    # As two processes: the second looks, and finds nothing, before the first has kept its code.
    code = """
import subprocess, sys
cache = outer._cache._cache_file
load = cache.load
def first(key):
    found = load(key)
    other = "from trainer.outer import call; print(call('f8'))"
    print(subprocess.check_output([sys.executable, "-B", "-c", other], text=True).strip())
    return found
cache.load = first
print(call('i8'))
"""
    assert run(code) == "6.0 0\n6 0"
    assert run("print(call('i8'), call('f8'))") == "6 1 6.0 2"


def test_damaged_code_is_compiled_again(run: Run, tmp_path: Path) -> None:
    run("call('i8')")
    (kept,) = (tmp_path / "kept").rglob("*.nbc")
    kept.write_bytes(kept.read_bytes()[:-100] + bytes(100))
    assert run("print(call('i8'))") == "6 0"
    assert run("print(call('i8'))") == "6 1"


def test_kernels_of_a_gpu_are_kept_likewise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = pytest.importorskip("numba.cuda")
    if not hasattr(cuda.jit(lambda: None), "enable_caching"):
        pytest.skip("the CUDA simulator keeps no code")
    monkeypatch.setattr("numba.cuda.core.config.CACHE_DIR", str(tmp_path))

    def kernel(x: np.ndarray) -> None:
        x[0] = 1

    entries = [compiled.kept(cuda.jit(kernel))._cache._cache_file for _ in range(2)]
    entries[0].save(("i8", "sm_90"), b"code")
    entries[1].save(("f8", "sm_90"), b"other")
    assert [entries[1].load((kind, "sm_90")) for kind in ("i8", "f8", "u8")] == [
        b"code",
        b"other",
        None,
    ]
