"""Pages of files are announced to the system before they are read: it fetches them meanwhile.

The kernels read sample by sample and wait for each. From memory that is nothing; from a disk
it is the whole time, and samples of a page are read in an order that no disk likes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Linux fetches no more than the device's own limit for one announcement; 128 KB is its default.
_STEP_BYTES = 1 << 17


class ReadAhead:
    """What is read of the open ``files``, in order: ``pages`` (n,) of the samples to come,
    counted through all files, of which file f has those from ``first_pages[f]`` on.

    ``reach(position)`` announces the pages of the samples up to ``position`` and of as many
    after it as ``pages_at_once`` pages hold on average, each page once. So the system has
    about twice that many pages under way. Where it takes no announcements nothing happens.
    """

    def __init__(
        self,
        files: Sequence[int],
        first_pages: NDArray[np.int64],
        pages: NDArray[np.int64],
        page_size_bytes: int,
        pages_at_once: int,
    ) -> None:
        self.files, self.first_pages, self.page_size = files, first_pages, page_size_bytes
        numbers, begins = np.unique(pages, return_index=True)
        order = np.argsort(begins)
        self.pages, self._begins = numbers[order], begins[order]
        self._ahead = len(pages) * pages_at_once // max(len(numbers), 1)
        self.announced = 0

    def reach(self, position: int) -> None:
        """Announces what is wanted soon, when ``position`` samples have been asked for."""
        due = int(np.searchsorted(self._begins, position + self._ahead, side="right"))
        new = self.pages[self.announced : due]
        numbers = np.searchsorted(self.first_pages, new, side="right") - 1
        within = (new - self.first_pages[numbers]) * self.page_size
        for number, start in zip(numbers.tolist(), within.tolist(), strict=True):
            self._announce(self.files[number], start)
        self.announced = max(self.announced, due)

    def _announce(self, file: int, start: int) -> None:
        if not hasattr(os, "posix_fadvise"):  # macOS
            return
        for at in range(start, start + self.page_size, _STEP_BYTES):
            os.posix_fadvise(file, at, _STEP_BYTES, os.POSIX_FADV_WILLNEED)
