"""Files behind a URL: listed, asked about and read, through fsspec; the only user of it.

Every call is tried a few times with growing pauses, and every try has an end. What is left
of a fault is a ``RemoteError``, an OSError, so whoever reads a local file reads these too.
Connections belong to the process that opened them: nothing of fsspec is kept here or sent to
a worker, only URLs are. Credentials come from where fsspec and the provider's own library
look for them.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.core.redact import shown
from imagenet_prep.storage.remote_errors import RemoteError, fault_of
from imagenet_prep.storage.urls import below, split_url

T = TypeVar("T")
R = TypeVar("R")

NO_PARTS = "the server sends no parts of files"
AT_ONCE = 32
"""How many questions wait for their answers at the same time."""
_LONGEST_PAUSE_S = 20.0
_SLOWEST_BYTES_PER_S = 100_000
_LISTING_TAKES = 60  # times as long as one answer: a listing is thousands of them
_PROTOCOL = re.compile(r"([A-Za-z][\w+.-]+)(?:://|::)")
# By which a change shows, best first: of s3, gs, abfs, http; then of anything else.
_VERSIONS_TEXT = """
    ETag etag e_tag md5Hash content_md5 Content-MD5 Digest crc32c generation uid
    mtime LastModified last_modified Last-Modified updated modified modify created
"""
_VERSIONS = tuple(_VERSIONS_TEXT.split())


class Patience(NamedTuple):
    """How often a call is tried, the first pause between tries, and how long one may take.

    Environment variables set them: IMAGENET_PREP_REMOTE_TRIES, _PAUSE_S and _TIMEOUT_S.
    """

    tries: int
    pause_s: float
    timeout_s: float

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Patience:
        """Raises UsageError for a variable that is no number above 0."""
        values = []
        for name, default in (("TRIES", "5"), ("PAUSE_S", "0.5"), ("TIMEOUT_S", "60")):
            variable = f"IMAGENET_PREP_REMOTE_{name}"
            text = environment.get(variable, default)
            try:
                values.append(float(text))
            except ValueError:
                values.append(math.nan)
            if not 0 < values[-1] < math.inf:
                raise UsageError(f"{variable}: {text!r} is no number above 0; unset or correct it")
        return cls(max(1, int(values[0])), values[1], values[2])


class Status(NamedTuple):
    """What a server says of a file or folder: ``bytes`` (-1: nothing) and ``version``.

    The version is a number made of its ETag, or of its time where it has none; 0: neither.
    """

    folder: bool
    bytes: int
    version: int


class Listed(NamedTuple):
    """What a folder holds: a name, its URL, and what was said of it (None: not yet asked)."""

    name: str
    url: str
    folder: bool
    status: Status | None


def status(url: str) -> Status:
    """What the server says of a file or folder. Raises RemoteError."""
    return _status_of(_tried(url, "info"))


def listing(url: str) -> list[Listed]:
    """What lies in a folder, in no order. Raises RemoteError, and ToolError for odd names."""
    web = split_url(url).web
    # Without its slash a web server's folder is another page.
    if web:
        folder = _with_slash(url)
        page = _tried(folder, "cat_file", takes=_LISTING_TAKES)
        found = [
            {"name": link, "type": "directory" if link.endswith("/") else "file"}
            for link in _links(folder, page.decode("utf-8", "replace"))
        ]
    else:
        found = _tried(url, "ls", takes=_LISTING_TAKES, detail=True)
    return list(_entries(url, found, web))


def _links(folder: str, page: str) -> Iterator[str]:
    """Where the links of a page lead, as URLs. fsspec leaves out names that begin with http."""
    from html.parser import HTMLParser
    from urllib.parse import urljoin

    links: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(value for name, value in attrs if (tag, name) == ("a", "href") and value)

    Reader().feed(page)
    for link in dict.fromkeys(links):
        with suppress(ValueError):  # no URL
            yield urljoin(folder, link)


def read(url: str, offset: int = 0, length: int = -1, *, expected: int = -1) -> bytes:
    """``length`` bytes of a file from ``offset``; -1: all of it, ``expected`` bytes if known.

    Raises RemoteError, also for a server that sends more or less than that.
    """
    wanted = expected if length < 0 else length
    if length == 0:
        return b""
    part = {"start": offset, "end": offset + length} if length > 0 else {}
    takes = 1 + max(wanted, 0) / _SLOWEST_BYTES_PER_S / patience().timeout_s
    data: bytes = _tried(url, "cat_file", takes=takes, wanted=wanted, **part)
    return data


def sends_parts(url: str) -> bool:
    """Whether a web server sends parts of files; whatever else fsspec opens does."""
    if not split_url(url).web:
        return True
    # Not through ``read``: that would fetch all of a huge archive to find out.
    return bool(_tried(url, "first_byte"))


def patience() -> Patience:
    """That of this process."""
    return Patience.of(os.environ)


def in_parallel(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """``function`` of every item in their order, many at a time; for waiting, not computing."""
    source = iter(items)
    pending = [Call(function, item) for item in islice(source, AT_ONCE)]
    while pending:
        yield pending.pop(0).result()
        pending.extend(Call(function, item) for item in islice(source, 1))


class Call:
    """A call in a thread of its own, which ends with the process whatever it waits for."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function, arguments), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            self._value = function(*arguments)
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            self._error = error

    def result(self, timeout_s: float | None = None) -> Any:
        """What it came to; raises what it raised, and TimeoutError after ``timeout_s``."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._value


def _tried(url: str, name: str, *, takes: float = 1.0, wanted: int = -1, **options: Any) -> Any:
    """``name`` of the file system of ``url``, tried as often as is allowed."""
    tries, pause_s, timeout_s = patience()
    number = 1
    while True:
        try:
            found = _call(url, name, timeout_s * takes, options)
            if wanted >= 0 and len(found) != wanted:
                raise _odd_length(url, len(found), wanted, "end" in options)
            return found
        except ToolError:
            raise
        except Exception as error:  # noqa: BLE001 - every library has its own
            fault = fault_of(error, url)
        if not fault.passing:
            raise fault
        if number >= tries:
            reason = f"{fault.strerror}, tried {tries} times"
            raise RemoteError(fault.errno or errno.EIO, reason, url, passing=True)
        # Not all workers at once when the server is back.
        time.sleep(min(pause_s * 2 ** (number - 1), _LONGEST_PAUSE_S) * random.uniform(0.5, 1.5))
        number += 1


def _odd_length(url: str, has: int, wanted: int, part: bool) -> RemoteError:
    if not part:  # broken off unnoticed, or replaced meanwhile
        return RemoteError(errno.EIO, "other bytes come than it has", url, passing=True)
    if has > wanted:
        return RemoteError(errno.ENOTSUP, NO_PARTS, url)
    return RemoteError(errno.EIO, "the file that holds it has become shorter", url)


def _call(url: str, name: str, timeout_s: float, options: dict[str, Any]) -> Any:
    """One try, with an end."""
    system, path = _system(url, name)
    if name == "first_byte":
        return Call(_first_byte, system, path).result(timeout_s)
    if system.async_impl:
        from fsspec.asyn import sync

        return sync(system.loop, getattr(system, f"_{name}"), path, timeout=timeout_s, **options)
    # Kept per thread by fsspec: made here, so that the thread of one call does not have its own.
    return Call(lambda: getattr(system, name)(path, **options)).result(timeout_s)


def _first_byte(system: Any, path: str) -> bool:
    """Whether a byte comes alone when it is asked for."""
    with system.open(path, "rb", block_size=1, cache_type="none") as file:
        try:
            file.seek(1)
            file.read(1)
        except ValueError:  # more than that comes, or it cannot be sought in
            return False
    return True


def _system(url: str, name: str) -> tuple[Any, str]:
    """The file system of a URL, this process's own, and the path in it."""
    try:
        from fsspec.core import url_to_fs

        options = {
            protocol: _OPTIONS[protocol](name)
            for protocol in set(_PROTOCOL.findall(url)) & _OPTIONS.keys()
        }
        system, path = url_to_fs(url, **options)
    except ImportError as error:
        raise ToolError(
            f"{shown(url)}: cannot be opened ({shown(str(error))}); pip install "
            "'imagenet-alexnet[cloud]' brings what s3:// and https:// need, another protocol needs "
            "the package of fsspec's that is named here"
        ) from None
    except ValueError as error:
        known = shown(str(error))
        raise UsageError(
            f"{shown(url)}: is no URL that fsspec opens ({known}); correct it"
        ) from None
    if hasattr(system, "retries"):
        system.retries = 1  # s3fs's own, which cannot be told otherwise
    if name in ("ls", "info"):
        system.invalidate_cache()  # another run may be long ago
    return system, path


def _s3_options(name: str) -> dict[str, Any]:
    """No tries within tries, but for the thousands of pages of a listing."""
    from fsspec.config import conf

    tries = {"total_max_attempts": 3 if name == "ls" else 1, "mode": "standard"}
    given = {key: value for one in ("s3", "s3a") for key, value in conf.get(one, {}).items()}
    config = {"retries": tries, "max_pool_connections": 2 * AT_ONCE}
    # With more than one at once it asks for the size of each file before it reads it.
    return {"config_kwargs": config | dict(given.get("config_kwargs", {})), "max_concurrency": 1}


def _web_options(_name: str) -> dict[str, Any]:
    """Bytes as they are: those of a compressed answer could not be counted."""
    from fsspec.config import conf

    given = {key: value for one in ("http", "https") for key, value in conf.get(one, {}).items()}
    return {"headers": {"Accept-Encoding": "identity"} | dict(given.get("headers", {}))}


_OPTIONS: dict[str, Callable[[str], dict[str, Any]]] = {
    "s3": _s3_options,
    "s3a": _s3_options,
    "http": _web_options,
    "https": _web_options,
}


def _with_slash(url: str) -> str:
    parts = split_url(url)
    return f"{parts.lead}{parts.path.rstrip('/')}/{parts.tail}"


def _entries(url: str, found: Iterable[Any], web: bool) -> Iterator[Listed]:
    """What fsspec lists -> entries, without the folder itself."""
    from urllib.parse import unquote

    own = split_url(url).path.strip("/") if web else ""
    for info in found:
        full = str(info["name"])
        folder = info["type"] == "directory"
        if web:
            # Links of a page: those that lead elsewhere, or sort it, name nothing in it.
            path = full.partition("?")[0].partition("#")[0].partition("://")[2].rstrip("/")
            head, _, name = unquote(path).rpartition("/")
            if "?" in full or head.strip("/") != unquote(own):
                continue
        else:
            name = full.rstrip("/").rpartition("/")[2]
            if folder and full.rstrip("/") == split_url(url).path.strip("/"):
                raise ToolError(
                    f"{shown(url)}: holds names with an empty part (//), which no disk can hold; "
                    "rename them"
                )
            if full.endswith("/") and not folder:
                continue  # the mark of an empty folder, or of this one
        if folder and len(name.encode()) > 255:
            raise ToolError(f"{shown(url)}: has a folder of a name too long for a disk; rename it")
        if name:
            said = None if web else _status_of(info)
            yield Listed(name, below(url, name), folder, said)


def _status_of(info: Mapping[str, Any]) -> Status:
    size = info.get("size")
    folder = info["type"] == "directory"
    return Status(folder, size if isinstance(size, int) else -1, _version(info))


def _version(info: Mapping[str, Any]) -> int:
    """ETag or time -> a number above 0; the same for as long as they are."""
    for name in _VERSIONS:
        value = info.get(name)
        if value:
            text = value.isoformat() if isinstance(value, datetime.datetime) else str(value)
            digest = hashlib.sha256(text.strip('"').encode()).digest()
            return int.from_bytes(digest[:8]) >> 1 or 1
    return 0
