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

_NOT_NOW = frozenset({408, 425, 429})  # and all of 5xx but those:
_NEVER = frozenset({501, 505})
_LONGEST_REASON = 200
_ADDRESS = re.compile(r"\S*://\S*")
_USER_AND_PASSWORD = re.compile(r"[^\s/:@\"']+:[^\s/@\"']+@")
_FINAL = {
    errno.EACCES: "access denied",
    errno.EPERM: "access denied",
    errno.ENOENT: os.strerror(errno.ENOENT),
}
_NO_CREDENTIALS_TEXT = """
    NoCredentialsError PartialCredentialsError CredentialRetrievalError ProfileNotFound
    TokenRetrievalError SSOTokenLoadError UnauthorizedSSOTokenError GoogleAuthError RefreshError
    DefaultCredentialsError
"""
_NO_CREDENTIALS = frozenset(_NO_CREDENTIALS_TEXT.split())
_PASSING_TEXT = """
    ClientConnectionError ServerDisconnectedError ClientPayloadError ClientOSError
    EndpointConnectionError ConnectionClosedError HTTPClientError ProxyConnectionError
    IncompleteReadError IncompleteRead ResponseStreamingError ResponseParserError
    FlexibleChecksumError TransferEncodingError ContentLengthError
"""
_PASSING = frozenset(_PASSING_TEXT.split())
# What the operating system says of this process or machine, not of the server.
_OWN = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC})


class RemoteError(OSError):
    """What is left of a fault: ``strerror`` is the reason, ``filename`` the URL as it is shown.

    ``passing`` says whether another try may help.
    """

    passing: bool

    def __init__(self, number: int, reason: str, url: str, *, passing: bool = False) -> None:
        super().__init__(number, reason, shown(url))
        self.passing = passing

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (self.errno, self.strerror, self.filename, self.passing)


def _again(number: int, reason: str, url: str, passing: bool) -> RemoteError:
    return RemoteError(number, reason, url, passing=passing)


def fault_of(error: BaseException, url: str) -> RemoteError:
    """An exception of fsspec or of what it uses -> what to say and whether to try again."""
    if isinstance(error, RemoteError):
        return error
    chain = list(_causes(error))
    own = next((e for e in chain if isinstance(e, OSError) and e.errno in _OWN), None)
    if own is not None:
        number = own.errno or errno.EIO
        return RemoteError(number, os.strerror(number), url)
    status = next(filter(None, map(_status, chain)), None)
    if status is not None:
        return _of_status(status, url)
    for cause in chain:
        found = _of_kind(cause, url)
        if found is not None:
            return found
    return RemoteError(errno.EIO, _told(error), url)


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


def _of_status(status: int, url: str) -> RemoteError:
    name = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    said = f"{status} {name}".strip()
    if status in (404, 410):
        return RemoteError(errno.ENOENT, _FINAL[errno.ENOENT], url)
    if status in (401, 403):
        return RemoteError(errno.EACCES, f"{_FINAL[errno.EACCES]} ({said})", url)
    passing = status in _NOT_NOW or (status >= 500 and status not in _NEVER)
    return RemoteError(errno.EIO, f"the server answers {said}", url, passing=passing)


def _of_kind(error: BaseException, url: str) -> RemoteError | None:
    """What the type of an exception says, if anything."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & _NO_CREDENTIALS:
        return RemoteError(errno.EACCES, f"no credentials ({_told(error)})", url)
    if isinstance(error, FileNotFoundError):
        return RemoteError(errno.ENOENT, _FINAL[errno.ENOENT], url)
    if isinstance(error, PermissionError):
        return RemoteError(errno.EACCES, _FINAL[errno.EACCES], url)
    if isinstance(error, NotADirectoryError | IsADirectoryError):
        return RemoteError(errno.ENOENT, os.strerror(error.errno or errno.ENOTDIR), url)
    if isinstance(error, TimeoutError) or any("Timeout" in kind for kind in kinds):
        return RemoteError(errno.ETIMEDOUT, "no answer in time", url, passing=True)
    if isinstance(error, ConnectionRefusedError):
        return RemoteError(errno.ECONNREFUSED, "the connection is refused", url, passing=True)
    if any("DNS" in kind for kind in kinds) or "gaierror" in kinds:
        return RemoteError(errno.EIO, "the server's name is not known", url, passing=True)
    if isinstance(error, ConnectionError | EOFError) or kinds & _PASSING:
        return RemoteError(errno.ECONNRESET, "the connection broke off", url, passing=True)
    if isinstance(error, OSError) and error.errno == errno.EBUSY:
        return RemoteError(errno.EIO, "the server is busy", url, passing=True)
    return None


def _told(error: BaseException) -> str:
    """The first line of an exception's text, without secrets; its type where it has none."""
    line = next(iter(str(error).strip().splitlines()), "")
    line = _USER_AND_PASSWORD.sub("***@", line)  # of what need not be a whole URL
    return (_ADDRESS.sub("...", shown(line)) or type(error).__name__)[:_LONGEST_REASON]
