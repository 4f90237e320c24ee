"""The start of a program: Ctrl-C during the import of the command line, closed streams."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def enter(program: str, interrupted: str, command_line: Callable[[], None]) -> None:
    """Calls ``command_line``, which imports the program and runs it."""
    _open_standard_streams()
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
