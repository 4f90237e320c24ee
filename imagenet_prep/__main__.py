"""The door of ``imagenet-prep`` and ``python -m imagenet_prep``: hears Ctrl-C from the start."""

from __future__ import annotations

import sys

from imagenet_prep import FAREWELL


def main() -> None:
    """The console script: imports the command line, which takes a moment, and runs it."""
    try:
        from imagenet_prep import cli

        cli.main()
    except KeyboardInterrupt:
        sys.stderr.write(f"imagenet-prep: {FAREWELL}\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
