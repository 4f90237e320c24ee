"""The console script ``imagenet-prep`` and ``python -m imagenet_prep``."""

from __future__ import annotations

from imagenet_prep import INTERRUPTED_MESSAGE
from imagenet_prep.core.entry import enter


def _command_line() -> None:
    from imagenet_prep.cli import main as cli

    cli.main()


def main() -> None:
    """The console script."""
    enter("imagenet-prep", INTERRUPTED_MESSAGE, _command_line)


if __name__ == "__main__":
    main()
