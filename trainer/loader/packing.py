"""Compressed samples -> memory that a device reads: copied side by side, by compiled code."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.loader import kernels
from trainer.loader.cpu import COMPUTING, pointer
from trainer.loader.iterator import DamagedError
from trainer.numba_ext import kernel, numba, read_file

ALIGNMENT = 8
"""Samples begin at multiples of so many bytes."""
MARGIN = 64
"""So many bytes behind the last sample may be read, whatever they hold."""


def aligned(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sizes in bytes -> what they take."""
    return (sizes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


@kernel
def _copy(pread: Any, files: Any, extents: Any, indices: Any, begins: Any, out: Any, i: Any) -> Any:
    at, size, number = (
        extents[indices[i], 0], extents[indices[i], 1], extents[indices[i], 3]
    )  # fmt: skip
    return read_file(pread, files[number], out + begins[i], size, at)


@kernel
def _copy_serial(
    pread: Any, files: Any, extents: Any, indices: Any, begins: Any, out: Any, whole: Any
) -> None:
    for i in range(len(indices)):
        whole[i] = _copy(pread, files, extents, indices, begins, out, i)


def _copy_threads(
    pread: Any, files: Any, extents: Any, indices: Any, begins: Any, out: Any, whole: Any
) -> None:
    for i in numba.prange(len(indices)):
        whole[i] = _copy(pread, files, extents, indices, begins, out, i)


_copy_parallel: Any = numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)(
    _copy_threads
)


class Packer:
    """Copies samples of open files; ``extents`` int64 (N, 4) as in ``tables.BetonInfo``."""

    def __init__(self, extents: NDArray[np.int64], files: NDArray[np.int64], jobs: int) -> None:
        self.extents, self.files, self.jobs = extents, files, jobs
        self._pread = pointer(ctypes.CDLL(None).pread)

    def copy(self, indices: NDArray[np.uint64], begins: NDArray[np.int64], out: int) -> None:
        """Sample ``indices[i]`` -> its bytes at the address ``out + begins[i]``.

        Raises DamagedError where a file ends before a sample.
        """
        whole = np.zeros(len(indices), np.int8)
        where = indices.astype(np.int64)
        given = (self._pread, self.files, self.extents, where, begins, out, whole)
        if self.jobs == 1:
            _copy_serial(*given)
        else:
            before = numba.get_num_threads()
            numba.set_num_threads(self.jobs)
            with COMPUTING:
                _copy_parallel(*given)
            numba.set_num_threads(before)
        if not whole.all():
            lost = int(where[int(whole.argmin())])
            raise DamagedError(lost, kernels.REASONS[kernels.STATUS_SHORT])
