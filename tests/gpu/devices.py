"""The devices that a test runs on: the CPU, so that it is never untested itself, and CUDA."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

_CUDA = (
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
)
on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=_CUDA)])


def on_cuda(test: Any) -> Any:
    """Marks a test that has nothing to do without a CUDA device."""
    for mark in _CUDA:
        test = mark(test)
    return test


@contextlib.contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """On CUDA whatever waits for the device raises, in all threads."""
    if device == "cuda":
        with warnings.catch_warnings():  # it warns that it does not find every wait
            warnings.filterwarnings("ignore", "Synchronization debug mode")
            torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def unwaited(batches: Iterable[Any], device: str) -> Iterator[Any]:
    """The batches; until the last one is used up nothing may wait for the device."""
    with no_waiting(device):
        yield from batches
