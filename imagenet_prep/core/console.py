"""What both command lines share: messages, progress bars, exit statuses, errors as JSON."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.redact import shown

INTERRUPTED, TERMINATED = 130, 143
_LINE_EVERY_S = 15.0


def say(line: str) -> None:
    """A line on stderr."""
    click.echo(one_line(line), err=True)


def one_line(text: str) -> str:
    """``text`` with its control characters as escapes, since file names may hold any."""
    return "".join(
        sign if sign.isprintable() or sign >= "\xa0" else repr(sign)[1:-1] for sign in text
    )


class Bar:
    """Progress on stderr until its block ends: a bar on a terminal, else a line every 15 s."""

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __init__(self) -> None:
        self._what = ""
        self._next_line = time.monotonic() + _LINE_EVERY_S
        self._bar: Any = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """The ``Progress`` callback; a new ``what`` ends the bar before it."""
        if what != self._what:
            self.close()
            self._what = what
            if sys.stderr.isatty():
                from tqdm import tqdm

                unit = " pages" if what == "verify" else " images"
                self._bar = tqdm(
                    desc=what, initial=done, total=total or None, unit=unit, leave=False
                )
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_EVERY_S
            say(f"{what}: {done} of {total}")

    def close(self) -> None:
        """Removes the bar from the terminal."""
        if self._bar is not None:
            self._bar.close()
        self._what, self._bar = "", None


def run_command(
    command: click.Group, program: str, arguments: Sequence[str] | None, interrupted: str
) -> int:
    """Command line arguments (None: the process's) -> exit status.

    An error becomes one message on stderr; with ``--json`` also ``{"error": {"code", "message"}}``
    on stdout. ``interrupted`` is the message after Ctrl-C.
    """
    _print_any_name()
    as_json = "--json" in (sys.argv[1:] if arguments is None else arguments)
    try:
        status = command.main(arguments, prog_name=program, standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except BrokenPipeError:  # the reader of stdout has gone
        _flush_nowhere()
        return 1
    except (Exception, KeyboardInterrupt) as error:
        found = _failure(error, interrupted)
        if found is None:
            raise
        code, message, status = found
        if isinstance(error, click.ClickException):
            error.message = shown(error.message)  # type: ignore[misc]  # click calls it final
            error.show()
        else:
            say(f"{program}: {message}")
        try:
            if as_json:
                click.echo(json.dumps({"error": {"code": code, "message": message}}))
            sys.stdout.flush()
        except OSError:  # a full disk
            _flush_nowhere()
        return status


def _flush_nowhere() -> None:
    """What is still buffered for stdout must not fail at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failure(error: BaseException, interrupted: str) -> tuple[str, str, int] | None:
    """An exception -> (code, message, exit status); None for a mistake of the program."""
    if isinstance(error, click.ClickException):
        # It may quote any argument, with whatever secret is in it.
        return "usage", shown(error.format_message()), error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return "interrupted", interrupted, INTERRUPTED
    if isinstance(error, ToolError):
        return error.code, str(error), error.status
    if isinstance(error, ImportError) and (too_many := os.strerror(errno.EMFILE)) in str(error):
        error = OSError(errno.EMFILE, too_many, error.path)  # modules are loaded when needed
    if isinstance(error, OSError):
        code = errno.errorcode.get(error.errno or 0, "unknown").lower()
        place = f"{error.filename}: " if error.filename else ""
        remedy = "check the disk's space and permissions, then run again"
        if error.errno == errno.EMFILE:
            remedy = "allow more of them (ulimit -n), then run again"
        return f"os.{code}", f"{place}{error.strerror or error}; {remedy}", 1
    return None


def _print_any_name() -> None:
    """File names may hold any bytes, and what the terminal cannot show is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
