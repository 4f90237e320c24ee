"""The door of ``trainer`` and ``python -m trainer``: hears Ctrl-C from the start."""

from __future__ import annotations

import sys

from trainer import FAREWELL


def main() -> None:
    """The console script: imports the command line, which takes a moment, and runs it."""
    try:
        from trainer import cli

        cli.main()
    except KeyboardInterrupt:
        sys.stderr.write(f"trainer: {FAREWELL}\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
