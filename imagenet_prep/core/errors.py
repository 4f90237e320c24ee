"""Errors that end a command, and the progress callback."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)``; ``total`` is 0 while it is unknown."""


def quiet(what: str, done: int, total: int) -> None:
    """The progress callback that shows nothing."""


class ToolError(Exception):
    """A user's mistake or a fault of their data: a code, and one message with the remedy.

    ``code`` is stable and documented (docs/cli.md), such as ``beton.truncated``. The command
    line prints the message and ends with ``status`` (1: the data or the run failed, 2: wrong
    usage).
    """

    status = 1

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message

    def __str__(self) -> str:
        return self.message


class UsageError(ToolError):
    """Wrong usage: an option or a path that cannot be what was meant."""

    status = 2
