"""The folder of a run: a free name, a lock while its process lives, nothing deleted unasked."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import socket
from pathlib import Path
from typing import Self

from imagenet_prep.core.errors import ToolError, UsageError

LOCK_NAME = "run.lock"
CONTENTS = ("config.json", "last.pt", "best.pt", "metrics.jsonl")
"""Files by which a folder is known to hold a run."""


class RunFolder:
    """``path`` as the folder of this process, until it ends or ``close`` is called.

    The lock is the system's (flock), so that it ends with the process, however that dies; the
    file names host and process.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """ToolError when another process trains in ``path``, UsageError when it is a file."""
        self.path = path
        self._handle: int | None = None
        if create:
            self._lock()

    @classmethod
    def choose(cls, base: Path, out: Path | None, *, resume: bool, overwrite: bool) -> Self:
        """The folder of a run: ``out``, or without it ``base`` or the first free ``base-N``.

        With ``resume`` there has to be a run in it; otherwise one may only be there with
        ``overwrite``, which needs ``out``. UsageError where that does not hold.
        """
        if resume and overwrite:
            raise UsageError(
                "run.resume_and_overwrite", "--resume and --overwrite exclude each other"
            )
        if resume:
            path = out or base
            if not any((path / name).exists() for name in CONTENTS):
                raise UsageError("run.none", f"{path}: no run to resume; name its folder in --out")
            return cls(path)
        if out is None:
            if overwrite:
                raise UsageError("run.overwrite_without_out", "--overwrite needs --out FOLDER")
            return cls._free(base)
        found = cls(out)
        there = next((name for name in CONTENTS if (out / name).exists()), None)
        if there is not None and not overwrite:
            found.close()
            raise UsageError(
                "run.exists",
                f"{out}: already holds a run ({there}); continue it with --resume, replace it "
                "with --overwrite, or give another --out",
            )
        return found

    @classmethod
    def _free(cls, base: Path) -> Self:
        """The first of base, base-2, base-3 ... that does not exist, made by this process."""
        for number in itertools.count(1):
            path = base if number == 1 else base.with_name(f"{base.name}-{number}")
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return cls(path)
        raise AssertionError("itertools.count has no end")

    def _lock(self) -> None:
        path = self.path
        if path.exists() and not path.is_dir():
            raise UsageError("run.not_a_folder", f"{path}: is a file, not a folder")
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(handle)
                raise ToolError(
                    "run.locked",
                    f"{path}: {owner} is training in this folder; wait for it, or give another "
                    "--out",
                ) from None
            # A file system without locks: go on, as if alone.
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._handle = handle

    def close(self) -> None:
        """Releases the lock; removes the folder if nothing was written into it."""
        if self._handle is None:
            return
        if [entry.name for entry in self.path.iterdir()] == [LOCK_NAME]:
            (self.path / LOCK_NAME).unlink()
            self.path.rmdir()
        os.close(self._handle)
        self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
