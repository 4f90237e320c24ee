"""What goes wrong between here and a server -> whether to try again, and a reason that is safe.

Pure. Libraries wrap one another's exceptions, so the whole chain of causes is looked at: the
status that the server gave decides where there is one. No reason has a URL or a secret in it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from http import HTTPStatus

from imagenet_prep.core.redact import shown

_LATER = frozenset({408, 425, 429})  # and all of 5xx but 501 and 505
_LONGEST_REASON = 200
_ADDRESS = re.compile(r"\S*://\S*")
_USER_AND_PASSWORD = re.compile(r"[^\s/:@\"']+:[^\s/@\"']+@")
_NO_CREDENTIALS = re.compile(r".*(Credential|Profile|Token|Auth|Refresh).*Error|ProfileNotFound")
# What the operating system reports of this process or machine, not of the server.
_OWN = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC})
_NETWORK_TEXT = """
    ClientError ClientConnectionError ClientPayloadError EndpointConnectionError HTTPClientError
    ConnectionClosedError IncompleteReadError IncompleteRead ResponseStreamingError
    ResponseParserError FlexibleChecksumError TransferEncodingError ContentLengthError
"""
_NETWORK = frozenset(_NETWORK_TEXT.split())


class RemoteError(OSError):
    """What is left of a fault: ``strerror`` is the reason, ``filename`` the URL as it is shown.

    ``passing``: another try may help.
    """

    def __init__(self, number: int, reason: str, url: str, passing: bool = False) -> None:
        super().__init__(number, reason, shown(url))
        self.passing = passing

    def __reduce__(self) -> tuple[object, ...]:
        return RemoteError, (self.errno, self.strerror, self.filename, self.passing)


def fault_of(error: BaseException, url: str) -> RemoteError:
    """An exception of fsspec or of what it uses -> the reason and whether to try again."""
    if isinstance(error, RemoteError):
        return error
    chain = list(_causes(error))
    number = next((e.errno for e in chain if isinstance(e, OSError) and e.errno in _OWN), None)
    if number:
        return RemoteError(number, os.strerror(number), url)
    status = next(filter(None, map(_status, chain)), None)
    if status is not None:
        return _answered(status, url)
    return next(filter(None, (_of_kind(cause, url) for cause in chain)), None) or RemoteError(
        errno.EIO, _text(error), url
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those it came from, innermost first."""
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__
    return reversed(chain)


def _status(error: BaseException) -> int | None:
    """The HTTP status that an exception carries, of aiohttp, botocore, gcsfs or azure."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        found = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
    else:
        found = [error.__dict__.get(name) for name in ("status", "status_code", "code")]
    return next((code for code in found if isinstance(code, int) and 400 <= code < 600), None)


def _answered(status: int, url: str) -> RemoteError:
    name = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    text = f"{status} {name}".strip()
    if status in (404, 410):
        return RemoteError(errno.ENOENT, os.strerror(errno.ENOENT), url)
    if status in (401, 403):
        return RemoteError(errno.EACCES, f"access denied ({text})", url)
    passing = status in _LATER or (status >= 500 and status not in (501, 505))
    return RemoteError(errno.EIO, f"the server answers {text}", url, passing)


def _of_kind(error: BaseException, url: str) -> RemoteError | None:
    """What the type of an exception tells, if anything."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if any(map(_NO_CREDENTIALS.fullmatch, kinds)):
        return RemoteError(errno.EACCES, f"no credentials ({_text(error)})", url)
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return RemoteError(errno.ENOENT, os.strerror(errno.ENOENT), url)
    if isinstance(error, PermissionError):
        return RemoteError(errno.EACCES, "access denied", url)
    if any("Timeout" in kind for kind in kinds):
        return RemoteError(errno.ETIMEDOUT, "no answer in time", url, True)
    if isinstance(error, ConnectionRefusedError):
        return RemoteError(errno.ECONNREFUSED, "the connection is refused", url, True)
    if any("DNS" in kind for kind in kinds) or "gaierror" in kinds:
        return RemoteError(errno.EIO, "the server's name is not known", url, True)
    if isinstance(error, ConnectionError | EOFError) or kinds & _NETWORK:
        return RemoteError(errno.ECONNRESET, "the connection broke off", url, True)
    if isinstance(error, OSError) and error.errno == errno.EBUSY:
        return RemoteError(errno.EIO, "the server is busy", url, True)
    return None


def _text(error: BaseException) -> str:
    """The first line of an exception's text, without secrets; its type where it has none."""
    line = next(iter(str(error).strip().splitlines()), "")
    line = _USER_AND_PASSWORD.sub("***@", line)  # of what need not be a whole URL
    return (_ADDRESS.sub("...", shown(line)) or type(error).__name__)[:_LONGEST_REASON]
