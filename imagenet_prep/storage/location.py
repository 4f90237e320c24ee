"""Where raw pictures are: a ``Path``, or a ``Url`` with the same few methods.

What the layouts ask of either is listed here by ``Url``: its name and parent, what lies below
it, whether it is a folder or a file, its text. As text a ``Url`` is always shown without its
secrets; only ``full`` has them, for the places that pictures are read from.
"""

from __future__ import annotations

import errno
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from os import DirEntry
from pathlib import Path
from typing import TextIO, TypeVar
from urllib.parse import unquote

from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.redact import shown
from imagenet_prep.storage import remote
from imagenet_prep.storage.byte_range import Place, seen
from imagenet_prep.storage.remote import Listed, Status
from imagenet_prep.storage.remote_errors import RemoteError
from imagenet_prep.storage.urls import below, is_url, name_of, parent_of, split_url

T = TypeVar("T")
R = TypeVar("R")

_LISTINGS_KEPT = 2 * remote.AT_ONCE


def _hides(one: Listed, other: Listed) -> bool:
    """Whether a file with something in it and a folder have the same name."""
    file = other if one.folder else one
    return one.folder != other.folder and file.status is not None and file.status.bytes != 0


class _Listings:
    """The last few listings of one scan: several layouts look at the same folders."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, dict[str, Listed]] = OrderedDict()

    def of(self, url: str) -> dict[str, Listed]:
        """What lies in a folder, by name. Raises RemoteError."""
        with self._lock:
            found = self._kept.get(url)
            if found is not None:
                self._kept.move_to_end(url)
                return found
        found = {}
        for entry in remote.listing(url):
            other = found.setdefault(entry.name, entry)
            if other is not entry and _hides(other, entry):
                raise ToolError(
                    f"{shown(url)}: has a file {entry.name} and a folder of that name, which no "
                    "disk can hold; rename one of them"
                )
            if entry.folder:
                found[entry.name] = entry  # an empty file beside it is its mark
        with self._lock:
            self._kept[url] = found
            if len(self._kept) > _LISTINGS_KEPT:
                self._kept.popitem(last=False)
        return found


class Url:
    """A file or folder behind a URL, and an entry of the folder that it lies in."""

    def __init__(
        self,
        full: str,
        *,
        above: Url | None = None,
        listed: Listed | None = None,
        listings: _Listings | None = None,
        listable: bool = True,
    ) -> None:
        self.full = full
        self._listable = listable
        self.name = listed.name if listed is not None else name_of(full)
        self._above = above
        self._listed = listed
        self._asked: list[Status | None] = []
        self._listings = listings if listings is not None else _Listings()

    def __str__(self) -> str:
        return shown(self.full)

    def __repr__(self) -> str:
        return f"Url({shown(self.full)!r})"

    def __truediv__(self, name: str) -> Url:
        return Url(below(self.full, name), above=self, listings=self._listings)

    @property
    def path(self) -> Url:
        """Itself, as an entry's path."""
        return self

    @property
    def suffix(self) -> str:
        """As of a path."""
        return Path(self.name).suffix if self.name else ""

    @property
    def parent(self) -> Url:
        """The folder that holds it; one that need not be listed to look for something beside."""
        return self._above or Url(parent_of(self.full), listings=self._listings, listable=False)

    @property
    def web(self) -> bool:
        """Whether it is behind http(s), where listings say nothing of the files."""
        return split_url(self.full).web

    def anew(self) -> Url:
        """The same with nothing known of it yet: what is behind a URL changes."""
        return Url(self.full)

    def resolve(self) -> Url:
        """Itself: it has no links."""
        return self

    def entries(self) -> list[Url]:
        """What lies in this folder, in no order. Raises ToolError with one sentence."""
        found = self._listing().values()
        return [Url(e.url, above=self, listed=e, listings=self._listings) for e in found]

    def _listing(self) -> dict[str, Listed]:
        try:
            return self._listings.of(self.full)
        except RemoteError as error:
            raise ToolError(f"{self}: cannot be listed {_why(error)}") from None

    def exists(self) -> bool:
        """Whether there is such a file or folder. Raises ToolError where nobody answers."""
        return self._status() is not None

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        if self._listed is not None:
            return self._listed.folder
        status = self._status()
        return status is not None and status.folder

    def is_file(self) -> bool:
        """Whether it is a file."""
        if self._listed is not None:
            return not self._listed.folder
        status = self._status()
        return status is not None and not status.folder

    def is_symlink(self) -> bool:
        """No: the server follows its own links."""
        return False

    def _status(self) -> Status | None:
        """What is known or said of it; None if it is not there."""
        if not self._asked:
            self._asked.append(self._find_out())
        return self._asked[0]

    def _find_out(self) -> Status | None:
        if self._listed is not None and self._listed.status is not None:
            return self._listed.status
        above = self._above
        if above is not None and self._listed is None and above._listable and above.is_dir():
            return above._status_of(self.name)
        if self.web and (not self.name or split_url(self.full).path.endswith("/")):
            return Status(True, -1, 0)  # listing it shows whether that is so
        if self._listed is not None and self._listed.folder:
            return Status(True, -1, 0)
        try:
            return remote.status(self.full)
        except RemoteError as error:
            if error.errno == errno.ENOENT:
                return None
            raise ToolError(f"{self}: cannot be reached {_why(error)}") from None

    def _status_of(self, name: str) -> Status | None:
        """That of what this folder has under a name."""
        listed = self._listing().get(name)
        if listed is None:
            return None
        return Url(listed.url, above=self, listed=listed, listings=self._listings)._status()

    def place(self) -> Place:
        """Where its bytes lie, with what is known of them already."""
        if self._listed is not None and self._listed.status is None:
            return Place(self.full)
        said = self._status()
        return Place(self.full, seen=seen(said))

    def place_of_parts(self) -> Place:
        """As ``place``, of a file that will be read in parts. Raises ToolError if it cannot be."""
        place = self.place()
        place = place if place.seen else place.asked()[0]
        if place.stamp()[0] < 0:
            raise ToolError(
                f"{self}: its server does not say how many bytes it has, so it cannot be read in "
                "place; copy it to a disk first"
            )
        try:
            if not remote.sends_parts(self.full):
                raise ToolError(f"{self}: {remote.NO_PARTS}; copy it to a disk first")
        except RemoteError as error:
            raise ToolError(f"{self}: cannot be read {_why(error)}") from None
        return place

    def open(self, *, encoding: str, newline: str | None = None) -> TextIO:
        """Its text, read at once. Raises OSError."""
        data = io.BytesIO(self.place().read())
        return io.TextIOWrapper(data, encoding=encoding, newline=newline)

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


def place_at(path: str | Url) -> Place:
    """The whole file of an entry's path."""
    return Place(path) if isinstance(path, str) else path.place()


def place_of_file(where: Location) -> Place:
    """The whole file at a location."""
    return where.place() if isinstance(where, Url) else Place(str(where))


def each(function: Callable[[T], Iterable[R]], items: Iterable[T], *, waiting: bool) -> Iterator[R]:
    """What ``function`` finds in each of the items, in their order.

    ``waiting`` says that it waits for a server, so that it looks at many items at a time.
    """
    if not waiting:
        for item in items:
            yield from function(item)
        return
    for found in remote.in_parallel(lambda item: list(function(item)), items):
        yield from found


def listed_ahead(entries: list[Entry]) -> Iterable[Entry]:
    """The same entries; those of a server with their own listings on the way already."""
    urls = [entry for entry in entries if isinstance(entry, Url)]
    return _listed_ahead(urls) if urls else entries


def _listed_ahead(entries: list[Url]) -> Iterator[Entry]:
    def look(entry: Url) -> Url:
        if entry.is_dir():
            entry.entries()
        return entry

    yield from remote.in_parallel(look, entries)


def _why(error: RemoteError) -> str:
    """The reason of a fault and what to do about it."""
    if error.passing:
        remedy = "check the address and the network, or try again later"
    elif error.errno == errno.EACCES:
        remedy = "check the credentials for it"
    else:
        remedy = "check the address"
    return f"({error.strerror}); {remedy}"
