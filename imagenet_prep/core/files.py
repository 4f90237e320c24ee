"""Atomic files: written beside their target, then renamed; JSON and digests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagenet_prep.core.errors import ToolError, UsageError

# Errors of a write, which name no file.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``target``; renames it onto ``target`` on success.

    After an exception (KeyboardInterrupt included) the temporary file is gone and
    ``target`` is as it was. What a killed process left half-written is removed first.
    Raises UsageError where no such file can be: it is a folder, or its folder a file.
    """
    if target.is_dir():
        raise UsageError("file.is_folder", f"{target}: is a folder; name a file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(
            "file.no_folder", f"{target.parent}: is not a folder or lies in a file; name a folder"
        ) from None
    _remove_abandoned(target)
    handle, temporary = _locked_temporary(target)
    try:
        os.fchmod(handle, 0o666 & ~_umask())
        yield temporary
        os.fsync(handle)
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            error.filename = str(target)
        raise
    finally:
        os.close(handle)


def _locked_temporary(target: Path) -> tuple[int, Path]:
    """(descriptor, path) of a new file beside ``target``, locked while its writer lives."""
    while True:
        try:
            handle, name = tempfile.mkstemp(".tmp", f".{target.name}.", target.parent)
        except OSError as error:
            error.filename = str(target)  # the name that the user knows
            raise
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # Another process may have taken it for abandoned before it was locked.
        if Path(name).exists():
            return handle, Path(name)
        os.close(handle)


def _remove_abandoned(target: Path) -> None:
    """Deletes temporary files of ``target`` that no living process has locked."""
    for temporary in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        try:
            handle = os.open(temporary, os.O_RDWR)
        except OSError:
            continue  # of another user, or just renamed
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink(missing_ok=True)
        except OSError:
            pass  # in use, or a file system where that cannot be told
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(target: Path, value: Any) -> None:
    """Publishes ``value`` as indented JSON with sorted keys (the same value, the same bytes)."""
    with publish(target) as temporary:
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, what: str, remedy: str, code: str = "file") -> dict[str, Any]:
    """The JSON object in ``path``; ToolError with ``remedy`` if there is none.

    Its code is ``code`` with .missing or .damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ToolError(f"{code}.missing", f"{path}: {what} is missing; {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ToolError(
            f"{code}.damaged", f"{path}: {what} cannot be read ({reason}); {remedy}"
        ) from None
    if not isinstance(value, dict):
        raise ToolError(f"{code}.damaged", f"{path}: {what} is not a JSON object; {remedy}")
    return value


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
