"""Freed memory stays with the process: the second time it costs no new pages."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.kit.command import REPOSITORY

# New pages that eight blocks of 64 MB cost, after eight others.
FAULTS = """
import resource, sys
import torch
from trainer.training.memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

kept = sys.argv[1] == "keep" and keep_freed_memory()
for _ in range(8):
    torch.ones(2**24)
before = faults()
for _ in range(8):
    torch.ones(2**24)
print(int(kept), faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_blocks_of_a_training_step_are_used_again() -> None:
    found = {}
    for mode in ("keep", "default"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, mode],
            cwd=REPOSITORY,
            env={"PATH": "", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=True,
        )
        found[mode] = [int(word) for word in done.stdout.split()]
    kept, faults = found["keep"]
    if not kept:
        pytest.skip("another C library than glibc")
    # Not all of them: where the heap lies, and so what fits again, differs between processes.
    assert faults < found["default"][1] / 2


def test_settings_of_the_user_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.training.memory import keep_freed_memory

    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert keep_freed_memory() is False
