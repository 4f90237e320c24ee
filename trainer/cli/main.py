"""The command line ``trainer``: options in, results and exit statuses out."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence

import click

from imagenet_prep.core.console import run_command, say
from trainer import INTERRUPTED_MESSAGE, __version__
from trainer.cli.compare import compare
from trainer.cli.doctor import doctor
from trainer.cli.evaluate import evaluate
from trainer.cli.export import export
from trainer.cli.predict import predict
from trainer.cli.run import run
from trainer.cli.show import presets, summary
from trainer.interrupt import STATUS_OF, guard


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="trainer")
def cli() -> None:
    """Trains AlexNet on a beton file of imagenet-prep, evaluates it and predicts with it.

    \b
    Example: trainer run --beton train.beton
    """


for command in (run, evaluate, predict, export, compare, doctor, summary, presets):
    cli.add_command(command)


_NO_MEMORY = re.compile("out of memory|can't allocate memory", re.IGNORECASE)


def run_trainer(arguments: Sequence[str] | None = None) -> int:
    """Command line arguments (default: the process's) -> exit status; prints error messages."""
    try:
        return run_command(cli, "trainer", arguments, INTERRUPTED_MESSAGE)
    except (RuntimeError, MemoryError) as error:  # torch's own errors, CUDA's among them
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        say(
            "trainer: out of memory; use a smaller --batch-size (with --accumulate the step keeps "
            "its size)"
        )
        return 1


def main() -> None:
    """The program: :func:`run_trainer` with prompt reactions to signals."""
    guard.start()
    status = run_trainer()
    stopped = status in STATUS_OF.values()
    if stopped:
        guard.sweep()
    else:
        guard.stop()
    if stopped or "RANK" in os.environ:
        # Not through the interpreter's exit, which waits for threads in long calls, and which
        # the threads of gloo sometimes turn into an abort.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(status)
    sys.exit(status)
