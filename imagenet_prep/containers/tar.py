"""A tar, or a tar within a tar -> where its members' bytes lie. Only headers are read.

``tarfile`` reads the headers. It takes the first damaged header or block of zeros for the end
of an archive, so here the end is checked: two blocks of zeros, and nothing but zeros up to the
end of the last record, as every tar writes it.
"""

from __future__ import annotations

import os
import tarfile
import weakref
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple, cast

from imagenet_prep.core.errors import ToolError
from imagenet_prep.storage.byte_range import Place
from imagenet_prep.storage.location import Location, Url

BLOCK_BYTES = 512
LINKED = "a link in its archive, which is not followed"
SPARSE = "stored with holes in its archive, which is not supported"
FOREIGN = "of an unknown kind in its archive"
_REMEDY = "fetch or make the archive again"
_RECORD_BYTES = 20 * BLOCK_BYTES
_MAX_READ_BYTES = 1 << 22
_MAX_NAME = 1000
_SMALLEST_BYTES, _LARGEST_BYTES = 1 << 13, 1 << 22
_UNPACKERS = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"(\xb5": "unzstd"}

Read = Callable[[int, int], bytes]
"""(length, offset) -> the bytes of a file from there; fewer where it ends."""


class Member(NamedTuple):
    """A file in a tar: its bytes are ``length`` from ``offset`` of the outermost file.

    ``fault`` is empty, or the reason why they cannot be used.
    """

    name: str
    offset: int
    length: int
    fault: str = ""


class _Part:
    """Bytes ``start`` to ``end`` of a file, as the file that ``tarfile`` reads."""

    def __init__(self, read: Read, start: int, end: int) -> None:
        self._read, self._start, self.bytes, self._at = read, start, end - start, 0

    def read(self, length: int) -> bytes:
        length = max(min(length, self.bytes - self._at, _MAX_READ_BYTES), 0)
        data = self._read(length, self._start + self._at) if length else b""
        self._at += len(data)
        return data

    def seek(self, offset: int) -> None:
        self._at = offset

    def tell(self) -> int:
        return self._at


class Tar:
    """A tar file, or the part of one that is a tar itself; ``place`` is the whole file."""

    def __init__(
        self, reader: Callable[[], Read], place: Place, shown: str, start: int, end: int
    ) -> None:
        self.shown = shown
        self.place = place
        self._reader = reader
        read = reader()

        def checked(length: int, offset: int) -> bytes:
            try:
                return read(length, offset)
            except OSError as error:
                raise unreadable(shown, error) from None

        self._read = checked
        self._kept: dict[int, bytes] = {}
        self._start = start
        self._part = _Part(self._read, start, end)
        self._targets: dict[str, Member] | None = None

    def inner(self, member: Member) -> Tar:
        """The tar that a member is."""
        shown = f"{self.shown}, member {member.name}"
        end = member.offset + member.length
        return Tar(self._reader, self.place, shown, member.offset, end)

    def place_of(self, member: Member, form: str = "") -> Place:
        """Where a member lies; with a fault, what fails with it when it is read."""
        form = f"unusable:{member.fault}" if member.fault else form
        return Place(self.place.file, member.offset, member.length, form, self.place.seen)

    def read(self, member: Member, most: int) -> bytes:
        """The bytes of a small member. Raises ToolError if it has more than ``most``."""
        if member.length > most:
            raise ToolError(
                "archive.member_size",
                f"{self.shown}: its member {member.name} has {member.length} bytes, at most "
                f"{most} are possible; {_REMEDY}",
            )
        kept = self._kept.get(member.offset)
        return kept if kept is not None else self._read(member.length, member.offset)

    def keep(self, member: Member) -> None:
        """Reads a member that is small, for later: behind its header it is at hand."""
        if member.length <= BLOCK_BYTES:
            self._kept[member.offset] = self._read(member.length, member.offset)

    def members(self, *, joined: bool = False) -> Iterator[Member]:
        """Its files in their order, with the reason for those that are of no use.

        Folders and devices are left out; a hard link is the member that it links to.
        ``joined``: several archives may follow one another in the file. Raises ToolError for
        an archive that is damaged, cut off or compressed, and for a name that leaves the
        folder.
        """
        for info, at in self._headers(joined):
            if info.isreg():
                if info.name[-1:] != "/":
                    sparse = info.sparse is not None or "GNU.sparse.major" in info.pax_headers
                    fault = SPARSE if sparse else ""
                    offset = self._start + at + info.offset_data
                    yield Member(check_member_name(info.name, self.shown), offset, info.size, fault)
            elif info.islnk():
                target = self._target(info.linkname, joined)
                yield target._replace(name=check_member_name(info.name, self.shown))
            elif not (info.isdir() or info.isdev() or info.type in b"DVN"):
                fault = LINKED if info.issym() else FOREIGN
                yield Member(check_member_name(info.name, self.shown), self._start + at, 0, fault)

    def _target(self, name: str, joined: bool) -> Member:
        """The member that a hard link means."""
        if self._targets is None:
            self._targets = {
                check_member_name(info.name, self.shown): Member(
                    "", self._start + at + info.offset_data, info.size
                )
                for info, at in self._headers(joined)
                if info.isreg()
            }
        return self._targets.get(name.removeprefix("./"), Member("", self._start, 0, LINKED))

    def _headers(self, joined: bool) -> Iterator[tuple[tarfile.TarInfo, int]]:
        """(header, the start of its archive in this part) of every member."""
        at = 0
        while True:
            part = _Part(self._read, self._start + at, self._start + self._part.bytes)
            end = 0
            for info in self._of_one(part, at):
                end = info[1]
                yield info[0], at
            following = self._after_end(part, end, joined)
            if not following:
                return
            at += following

    def _of_one(self, part: _Part, at: int) -> Iterator[tuple[tarfile.TarInfo, int]]:
        """(header, the end of its member) of one archive."""
        try:
            tar = tarfile.TarFile(
                fileobj=cast(IO[bytes], part), encoding="utf-8", errors="backslashreplace"
            )
            while (info := tar.next()) is not None:
                cast(Any, tar).members.clear()  # a million of them would take a gigabyte
                end = tar.offset
                if info.size < 0 or end <= info.offset:
                    raise self._damaged(at + info.offset)
                if info.offset_data + info.size > part.bytes and not info.islnk():
                    raise self._cut_off()
                yield info, end
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise self._not_a_tar(part, at, str(error)) from None

    def _after_end(self, part: _Part, end: int, joined: bool) -> int:
        """Where the next archive begins in ``part``; 0: nowhere. Raises unless this one ended."""
        part.seek(end)
        wanted = _RECORD_BYTES + 2 * BLOCK_BYTES
        tail = part.read(wanted)
        if len(tail) < BLOCK_BYTES or (len(tail) < 2 * BLOCK_BYTES and not any(tail)):
            raise self._cut_off()
        if any(tail[:BLOCK_BYTES]):
            raise self._damaged(end)
        zeros = len(tail) - len(tail.lstrip(b"\0"))
        following = zeros // BLOCK_BYTES * BLOCK_BYTES
        if zeros == len(tail) and (zeros < wanted or end + zeros == part.bytes):
            return 0
        if joined and 2 * BLOCK_BYTES <= following < len(tail) and _is_header(tail, following):
            return end + following
        if zeros == len(tail) or following < 2 * BLOCK_BYTES:
            raise ToolError(
                "archive.hole",
                f"{self.shown}: has zeros from byte {end} on where the next member should be, as "
                f"after a download that was not finished; {_REMEDY}",
            )
        raise ToolError(
            "archive.data_after_end",
            f"{self.shown}: ends at byte {end}, but more bytes follow; {_REMEDY}",
        )

    def _cut_off(self) -> ToolError:
        if not self._part.bytes:
            return ToolError("archive.empty", f"{self.shown}: is empty; {_REMEDY}")
        return ToolError(
            "archive.cut_off",
            f"{self.shown}: is cut off; {_REMEDY}",
        )

    def _damaged(self, at: int) -> ToolError:
        if not at:
            return self._not_a_tar(self._part, 0, "")
        return ToolError("archive.damaged", f"{self.shown}: is damaged at byte {at}; {_REMEDY}")

    def _not_a_tar(self, part: _Part, at: int, reason: str) -> ToolError:
        """The error for what ``tarfile`` cannot read."""
        reached = part.tell()
        part.seek(0)
        tool = _UNPACKERS.get(part.read(2)) if not at else None
        if tool is None and (reached >= part.bytes or "unexpected end" in reason):
            return self._cut_off()
        if at or reached > BLOCK_BYTES:
            return ToolError(
                "archive.damaged",
                f"{self.shown}: is damaged near byte {at + reached} ({reason}); {_REMEDY}",
            )
        if tool is None:
            return ToolError("archive.not_a_tar", f"{self.shown}: is not a tar; {_REMEDY}")
        return ToolError(
            "archive.compressed",
            f"{self.shown}: is compressed, so its members cannot be read in place; unpack it "
            f"with {tool} first (images do not get smaller by it)",
        )


def check_member_name(name: str, shown: str) -> str:
    """A member's name without ``./`` before it, if it is one that stays where it is put."""
    if name.startswith("./") or "//" in name or "/./" in name:
        rooted = "/" if name[0] == "/" else ""
        name = rooted + "/".join(part for part in name.split("/") if part not in ("", "."))
    if not name or name[0] == "/" or (".." in name and ".." in name.split("/")):
        raise ToolError(
            "archive.unsafe_name",
            f"{shown}: its member {name or '(without a name)'} would lie outside of the folder "
            f"that it is unpacked to, so the archive is not trusted; {_REMEDY}",
        )
    if len(name) > 60 and (
        len(name) > _MAX_NAME or any(len(p.encode()) > 255 for p in name.split("/"))
    ):
        raise ToolError(
            "archive.long_name", f"{shown}: the name of a member is too long for a disk; {_REMEDY}"
        )
    return name


def _is_header(data: bytes, at: int) -> bool:
    try:
        tarfile.TarInfo.frombuf(data[at : at + BLOCK_BYTES], "utf-8", "backslashreplace")
    except tarfile.TarError:
        return False
    return True


class Windows:
    """Reads pieces of a file of ``size`` bytes behind a URL with few requests.

    Headers lie as far apart as members are long. Among small members the windows that are fetched
    grow until the archive is streamed; among large ones they stay small.
    """

    def __init__(self, place: Place, size: int) -> None:
        self._place = place
        self._size = size
        self._start = 0
        self._data = b""
        self._wide = _SMALLEST_BYTES

    def read(self, length: int, offset: int) -> bytes:
        """``length`` bytes from ``offset``, fewer at the end. Raises OSError."""
        end = min(offset + length, self._size)
        ahead = offset - (self._start + len(self._data))
        if offset < self._start or end > self._start + len(self._data):
            if self._data:
                near = -len(self._data) <= ahead < self._wide
                wide = self._wide * 4 if near else self._wide // 4
                self._wide = min(max(wide, _SMALLEST_BYTES), _LARGEST_BYTES)
            upto = min(max(end, offset + self._wide), self._size)
            piece = self._place._replace(offset=offset, length=max(upto - offset, 0))
            self._start, self._data = offset, piece.read()
        at = offset - self._start
        return self._data[at : at + max(end - offset, 0)]


class _Open:
    """A file on a disk, open for reading for as long as something may read it."""

    def __init__(self, path: str) -> None:
        self._handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._handle)
        # Headers lie far apart: reading on behind each would read the whole archive.
        os.posix_fadvise(self._handle, 0, 0, os.POSIX_FADV_RANDOM)
        self.bytes = os.fstat(self._handle).st_size

    def read(self, length: int, offset: int) -> bytes:
        return os.pread(self._handle, length, offset)


def open_tar(path: Location) -> Tar:
    """A tar file, of which nothing is read yet. Raises ToolError when it cannot be opened."""
    if isinstance(path, Url):
        place = path.place_of_parts()
        size = place.stamp()[0]
        return Tar(lambda: Windows(place, size).read, place, str(path), 0, size)
    try:
        file = _Open(str(path))
    except OSError as error:
        raise unreadable(str(path), error) from None
    return Tar(lambda: file.read, Place(str(path)), str(path), 0, file.bytes)


def unreadable(shown: str, error: OSError) -> ToolError:
    """The error for a source that cannot be read."""
    return ToolError("source.unreadable", f"{shown}: cannot be read ({error.strerror})")
