"""A tar, or a tar within a tar -> where its members' bytes lie. Only headers are read.

A header is one block of 512 bytes before each member (POSIX.1-2001, "ustar" and "pax");
long names come as members of their own: GNU types L and K, pax types x and g. Nothing is
unpacked, and a million members take seconds.
"""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from imagenet_prep.core.errors import ToolError
from imagenet_prep.storage.buffered import Windows
from imagenet_prep.storage.byte_range import Place
from imagenet_prep.storage.location import Location, Url

BLOCK_BYTES = 512
LINKED = "a link in its archive, which is not followed"
SPARSE = "stored with holes in its archive, which is not supported"
FOREIGN = "of an unknown kind in its archive"
_REMEDY = "fetch or make the archive again"
_MAX_META_BYTES = 1 << 20
_MAX_NAME, _MAX_PART = 1000, 255
_BLANK = 8 * ord(" ")
_FILE_KINDS = b"0\x007"
_META_KINDS = b"LKxg"
_KINDS_WITHOUT_DATA = b"123456"
_FOLDERS_DEVICES_LABELS = b"3456DVN"
_UNPACKERS = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"(\xb5": "unzstd"}


class Member(NamedTuple):
    """A file in a tar: its bytes are ``length`` from ``offset`` of the outermost file.

    ``fault`` is empty, or says why they are of no use.
    """

    name: str
    offset: int
    length: int
    fault: str = ""


Read = Callable[[int, int], bytes]
"""(length, offset) -> the bytes of a file from there; fewer where it ends."""


class Tar:
    """An open tar file, or the part of one that is a tar itself; ``place`` is the whole file."""

    def __init__(
        self, reader: Callable[[], Read], place: Place, shown: str, start: int, end: int
    ) -> None:
        self.shown = shown
        self.place = place
        self._reader = reader
        self._read = reader()
        self._kept: dict[int, bytes] = {}
        self._start = start
        self._end = end

    def inner(self, member: Member) -> Tar:
        """The tar that a member is."""
        shown = f"{self.shown}, member {member.name}"
        end = member.offset + member.length
        return Tar(self._reader, self.place, shown, member.offset, end)

    def read(self, member: Member, most: int) -> bytes:
        """The bytes of a small member. Raises ToolError if it has more than ``most``."""
        if member.length > most:
            raise ToolError(
                f"{self.shown}: its member {member.name} has {member.length} bytes, at most "
                f"{most} are believable; {_REMEDY}"
            )
        kept = self._kept.get(member.offset)
        return kept if kept is not None else self._read(member.length, member.offset)

    def keep(self, member: Member) -> None:
        """Reads a member that is small, for later: where its header was, it is at hand."""
        if member.length <= BLOCK_BYTES:
            self._kept[member.offset] = self._read(member.length, member.offset)

    def members(self) -> Iterator[Member]:
        """Its files in their order, with the reason for those that are of no use.

        Folders and devices are left out. Raises ToolError with one sentence for an archive
        that is damaged, cut off or compressed, and for a name that leaves the folder.
        """
        at, end, read = self._start, self._end, self._read
        notes, noted = _Notes(), False
        while True:
            block = read(BLOCK_BYTES, at)
            if len(block) < BLOCK_BYTES or at + BLOCK_BYTES > end:
                raise self._compressed(at, block) or self._cut_off()
            if not block[0] and not any(block):
                return  # the mark at its end
            kind = block[156]
            length = _octal(block, 124, 136)
            if not _sound(block) or length < 0:
                raise self._damaged(at, block)
            at += BLOCK_BYTES
            if kind in _META_KINDS:
                if length > _MAX_META_BYTES:
                    raise self._damaged(at - BLOCK_BYTES, block)
                data = read(length, at)
                at += length + 511 & -512
                if at > end or not notes.take(kind, data):
                    raise self._cut_off() if at > end else self._damaged(at, block)
                noted = True
                continue
            name, fault = _name(block), ""
            if noted:
                name, length, fault = notes.apply(name, length)
                noted = notes.lasting
            if kind in _FILE_KINDS:
                kept = name[-1:] != "/"
            else:
                kept = kind not in _FOLDERS_DEVICES_LABELS
                fault = LINKED if kind in b"12" else SPARSE if kind in b"S" else FOREIGN
                if kind in b"S":
                    at = self._after_sparse_map(block, at)
                if kind in _KINDS_WITHOUT_DATA:
                    length = 0
            if at + length > end or length < 0:
                raise self._cut_off()
            if kept:
                yield Member(self._checked(name), at, length, fault)
            at += length + 511 & -512

    def _after_sparse_map(self, block: bytes, at: int) -> int:
        """Where the data of a GNU sparse member begin: its map may go on in further blocks."""
        more = block[482]
        while more and at < self._end:
            block = self._read(BLOCK_BYTES, at)
            if len(block) < BLOCK_BYTES:
                raise self._cut_off()
            more = block[504]
            at += BLOCK_BYTES
        return at

    def _checked(self, name: str) -> str:
        """A member's name without ``./`` before it, if it is one that stays where it is put."""
        if name.startswith("./") or "//" in name or "/./" in name:
            rooted = "/" if name[0] == "/" else ""
            name = rooted + "/".join(part for part in name.split("/") if part not in ("", "."))
        unsafe = not name or name[0] == "/" or (".." in name and ".." in name.split("/"))
        if unsafe:
            raise ToolError(
                f"{self.shown}: its member {name or '(without a name)'} would lie outside of the "
                f"folder that it is unpacked to, so the archive is not trusted; {_REMEDY}"
            )
        if len(name) > 60 and (
            len(name) > _MAX_NAME or any(len(p.encode()) > _MAX_PART for p in name.split("/"))
        ):
            raise ToolError(f"{self.shown}: the name of a member is too long for a disk; {_REMEDY}")
        return name

    def _cut_off(self) -> ToolError:
        if self._end == self._start:
            return ToolError(f"{self.shown}: is empty; {_REMEDY}")
        return ToolError(
            f"{self.shown}: is cut off, it has {self._end - self._start} bytes and goes on "
            f"beyond them; {_REMEDY}"
        )

    def _damaged(self, at: int, block: bytes) -> ToolError:
        if at > self._start:
            where = at - self._start
            return ToolError(f"{self.shown}: is damaged at byte {where}; {_REMEDY}")
        return self._compressed(at, block) or ToolError(
            f"{self.shown}: is no tar archive; {_REMEDY}"
        )

    def _compressed(self, at: int, block: bytes) -> ToolError | None:
        """The sentence for a compressed archive, if that is what it begins like."""
        tool = _UNPACKERS.get(block[:2])
        if tool is None or at > self._start:
            return None
        return ToolError(
            f"{self.shown}: is compressed, so its members cannot be read in place; unpack it "
            f"with {tool} first (pictures do not get smaller by it)"
        )


class _Notes:
    """What members of the kinds L, K, x and g say of the member that follows."""

    def __init__(self) -> None:
        self._next: dict[str, str] = {}
        self._lasting: dict[str, str] = {}

    @property
    def lasting(self) -> bool:
        """Whether they say something of every member from here on."""
        return bool(self._lasting)

    def take(self, kind: int, data: bytes) -> bool:
        """Reads such a member; False if it is damaged."""
        if kind in b"LK":
            name = data.partition(b"\0")[0].decode("utf-8", "backslashreplace")
            self._next["path" if kind in b"L" else "linkpath"] = name
            return True
        records = self._next if kind in b"x" else self._lasting
        while data.strip(b"\0"):
            size_text, _, rest = data.partition(b" ")
            if not size_text.isdigit() or len(size_text) > 7:
                return False
            size = int(size_text) - len(size_text) - 1
            key, equals, value = rest[:size].partition(b"=")
            if not 0 < size <= len(rest) or not equals or value[-1:] != b"\n":
                return False
            text = value[:-1].decode("utf-8", "backslashreplace")
            records[key.decode("utf-8", "backslashreplace")] = text
            data = rest[size:]
        return True

    def apply(self, name: str, length: int) -> tuple[str, int, str]:
        """The name, length (-1: damaged) and fault of the member that follows."""
        said = self._lasting | self._next
        self._next = {}
        size = said.get("size", "")
        if size:
            length = int(size) if size.isdecimal() and len(size) < 16 else -1
        sparse = any(key.startswith("GNU.sparse.") for key in said)
        name = said.get("GNU.sparse.name", said.get("path", name))
        return name, length, SPARSE if sparse else ""


def _octal(block: bytes, start: int, stop: int) -> int:
    """A number of a header: octal, or binary where the first bit is set; -1: neither."""
    try:
        return int(block[start : stop - 1], 8)
    except ValueError:
        field = block[start:stop]
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        text = field.strip(b" \0")
        if not text:
            return 0
        return int(text, 8) if text.isdigit() and not set(text) & set(b"89") else -1


def _sound(block: bytes) -> bool:
    """Whether a header's checksum, the sum of its bytes with its own field blank, is right.

    Adler-32 has the sum of bytes plus one in its lower half, modulo 65521, and is fast.
    """
    others = (zlib.adler32(block) & 0xFFFF) - 1 - sum(block[148:156]) + _BLANK
    return (others - _octal(block, 148, 155)) % 65521 == 0


def _name(block: bytes) -> str:
    name = block[:100].partition(b"\0")[0]
    if block[345] and block[257:263] == b"ustar\0":
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "backslashreplace")


@contextmanager
def open_tar(path: Location) -> Iterator[Tar]:
    """A tar file, open for reading its headers. Raises ToolError when it cannot be read."""
    if isinstance(path, Url):
        with _open_remote(path) as tar:
            yield tar
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ToolError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        # Headers lie far apart: reading on behind each would read the whole archive.
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)
        read = functools.partial(os.pread, handle)
        yield Tar(lambda: read, Place(str(path)), str(path), 0, os.fstat(handle).st_size)
    except OSError as error:
        raise ToolError(f"{path}: cannot be read ({error.strerror})") from None
    finally:
        os.close(handle)


@contextmanager
def _open_remote(path: Url) -> Iterator[Tar]:
    """The same of a tar behind a URL."""
    try:
        place = path.place_of_parts()
        size = place.stamp()[0]
        yield Tar(lambda: Windows(place, size).read, place, str(path), 0, size)
    except OSError as error:
        raise ToolError(f"{path}: cannot be read ({error.strerror})") from None
