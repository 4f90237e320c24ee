"""How a program is entered: Ctrl-C is heard while its command line is still being imported."""

from __future__ import annotations

import sys
from collections.abc import Callable


def enter(program: str, farewell: str, command_line: Callable[[], None]) -> None:
    """Calls ``command_line``, which imports the program, a moment's work, and runs it."""
    try:
        command_line()
    except KeyboardInterrupt:
        sys.stderr.write(f"{program}: {farewell}\n")
        sys.exit(130)
