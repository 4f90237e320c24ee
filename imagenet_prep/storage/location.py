"""Where raw images are: a ``Path``, or a ``Url`` with the same few methods.

As text a ``Url`` is always shown without its secrets; only ``full`` has them, for the places
that images are read from.
"""

from __future__ import annotations

import errno
import functools
import io
from collections.abc import Callable, Iterable, Iterator
from os import DirEntry
from pathlib import Path, PurePosixPath
from typing import TextIO, TypeVar
from urllib.parse import unquote

from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.redact import shown
from imagenet_prep.core.threads import map_in_threads
from imagenet_prep.storage import remote
from imagenet_prep.storage.byte_range import Place, seen
from imagenet_prep.storage.remote import AT_ONCE, Listed, Status
from imagenet_prep.storage.remote_errors import RemoteError
from imagenet_prep.storage.urls import below, is_url, name_of, parent_of, split_url

T = TypeVar("T")
R = TypeVar("R")


@functools.lru_cache(maxsize=2 * AT_ONCE)
def _listing(url: str, _scan: object) -> dict[str, Listed]:
    """What lies in a folder, by name, asked once in a scan. Raises RemoteError."""
    found: dict[str, Listed] = {}
    for entry in remote.listing(url):
        other = found.setdefault(entry.name, entry)
        file = other if entry.folder else entry
        if other.folder != entry.folder and file.status is not None and file.status.bytes != 0:
            raise ToolError(
                "remote.file_and_folder",
                f"{shown(url)}: has a file {entry.name} and a folder of that name, which no "
                "disk can hold; rename one of them",
            )
        if entry.folder:
            found[entry.name] = entry  # an empty file beside it is its mark
    return found


class Url:
    """A file or folder behind a URL, and an entry of the folder that it lies in.

    ``above`` is that folder, ``listed`` what it reports of this where it was listed,
    ``scan`` any object that is the same for all of one scan.
    """

    def __init__(
        self,
        full: str,
        above: Url | None = None,
        listed: Listed | None = None,
        scan: object = None,
    ) -> None:
        self.full = full
        self.name = listed.name if listed is not None else name_of(full)
        self._above, self._listed = above, listed
        self._scan = object() if scan is None else scan
        self._listable = True

    def __str__(self) -> str:
        return shown(self.full)

    def __repr__(self) -> str:
        return f"Url({shown(self.full)!r})"

    def __truediv__(self, name: str) -> Url:
        return Url(below(self.full, name), self, None, self._scan)

    @property
    def path(self) -> Url:
        """Itself, as an entry's path."""
        return self

    @property
    def suffix(self) -> str:
        """As of a path."""
        return PurePosixPath(self.name).suffix if self.name else ""

    @property
    def parent(self) -> Url:
        """The folder that holds it."""
        if self._above is None:
            self._above = Url(parent_of(self.full), scan=self._scan)
            self._above._listable = False
        return self._above

    @property
    def web(self) -> bool:
        """Whether it is behind http(s), where listings report nothing of the files."""
        return split_url(self.full).web

    @property
    def waits(self) -> bool:
        """Whether a server is asked for what is in it."""
        return True

    def anew(self) -> Url:
        """The same with nothing known of it yet: what is behind a URL changes."""
        return Url(self.full)

    def resolve(self) -> Url:
        """Itself: it has no links."""
        return self

    def entries(self) -> list[Url]:
        """What lies in this folder, in no order. Raises ToolError."""
        return [Url(e.url, self, e, self._scan) for e in self._entries().values()]

    def _entries(self) -> dict[str, Listed]:
        try:
            return _listing(self.full, self._scan)
        except RemoteError as error:
            raise ToolError(
                "remote.unreadable", f"{self}: cannot be listed {_why(error)}"
            ) from None

    def exists(self) -> bool:
        """Whether there is such a file or folder. Raises ToolError where nobody answers."""
        return self._status is not None

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        known = self._listed or self._status
        return known is not None and known.folder

    def is_file(self) -> bool:
        """Whether it is a file."""
        known = self._listed or self._status
        return known is not None and not known.folder

    def is_symlink(self) -> bool:
        """No: the server follows its own links."""
        return False

    @functools.cached_property
    def _status(self) -> Status | None:
        """What is known or reported of it; None if it is not there."""
        listed, above = self._listed, self._above
        if listed is not None and (listed.status is not None or listed.folder):
            return listed.status or Status(True, -1, 0)
        if listed is None and above is not None and above._listable and above.is_dir():
            entry = above._entries().get(self.name)
            return entry and Url(entry.url, above, entry, self._scan)._status
        if self.web and (not self.name or split_url(self.full).path.endswith("/")):
            return Status(True, -1, 0)  # listing it shows whether that is so
        try:
            return remote.status(self.full)
        except RemoteError as error:
            if error.errno == errno.ENOENT:
                return None
            raise ToolError(
                "remote.unreadable", f"{self}: cannot be reached {_why(error)}"
            ) from None

    def place(self) -> Place:
        """Where its bytes lie, with what is known of them already."""
        if self._listed is not None and self._listed.status is None:
            return Place(self.full)
        return Place(self.full, seen=seen(self._status))

    def place_of_parts(self) -> Place:
        """As ``place``, of a file that will be read in parts. Raises ToolError if it cannot be."""
        place = self.place()
        place = place if place.seen else place.asked()[0]
        reason = ""
        if place.stamp()[0] < 0:
            reason = "its server does not report how many bytes it has"
        try:
            if not reason and not remote.sends_parts(self.full):
                reason = "the server sends no parts of files"
        except RemoteError as error:
            raise ToolError("remote.unreadable", f"{self}: cannot be read {_why(error)}") from None
        if reason:
            raise ToolError("remote.no_parts", f"{self}: {reason}; copy it to a disk first")
        return place

    def open(self, *, encoding: str, newline: str | None = None) -> TextIO:
        """Its text, read at once. Raises OSError."""
        return io.TextIOWrapper(io.BytesIO(self.place().read()), encoding, newline=newline)

    def read_text(self, encoding: str) -> str:
        """Its text. Raises OSError and UnicodeDecodeError."""
        with self.open(encoding=encoding) as file:
            return file.read()


Location = Path | Url
Entry = DirEntry[str] | Url


def location_of(text: str) -> Location:
    """What a user calls a source -> where that is. A ``file://`` URL is a path."""
    if text.lower().startswith("file://"):
        return Path(unquote(text[len("file://") :]))
    return Url(text) if is_url(text) else Path(text)


def location_in(entry: Entry) -> Location:
    """An entry of a folder -> where it is."""
    return entry if isinstance(entry, Url) else Path(entry.path)


def place_at(where: str | Location) -> Place:
    """The whole file at a location, or at an entry's path."""
    return where.place() if isinstance(where, Url) else Place(str(where))


def each(
    function: Callable[[T], Iterable[R]], items: Iterable[T], src: str | Location
) -> Iterator[R]:
    """What ``function`` finds in each of the items of ``src``, in their order.

    Of a source behind a URL it looks at many at a time, since each waits for a server.
    """
    if isinstance(src, Url) and src.waits:
        for found in map_in_threads(lambda x: list(function(x)), items, jobs=AT_ONCE, ahead=1):
            yield from found
    else:
        for item in items:
            yield from function(item)


def _why(error: RemoteError) -> str:
    """The reason of a fault and what to do about it."""
    remedy = "check the credentials for it" if error.errno == errno.EACCES else "check the address"
    if error.passing:
        remedy = "check the address and the network, or try again later"
    return f"({error.strerror}); {remedy}"
