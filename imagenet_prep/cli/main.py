"""``imagenet-prep``: options in, a result or one error message out, and an exit status.

Heavy imports stand inside the commands that need them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from imagenet_prep import INTERRUPTED_MESSAGE, __version__
from imagenet_prep.cli import build as betons
from imagenet_prep.cli.crop import crop, failures, merge
from imagenet_prep.cli.options import (
    FOLDER,
    PROGRAM,
    jobs_option,
    json_option,
    option,
    print_result,
    warn_stock_pillow,
)
from imagenet_prep.cli.prepare import prepare
from imagenet_prep.cli.stats import stats
from imagenet_prep.core.console import INTERRUPTED, TERMINATED, Bar, run_command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Prepare raw images for training: crops, exact statistics, beton files.

    \b
    Example:
      imagenet-prep crop --src raw --dst cropped
      imagenet-prep stats
      imagenet-prep build
    """


@cli.command(short_help="Draw a data set for a trial.")
@option("--dst", "Folder of the images.", FOLDER, required=True)
@option("--train", "Number of training images.", click.IntRange(min=1), 2000)
@option("--val", "Number of validation images.", click.IntRange(min=0), 500)
@option("--seed", "Random seed.", click.IntRange(min=0), 0)
@jobs_option
@json_option
def sample(dst: Path, train: int, val: int, seed: int, jobs: int | None, as_json: bool) -> None:
    """Draw a data set of ten classes, and three broken files, for a trial.

    \b
    Example: imagenet-prep sample --dst raw --train 2000 --val 500
    """
    from imagenet_prep.sample.dataset import make_sample

    warn_stock_pillow()
    with Bar() as bar:
        report = make_sample(dst, train=train, val=val, seed=seed, jobs=jobs, progress=bar)
    rate = round(report.images_per_second, 1)
    value = {
        "images": report.images,
        "broken": report.broken,
        "seconds": round(report.seconds, 3),
        "images_per_second": rate,
        "dst": str(dst),
    }
    text = (
        f"{report.images} images and {report.broken} broken files in {dst}: "
        f"{report.seconds:.1f} s, {rate} images/s"
    )
    print_result(as_json, value, [text])


for _command in (crop, merge, failures, stats, prepare):
    cli.add_command(_command)
for _command in (betons.build, betons.index, betons.verify, betons.info):
    cli.add_command(_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Command line arguments (default: the process's) -> exit status."""
    terminated: list[int] = []
    with _as_interrupt(signal.SIGTERM, terminated):
        status = run_command(cli, PROGRAM, arguments, INTERRUPTED_MESSAGE)
    return TERMINATED if terminated and status == INTERRUPTED else status


@contextlib.contextmanager
def _as_interrupt(number: signal.Signals, received: list[int]) -> Iterator[None]:
    """In the block the signal ends the work as Ctrl-C does, and is added to ``received``."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = signal.signal(number, interrupt)
    try:
        yield
    finally:
        signal.signal(number, before)


def main() -> None:
    """Runs the command line of this process and exits."""
    sys.exit(run())
