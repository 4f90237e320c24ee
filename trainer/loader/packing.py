"""Compressed samples -> memory that a device reads: copied side by side, by compiled code."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.loader.cpu import pointer
from trainer.loader.iterator import DamagedError
from trainer.numba_ext import kernel, read_file
from trainer.views import kernels

ALIGNMENT = 8
"""Samples begin at multiples of so many bytes."""
MARGIN = 64
"""So many bytes behind the last sample may be read, whatever they hold."""


def aligned(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sizes in bytes -> what they take."""
    return (sizes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


@kernel
def _copy(
    pread: Any, files: Any, extents: Any, indices: Any, begins: Any, out: Any, whole: Any
) -> None:
    for i in range(len(indices)):
        at, size, file = extents[indices[i], 0], extents[indices[i], 1], extents[indices[i], 3]
        whole[i] = read_file(pread, files[file], out + begins[i], size, at)


class Packer:
    """Copies samples of open files in one thread, about 300,000 a second; ``extents`` int64
    (N, 4) as in ``tables.BetonInfo``."""

    def __init__(self, extents: NDArray[np.int64], files: NDArray[np.int64]) -> None:
        self.extents, self.files = extents, files
        self._pread = pointer(ctypes.CDLL(None).pread)

    def copy(self, indices: NDArray[np.uint64], begins: NDArray[np.int64], out: int) -> None:
        """Sample ``indices[i]`` -> its bytes at the address ``out + begins[i]``.

        Raises DamagedError where a file ends before a sample.
        """
        whole = np.zeros(len(indices), np.int8)
        where = indices.astype(np.int64)
        _copy(self._pread, self.files, self.extents, where, begins, out, whole)
        if not whole.all():
            lost = int(where[int(whole.argmin())])
            raise DamagedError(lost, kernels.REASONS[kernels.STATUS_SHORT])
