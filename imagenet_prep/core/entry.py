"""The start of a program: Ctrl-C is handled while the command line is still being imported."""

from __future__ import annotations

import sys
from collections.abc import Callable


def enter(program: str, interrupted: str, command_line: Callable[[], None]) -> None:
    """Calls ``command_line``, which imports the program and runs it."""
    try:
        command_line()
    except KeyboardInterrupt:
        sys.stderr.write(f"{program}: {interrupted}\n")
        sys.exit(130)
