"""Compressed samples -> memory that a device reads: copied side by side, by compiled code."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
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


MOST_THREADS = 8
"""Threads that copy, at most: they share the bandwidth of memory."""
LEAST_SHARE = 64
"""Samples that are worth a thread."""


class Packer:
    """Copies samples of open files in up to ``jobs`` threads; ``extents`` int64 (N, 4) as in
    ``tables.BetonInfo``. One thread copies about 130,000 samples of 20 kB a second."""

    def __init__(self, extents: NDArray[np.int64], files: NDArray[np.int64], jobs: int) -> None:
        self.extents, self.files, self.jobs = extents, files, min(jobs, MOST_THREADS)
        self._pread = pointer(ctypes.CDLL(None).pread)
        self._pool: ThreadPoolExecutor | None = None

    def copy(self, indices: NDArray[np.uint64], begins: NDArray[np.int64], out: int) -> None:
        """Sample ``indices[i]`` -> its bytes at the address ``out + begins[i]``.

        Raises DamagedError where a file ends before a sample.
        """
        whole = np.zeros(len(indices), np.int8)
        where = indices.astype(np.int64)

        def share(part: slice) -> None:
            each = where[part], begins[part], out, whole[part]
            _copy(self._pread, self.files, self.extents, *each)

        shares = max(1, min(self.jobs, len(indices) // LEAST_SHARE))
        if shares == 1:
            share(slice(None))
        else:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.jobs, "loader-copy")
            ends = np.linspace(0, len(indices), shares + 1).astype(int).tolist()
            list(self._pool.map(share, map(slice, ends[:-1], ends[1:])))
        if not whole.all():
            lost = int(where[int(whole.argmin())])
            raise DamagedError(lost, kernels.REASONS[kernels.STATUS_SHORT])

    def close(self) -> None:
        """Ends the threads; the next copy starts others."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
