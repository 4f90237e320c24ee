"""Small pieces of a file behind a URL -> few requests: what lies around a piece comes with it.

Headers of a tar lie as far apart as its members are long. Among small members the windows
grow until the archive is streamed; among large ones they stay small, so that only headers
are fetched.
"""

from __future__ import annotations

from imagenet_prep.storage.byte_range import Place

SMALLEST_BYTES, LARGEST_BYTES = 1 << 13, 1 << 22


class Windows:
    """Reads pieces of a file of ``size`` bytes, mostly one behind the other."""

    def __init__(self, place: Place, size: int) -> None:
        self._place = place
        self._size = size
        self._start = 0
        self._data = b""
        self._wide = SMALLEST_BYTES

    def read(self, length: int, offset: int) -> bytes:
        """``length`` bytes from ``offset``, fewer at the end. Raises OSError."""
        end = min(offset + length, self._size)
        ahead = offset - (self._start + len(self._data))
        if offset < self._start or end > self._start + len(self._data):
            if self._data:
                near = -len(self._data) <= ahead < self._wide
                wide = self._wide * 4 if near else self._wide // 4
                self._wide = min(max(wide, SMALLEST_BYTES), LARGEST_BYTES)
            upto = min(max(end, offset + self._wide), self._size)
            piece = self._place._replace(offset=offset, length=max(upto - offset, 0))
            self._start, self._data = offset, piece.read()
        at = offset - self._start
        return self._data[at : at + max(end - offset, 0)]
