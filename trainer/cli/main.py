"""The `trainer` command: options in, tables and exit statuses out."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

import click

from imagenet_prep.core.console import run_command, say
from trainer import FAREWELL, __version__
from trainer.cli.doctor import doctor
from trainer.cli.evaluate import evaluate
from trainer.cli.export import export
from trainer.cli.options import doorkeeper
from trainer.cli.predict import predict
from trainer.cli.run import run
from trainer.cli.show import presets, summary
from trainer.interrupt import INTERRUPTED, TERMINATED


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="trainer")
def cli() -> None:
    """Trains AlexNet on a beton that imagenet-prep made, evaluates it and predicts with it.

    \b
    Example: trainer run --beton train.beton
    """


for command in (run, evaluate, predict, export, doctor, summary, presets):
    cli.add_command(command)


_NO_MEMORY = re.compile("out of memory|can't allocate memory", re.IGNORECASE)


def run_trainer(arguments: Sequence[str] | None = None) -> int:
    """Command line arguments (default: the process's) -> exit status; says what went wrong."""
    try:
        return run_command(cli, "trainer", arguments, FAREWELL)
    except (RuntimeError, MemoryError) as error:  # torch's own errors, CUDA's among them
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        say(
            "trainer: the memory is not enough; use a smaller --batch-size (--accumulate keeps the "
            "step)"
        )
        return 1


def main() -> None:
    """What the door of ``trainer`` opens to: :func:`run_trainer`, with a prompt Ctrl-C."""
    guard = doorkeeper.open()
    status = run_trainer()
    stopped = status in (INTERRUPTED, TERMINATED)
    if stopped:
        guard.sweep()
    else:
        guard.stop()
    if stopped or "RANK" in os.environ:
        # Not through the interpreter's own end, which waits for threads in long calls, and
        # which the threads of gloo now and then turn into an abort.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
