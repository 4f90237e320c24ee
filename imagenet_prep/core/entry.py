"""The start of a program: file names as UTF-8, Ctrl-C also while the program is imported."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


def enter(program: str, interrupted: str, command_line: Callable[[], None]) -> None:
    """Calls ``command_line``, which imports the program and runs it.

    In a locale that is not UTF-8 (C, Latin-1) Python starts again in its UTF-8 mode, so that the
    same files have the same names everywhere.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    _open_standard_streams()
    message = use_writable_cache(Path(__file__).parents[1])
    if message is not None:
        sys.stderr.write(f"{program}: {message}\n")
    try:
        command_line()
    except KeyboardInterrupt:
        sys.stderr.write(f"{program}: {interrupted}\n")
        sys.exit(130)


def _open_standard_streams() -> None:
    """Opens /dev/null in the place of closed standard streams: a file opened later would get
    their number, and everything that is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
            if getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))


def use_writable_cache(package: Path) -> str | None:
    """Has numba keep compiled code in a temporary folder where neither ``package`` nor the user's
    cache can be written (containers) -> a message; None where nothing had to change."""
    if "NUMBA_CACHE_DIR" in os.environ:
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if _is_writable(package) or _is_writable(home):
        return None
    folder = Path(tempfile.gettempdir()) / f"imagenet-alexnet-numba-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    return f"{package} and {home} are read-only; compiled code is kept in {folder}"


def _is_writable(folder: Path) -> bool:
    """Whether a file can be made in the folder, which is made if it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
