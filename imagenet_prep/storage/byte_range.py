"""Where a raw image's bytes lie, and how they are read: a file, or a part of one.

A part is a member of an archive or an array, read in place: nothing is ever unpacked. The
file is on a disk, or behind a URL.
"""

from __future__ import annotations

import errno
import functools
import gzip
import io
import os
import stat
import struct
import zlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from imagenet_prep.core.redact import shown
from imagenet_prep.storage import remote
from imagenet_prep.storage.remote_errors import RemoteError
from imagenet_prep.storage.urls import is_url

WHOLE = -1
_ZIP_HEADER = struct.Struct("<26sHH")  # what is of no interest here, and two lengths
MAX_UNPACKED_BYTES = 128 << 20
"""What a process keeps of a compressed array; greater ones have to be unpacked first."""


class Place(NamedTuple):
    """``length`` bytes of ``file`` from byte ``offset``; WHOLE: all of it.

    ``file`` is a path or a URL. ``form`` tells what the bytes are: empty for those of an image
    file; ``pgm:28x28`` for the grey levels of 28 columns and 28 rows, ``ppm:32x32`` for RGB,
    ``planes:32x32`` for RGB plane by plane; ``gz pgm:28x28`` for the same counted in what
    ``file`` unpacks to; ``kept pgm:28x28`` for the same of a file so small that it is better
    fetched as a whole; ``zip:METHOD:CRC`` for a member of a zip, from its local header on;
    ``stream ...`` for what is best read in order (``streams``);
    ``unusable:REASON`` for what no reading can help. ``seen`` is what a server reported of the
    file when it was found, its bytes and version (``remote.Status``); empty for a file on a
    disk, and before the server was asked.
    """

    file: str
    offset: int = 0
    length: int = WHOLE
    form: str = ""
    seen: str = ""

    def __repr__(self) -> str:
        """A URL may be a secret, and a repr is printed by whoever likes to."""
        return f"Place({shown(self.file)!r}, {self.offset}, {self.length}, {self.form!r})"

    def read(self) -> bytes:
        """An image file's bytes. Raises OSError."""
        kind, _, about = self.form.partition(":")
        if kind == "unusable":
            raise OSError(errno.EINVAL, about, shown(self.file))
        if kind.startswith("stream"):
            from imagenet_prep.storage.streams import read_streamed

            return read_streamed(self)
        if kind.startswith(("gz", "kept")):
            whole = _kept(self.file, self.stamp()[1], kind.startswith("gz"))
            data = whole[self.offset : self.offset + self.length]
        elif is_url(self.file):
            expected = self.stamp()[0] if self.seen and self.length == WHOLE else -1
            data = remote.read(self.file, self.offset, self.length, expected=expected)
        else:
            with open(self.file, "rb", opener=_open_at_once) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(errno.EINVAL, "not a file but a device or pipe", self.file)
                file.seek(self.offset)
                if kind == "zip":  # the header before the data has their exact place
                    header = file.read(_ZIP_HEADER.size)
                    if header[:4] != b"PK\3\4":
                        raise OSError(errno.EIO, "the archive that holds it changed", self.file)
                    file.seek(sum(_ZIP_HEADER.unpack(header)[1:]), os.SEEK_CUR)
                data = file.read(self.length)
        if len(data) < self.length:
            raise OSError(errno.EIO, "the file that holds it has become shorter", shown(self.file))
        return data if not kind else _as_file(kind.rpartition(" ")[2], about, data)

    def stamp(self) -> tuple[int, int]:
        """(bytes, mtime in ns or version) by which a change shows; (-1, -1): it is not told."""
        if self.seen:
            size, _, version = self.seen.partition(" ")
            return int(size) if self.length == WHOLE else self.length, int(version)
        if "://" in self.file and is_url(self.file):
            return self.asked()[0].stamp()
        try:
            status = os.stat(self.file)  # noqa: PTH116 - a million of them
        except OSError:
            return -1, -1  # it fails when it is read, with the reason
        return status.st_size if self.length == WHOLE else self.length, status.st_mtime_ns

    def needs_asking(self) -> bool:
        """Whether a server has yet to say what it knows of it."""
        return not self.seen and is_url(self.file)

    def asked(self) -> tuple[Place, str]:
        """The same with what the server reports of it, and the reason where it reports nothing.

        Raises ToolError where the URL cannot be asked about at all.
        """
        try:
            status = remote.status(self.file)
        except RemoteError as error:
            reason = "" if error.errno == errno.ENOENT else str(error.strerror)
            return self._replace(seen=seen(None)), reason
        return self._replace(seen=seen(status)), ""


def _as_file(kind: str, about: str, data: bytes) -> bytes:
    """Bytes of a form of ``Place`` -> those of an image file. Raises OSError."""
    size = about.replace("x", " ").encode()
    if kind == "pgm":
        return b"P5 %b 255\n" % size + data
    if kind == "ppm":
        return b"P6 %b 255\n" % size + data
    if kind == "planes":
        pixels = bytearray(len(data))
        for plane in range(3):
            pixels[plane::3] = data[plane * len(data) // 3 : (plane + 1) * len(data) // 3]
        return b"P6 %b 255\n" % size + pixels
    if kind != "zip":
        return data
    method, _, checksum = about.partition(":")
    try:
        plain = (
            zlib.decompressobj(-15).decompress(data, MAX_UNPACKED_BYTES) if int(method) else data
        )
    except zlib.error as error:
        raise OSError(errno.EIO, f"damaged in its archive ({error})") from None
    if zlib.crc32(plain) != int(checksum, 16):
        raise OSError(errno.EIO, "damaged in its archive (checksum)")
    return plain


def seen(status: remote.Status | None) -> str:
    """What a server reports of a file -> ``Place.seen``; None: it fails when it is read."""
    return "-1 -1" if status is None else f"{status.bytes} {status.version}"


def _open_at_once(file: str, flags: int) -> int:
    """Opens without waiting for the other end of a pipe."""
    return os.open(file, flags | os.O_NONBLOCK)


def unpack(file: str) -> bytes:
    """The bytes that a gzip file holds. Raises OSError, also for damage and for too much."""
    packed = io.BytesIO(Place(file).read())
    try:
        with gzip.open(packed) as stream:
            data = stream.read(MAX_UNPACKED_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OSError(errno.EIO, f"damaged gzip ({error})", shown(file)) from None
    if len(data) > MAX_UNPACKED_BYTES:
        raise OSError(errno.EFBIG, "too large to be read compressed, unpack it with gunzip")
    return data


@functools.lru_cache(maxsize=1)
def _kept(file: str, _version: int, packed: bool) -> bytes:
    """Kept, because the next image of a sorted list lies in the same file.

    Its time or version is part of what is remembered: a changed file is read again.
    """
    return unpack(file) if packed else Place(file).read()


_LARGEST_FETCHED_BYTES = 16 << 20
_coming: dict[Place, Future[bytes]] = {}
_pools: dict[int, ThreadPoolExecutor] = {}
"""By process: the threads of a pool do not go into a forked process."""


def fetch_ahead(places: Iterable[Place]) -> None:
    """Begins to read those that are behind a URL and not too large to be kept, and forgets what
    was fetched before.

    A server takes tens of milliseconds to answer, a crop takes five: without this a worker would
    mostly wait.
    """
    _coming.clear()
    pool = _pools.setdefault(os.getpid(), ThreadPoolExecutor(remote.AT_ONCE))
    for place in places:
        if not is_url(place.file) or place.form:  # arrays are kept by themselves
            continue
        if not place.seen or place.stamp()[0] <= _LARGEST_FETCHED_BYTES:
            _coming[place] = pool.submit(place.read)


def read_fetched(place: Place) -> bytes:
    """As ``place.read``, sooner if it was fetched ahead. Raises OSError."""
    coming = _coming.pop(place, None)
    return place.read() if coming is None else coming.result()
