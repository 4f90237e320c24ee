"""Where a raw picture's bytes lie, and how they are read: a file, or a part of one.

A part is a member of an archive, read in place: nothing is ever unpacked.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

WHOLE = -1


@dataclass(frozen=True, slots=True)
class Place:
    """``length`` bytes of ``file`` from byte ``offset``; WHOLE: all of it.

    ``form`` says what they are: empty for a picture file's own bytes.
    """

    file: str
    offset: int = 0
    length: int = WHOLE
    form: str = ""

    def read(self) -> bytes:
        """A picture file's bytes. Raises OSError."""
        if self.length == WHOLE:
            return Path(self.file).read_bytes()
        with Path(self.file).open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)

    def stamp(self) -> tuple[int, int]:
        """(bytes, mtime in ns) by which a change shows; (-1, -1) where it cannot be asked."""
        try:
            status = os.stat(self.file)  # noqa: PTH116 - a million of them
        except OSError:
            return -1, -1  # it fails when it is read, with the reason
        return status.st_size if self.length == WHOLE else self.length, status.st_mtime_ns
