"""Where a raw picture's bytes lie, and how they are read: a file, or a part of one.

A part is a member of an archive or an array, read in place: nothing is ever unpacked.
"""

from __future__ import annotations

import errno
import functools
import gzip
import os
import stat
import zlib
from pathlib import Path
from typing import NamedTuple

WHOLE = -1
MAX_UNPACKED_BYTES = 128 << 20
"""What a process keeps of a compressed array; greater ones have to be unpacked first."""


class Place(NamedTuple):
    """``length`` bytes of ``file`` from byte ``offset``; WHOLE: all of it.

    ``form`` says what they are: empty for a picture file's own bytes; ``pgm:28x28`` for
    the plain grey levels of 28 columns and 28 rows; ``gz pgm:28x28`` for the same counted
    in what ``file`` unpacks to; ``unusable:REASON`` for what no reading can help.
    """

    file: str
    offset: int = 0
    length: int = WHOLE
    form: str = ""

    def read(self) -> bytes:
        """A picture file's bytes. Raises OSError."""
        kind, _, about = self.form.partition(":")
        if kind == "unusable":
            raise OSError(errno.EINVAL, about, self.file)
        if kind.startswith("gz"):
            data = _unpacked(self.file, self.stamp()[1])[self.offset : self.offset + self.length]
        else:
            with open(self.file, "rb", opener=_open_at_once) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(errno.EINVAL, "not a file but a device or pipe", self.file)
                file.seek(self.offset)
                data = file.read(self.length)
        if len(data) < self.length:
            raise OSError(errno.EIO, "the file that holds it has become shorter", self.file)
        if kind.endswith("pgm"):
            return b"P5 %b 255\n" % about.replace("x", " ").encode() + data
        return data

    def stamp(self) -> tuple[int, int]:
        """(bytes, mtime in ns) by which a change shows; (-1, -1) where it cannot be asked."""
        try:
            status = os.stat(self.file)  # noqa: PTH116 - a million of them
        except OSError:
            return -1, -1  # it fails when it is read, with the reason
        return status.st_size if self.length == WHOLE else self.length, status.st_mtime_ns


def _open_at_once(file: str, flags: int) -> int:
    """Opens without waiting, which a pipe that nobody writes to would do for ever."""
    return os.open(file, flags | os.O_NONBLOCK)


def unpack(file: str | Path) -> bytes:
    """The bytes that a gzip file holds. Raises OSError, also for damage and for too much."""
    try:
        with gzip.open(file) as stream:
            data = stream.read(MAX_UNPACKED_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OSError(errno.EIO, f"damaged gzip ({error})", str(file)) from None
    if len(data) > MAX_UNPACKED_BYTES:
        raise OSError(errno.EFBIG, "too large to be read compressed, unpack it with gunzip")
    return data


@functools.lru_cache(maxsize=1)
def _unpacked(file: str, _mtime_ns: int) -> bytes:
    """Kept, because the next picture of a sorted list lies in the same file.

    Its time is part of what is remembered: a changed file is read again.
    """
    return unpack(file)
