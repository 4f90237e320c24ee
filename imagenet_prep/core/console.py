"""What both command lines share of the doorway: progress bars, sentences, exit statuses."""

from __future__ import annotations

import io
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
    """``text`` with its control characters written as Python does: names may have any."""
    return "".join(
        sign if sign.isprintable() or sign >= "\xa0" else repr(sign)[1:-1] for sign in text
    )


class Bar:
    """Shows progress on stderr: a bar on a terminal, elsewhere a line now and then."""

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

    What goes wrong becomes one sentence on stderr; ``interrupted`` is the one after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be any bytes
    try:
        status = command.main(arguments, prog_name=program, standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        # It may quote any argument, with whatever secret is in it. click calls it final.
        error.message = shown(error.message)  # type: ignore[misc]
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say(f"{program}: {interrupted}")
        return INTERRUPTED
    except ToolError as error:
        say(f"{program}: {error}")
        return error.status
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        say(f"{program}: {place}{error.strerror or error}; make room or allow it, then run again")
        return 1
    return status if isinstance(status, int) else 0
