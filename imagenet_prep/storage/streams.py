"""Images that are read one behind the other: in compressed tars, Parquet and Arrow files.

A source of the form STREAM_TAR has its offset and length in what the file unpacks to; of
STREAM_TABLE its offset is the number of its row. The process keeps the file open that it
read last, so reading in the order of the offsets reads it once.
"""

from __future__ import annotations

import bisect
import errno
import functools
import itertools
import lzma
import os
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from imagenet_prep.core.errors import ToolError
from imagenet_prep.storage.byte_range import Place

STREAM_TAR = "stream tar"
STREAM_TABLE = "stream table"
_MAX_CHUNK_BYTES = 1 << 20


class Compressed:
    """An open compressed file. ``read_at`` goes forward; it goes back only a little way."""

    def __init__(self, file: str) -> None:
        self._file, self._stream = file, _decompressor(file)
        self._at, self._kept = 0, b""

    def __enter__(self) -> Compressed:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read_at(self, length: int, offset: int) -> bytes:
        """``length`` bytes from ``offset`` of what it unpacks to. Raises OSError."""
        kept_from = self._at - len(self._kept)
        if offset < kept_from:
            self._stream.close()
            self._stream = _decompressor(self._file)
            self._at, self._kept, kept_from = 0, b"", 0
        while self._at < offset and self._more(min(offset - self._at, _MAX_CHUNK_BYTES)):
            kept_from = self._at - len(self._kept)
        while self._at < offset + length and self._more(min(length, _MAX_CHUNK_BYTES), keep=length):
            kept_from = self._at - len(self._kept)
        start = offset - kept_from
        return self._kept[start : start + length]

    def _more(self, length: int, keep: int = 0) -> bool:
        """Reads on; keeps the last megabyte, and what is being read. False at the end."""
        try:
            data = self._stream.read(length)
        except (EOFError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
            reason = f"damaged or cut off compressed data ({error})"
            raise OSError(errno.EIO, reason, self._file) from None
        self._kept = (self._kept + data)[-max(_MAX_CHUNK_BYTES // 8, keep + length) :]
        self._at += len(data)
        return bool(data)


def open_compressed(file: str) -> Compressed:
    """A file in gzip, bzip2, xz or Zstandard. Raises ToolError if it is none or unreadable."""
    try:
        return Compressed(file)
    except OSError as error:
        raise ToolError("source.unreadable", f"{file}: cannot be read ({error.strerror})") from None


def _decompressor(file: str) -> BinaryIO:
    """The unpacked bytes of a file, by how it begins. Raises OSError and ToolError."""
    import bz2
    import gzip

    with open(file, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as raw:
        head = raw.read(4)
    opens: dict[bytes, Callable[[str], Any]] = {
        b"\x1f\x8b": gzip.open,
        b"BZ": bz2.open,
        b"\xfd7": lzma.open,
        b"(\xb5": lambda name: arrow(name).input_stream(name, compression="zstd"),
    }
    if head[:2] not in opens:
        raise ToolError(
            "archive.damaged", f"{file}: is not compressed as its name tells; rename it"
        )
    stream: BinaryIO = opens[head[:2]](file)
    return stream


def arrow(file: str) -> Any:
    """The package pyarrow. Raises ToolError where it is missing."""
    try:
        import pyarrow
    except ImportError:
        raise ToolError(
            "package.missing",
            f"{file}: needs pyarrow; pip install 'imagenet-alexnet[parquet]' brings it",
        ) from None
    return pyarrow


@functools.lru_cache(maxsize=1)
def _compressed(file: str, _version: int) -> Compressed:
    return Compressed(file)


def open_arrow(file: str) -> Any:
    """An Arrow file or stream -> its table, which stays where it is. Raises pyarrow's errors."""
    pa = arrow(file)
    data = pa.memory_map(file).read_buffer()
    try:
        return pa.ipc.open_stream(pa.BufferReader(data)).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(pa.BufferReader(data)).read_all()


class _Rows:
    """The bytes of a column of a table by row; the last row group of a Parquet file is kept."""

    def __init__(self, file: str, column: str) -> None:
        arrow(file)
        import pyarrow.parquet

        root, *self._inner = column.split(".")
        self._group, self._values = -1, None
        self._read: Callable[[int], Any]
        if file.endswith(".arrow"):
            table = open_arrow(file)
            self._ends, self._read = [table.num_rows], lambda _group: table.column(root)
            return
        whole: Any = pyarrow.parquet.ParquetFile(file, memory_map=True)
        counts = (whole.metadata.row_group(n).num_rows for n in range(whole.num_row_groups))
        self._ends = list(itertools.accumulate(counts))
        self._read = lambda group: whole.read_row_group(group, columns=[column]).column(0)

    def __getitem__(self, row: int) -> bytes | None:
        import pyarrow.compute

        group = bisect.bisect_right(self._ends, row)
        if group != self._group:
            column = self._read(group)
            for name in self._inner:
                column = pyarrow.compute.struct_field(column, name)
            self._group, self._values = group, column
        assert self._values is not None
        value = self._values[row - (self._ends[group - 1] if group else 0)].as_py()
        return value if isinstance(value, bytes) else None


@functools.lru_cache(maxsize=1)
def _rows(file: str, column: str, _version: int) -> _Rows:
    return _Rows(file, column)


def read_streamed(place: Place) -> bytes:
    """The bytes of an image of one of these forms. Raises OSError."""
    version = Place(place.file).stamp()[1]  # a changed file is opened again
    kind, _, column = place.form.partition(":")
    if kind == STREAM_TAR:
        data = _compressed(place.file, version).read_at(place.length, place.offset)
        if len(data) < place.length:
            raise OSError(errno.EIO, "the file that holds it has become shorter", place.file)
        return data
    try:
        value = _rows(place.file, column, version)[place.offset]
    except (ValueError, LookupError, OSError, ToolError) as error:
        raise OSError(errno.EIO, f"cannot be read from its table ({error})", place.file) from None
    if value is None:
        raise OSError(errno.EINVAL, "the table has no bytes for it", place.file)
    return value
