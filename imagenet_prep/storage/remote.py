"""Files behind a URL: listed, asked about and read through fsspec; the only user of it.

Every call is tried a few times with growing pauses (fsspec itself retries nothing for web
servers), and every try has a time limit. What is left of a fault is a ``RemoteError``, an
OSError, so whoever reads a local file reads these too. Only URLs are sent to workers;
credentials come from where fsspec and the provider's own library look for them.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.core.redact import shown
from imagenet_prep.storage.remote_errors import RemoteError, fault_of
from imagenet_prep.storage.urls import below, split_url

AT_ONCE = 32
"""How many questions wait for their answers at the same time."""
_LONGEST_PAUSE_S = 20.0
_SLOWEST_BYTES_PER_S = 100_000
_LISTING_TAKES = 60  # times as long as one answer: a listing is thousands of them
_SETTINGS = {"TRIES": "5", "PAUSE_S": "0.5", "TIMEOUT_S": "60"}
# By which a change shows, best first: of s3, gs, abfs, http; then of anything else.
_VERSIONS_TEXT = """
    ETag etag e_tag md5Hash content_md5 Content-MD5 Digest crc32c generation uid
    mtime LastModified last_modified Last-Modified updated modified modify created
"""
_VERSIONS = tuple(_VERSIONS_TEXT.split())


class Status(NamedTuple):
    """What a server reports of a file or folder: ``bytes`` (-1: unknown) and ``version``.

    The version is a number made of its ETag, or of its time where it has none; 0: neither.
    """

    folder: bool
    bytes: int
    version: int


class Listed(NamedTuple):
    """What a folder holds: a name, its URL, and what was reported of it (None: not asked)."""

    name: str
    url: str
    folder: bool
    status: Status | None


def status(url: str) -> Status:
    """What the server reports of a file or folder. Raises RemoteError."""
    return _status_of(_tried(url, "info"))


def listing(url: str) -> list[Listed]:
    """What lies in a folder, in no order. Raises RemoteError, and ToolError for odd names."""
    if not split_url(url).web:
        return list(_entries(url, _tried(url, "ls", takes=_LISTING_TAKES, detail=True)))
    parts = split_url(url)  # without its slash a web server's folder is another page
    folder = f"{parts.lead}{parts.path.rstrip('/')}/{parts.tail}"
    page = _tried(folder, "cat_file", takes=_LISTING_TAKES)
    return list(_linked(folder, page.decode("utf-8", "replace")))


def read(url: str, offset: int = 0, length: int = -1, *, expected: int = -1) -> bytes:
    """``length`` bytes of a file from ``offset``; -1: all of it, ``expected`` bytes if known.

    Raises RemoteError, also for a server that sends more or less than that.
    """
    if length == 0:
        return b""
    wanted = expected if length < 0 else length
    part = {"start": offset, "end": offset + length} if length > 0 else {}
    takes = 1 + max(wanted, 0) / _SLOWEST_BYTES_PER_S / _setting("TIMEOUT_S")
    data: bytes = _tried(url, "cat_file", takes=takes, wanted=wanted, **part)
    return data


def sends_parts(url: str) -> bool:
    """Whether a web server sends parts of files; whatever else fsspec opens does."""
    # Not through ``read``: that would fetch all of a huge archive to find out.
    return not split_url(url).web or bool(_tried(url, "first_byte"))


def _setting(name: str) -> float:
    """IMAGENET_PREP_REMOTE_TRIES, _PAUSE_S or _TIMEOUT_S. Raises UsageError unless above 0."""
    variable = f"IMAGENET_PREP_REMOTE_{name}"
    text = os.environ.get(variable, _SETTINGS[name])
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise UsageError(
        "remote.setting", f"{variable}: {text!r} is not a number above 0; unset or correct it"
    )


def _tried(url: str, name: str, *, takes: float = 1.0, wanted: int = -1, **options: Any) -> Any:
    """``name`` of the file system of ``url``, tried as often as is allowed."""
    tries, pause_s, timeout_s = map(_setting, _SETTINGS)
    number = 0
    while True:
        number += 1
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
            reason = f"{fault.strerror}, tried {tries:.0f} times"
            raise RemoteError(fault.errno or errno.EIO, reason, url, passing=True)
        # Not all workers at once when the server is back.
        time.sleep(min(pause_s * 2 ** (number - 1), _LONGEST_PAUSE_S) * random.uniform(0.5, 1.5))


def _odd_length(url: str, has: int, wanted: int, part: bool) -> RemoteError:
    if not part:  # broken off unnoticed, or replaced meanwhile
        return RemoteError(errno.EIO, "other bytes come than it has", url, passing=True)
    if has > wanted:
        return RemoteError(errno.ENOTSUP, "the server sends no parts of files", url)
    return RemoteError(errno.EIO, "the file that holds it has become shorter", url)


def _call(url: str, name: str, timeout_s: float, options: dict[str, Any]) -> Any:
    """One try."""
    system, path = _system(url, name)
    if name == "first_byte":
        with system.open(path, "rb", block_size=1, cache_type="none") as file:
            try:
                file.seek(1)
                file.read(1)
            except ValueError:  # more than that comes, or it cannot be sought in
                return False
        return True
    if not system.async_impl:
        return getattr(system, name)(path, **options)
    from fsspec.asyn import sync

    return sync(system.loop, getattr(system, f"_{name}"), path, timeout=timeout_s, **options)


def _system(url: str, name: str) -> tuple[Any, str]:
    """The file system of a URL, this process's own, and the path in it."""
    try:
        from fsspec.core import url_to_fs

        protocols = set(re.findall(r"([A-Za-z][\w+.-]+)(?:://|::)", url))
        system, path = url_to_fs(url, **{p: _OPTIONS[p](name) for p in protocols & _OPTIONS.keys()})
    except ImportError as error:
        raise ToolError(
            "remote.package_missing",
            f"{shown(url)}: cannot be opened ({shown(str(error))}); pip install "
            "'imagenet-alexnet[cloud]' brings what s3:// and https:// need, another protocol needs "
            "the package of fsspec's that is named here",
        ) from None
    except ValueError as error:
        raise UsageError(
            "remote.protocol",
            f"{shown(url)}: is no URL that fsspec opens ({shown(str(error))}); correct it",
        ) from None
    if hasattr(system, "retries"):
        system.retries = 1  # s3fs's own, within ours
    if name in ("ls", "info"):
        system.invalidate_cache()  # another run may be long ago
    return system, path


def _s3_options(name: str) -> dict[str, Any]:
    """No tries within tries, but for the thousands of pages of a listing."""
    from fsspec.config import conf

    given = {key: value for one in ("s3", "s3a") for key, value in conf.get(one, {}).items()}
    retries = {"total_max_attempts": 3 if name == "ls" else 1, "mode": "standard"}
    config = {"retries": retries, "max_pool_connections": 2 * AT_ONCE}
    # With more than one at once it asks for the size of each file before it reads it.
    return {"config_kwargs": config | dict(given.get("config_kwargs", {})), "max_concurrency": 1}


def _web_options(_name: str) -> dict[str, Any]:
    """Bytes as they are: those of a compressed answer could not be counted."""
    from fsspec.config import conf

    given = {key: value for one in ("http", "https") for key, value in conf.get(one, {}).items()}
    return {"headers": {"Accept-Encoding": "identity"} | dict(given.get("headers", {}))}


_OPTIONS: dict[str, Callable[[str], dict[str, Any]]] = {
    **dict.fromkeys(("s3", "s3a"), _s3_options),
    **dict.fromkeys(("http", "https"), _web_options),
}


def _linked(folder: str, page: str) -> Iterator[Listed]:
    """What the links of a page name in its folder. Those that lead elsewhere, or sort, do not."""
    from html.parser import HTMLParser
    from urllib.parse import unquote, urljoin

    links: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(value for name, value in attrs if (tag, name) == ("a", "href") and value)

    Reader().feed(page)
    own = unquote(split_url(folder).path).strip("/")
    for link in dict.fromkeys(links):
        with suppress(ValueError):  # no URL
            full = urljoin(folder, link)
            path = unquote(full.partition("#")[0].partition("://")[2])
            head, _, name = path.rstrip("/").rpartition("/")
            if "?" not in full and head.strip("/") == own and name:
                yield Listed(name, below(folder, name), path.endswith("/"), None)


def _entries(url: str, found: Iterable[Mapping[str, Any]]) -> Iterator[Listed]:
    """What fsspec lists -> entries, without the folder itself."""
    for info in found:
        full, folder = str(info["name"]), info["type"] == "directory"
        name = full.rstrip("/").rpartition("/")[2]
        if folder and full.rstrip("/") == split_url(url).path.strip("/"):
            raise ToolError(
                "remote.empty_name",
                f"{shown(url)}: holds names with an empty part (//), which no disk can hold; "
                "rename them",
            )
        if full.endswith("/") and not folder:
            continue  # the mark of an empty folder, or of this one
        if folder and len(name.encode()) > 255:
            raise ToolError(
                "remote.long_name", f"{shown(url)}: has a folder of a name too long for a disk"
            )
        if name:
            yield Listed(name, below(url, name), folder, _status_of(info))


def _status_of(info: Mapping[str, Any]) -> Status:
    size = info.get("size")
    known = size if isinstance(size, int) else -1
    value = next((info[name] for name in _VERSIONS if info.get(name)), None)
    if value is None:
        return Status(info["type"] == "directory", known, 0)
    text = value.isoformat() if isinstance(value, datetime.datetime) else str(value)
    digest = hashlib.sha256(text.strip('"').encode()).digest()
    # ETag or time -> a number above 0; the same for as long as they are.
    return Status(info["type"] == "directory", known, int.from_bytes(digest[:8]) >> 1 or 1)
