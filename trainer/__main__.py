"""The console script ``trainer`` and ``python -m trainer``."""

from __future__ import annotations

from imagenet_prep.core.entry import enter
from trainer import INTERRUPTED_MESSAGE


def _command_line() -> None:
    from trainer.cli import main as cli

    cli.main()


def main() -> None:
    """The console script."""
    enter("trainer", INTERRUPTED_MESSAGE, _command_line)


if __name__ == "__main__":
    main()
