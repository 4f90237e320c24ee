"""What the commands of ``trainer`` share: options, grouped help, how a result is printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from imagenet_prep.core.errors import UsageError
from imagenet_prep.dataset.shards import shard_pattern
from trainer import FAREWELL
from trainer.interrupt import InterruptGuard, Stop

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
AT_LEAST_ONE = click.IntRange(min=1)
CHANNELS = click.Choice([1, 3])
PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)


class Option(click.Option):
    """An option that says under which heading of the help it stands."""

    def __init__(self, *names: Any, heading: str = "Other options", **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.heading = heading


class BetonCommand(click.Command):
    """A command with --beton that knows what it looks like when a shell expands a pattern."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Click's answer; of several betons after one --beton the sentence that helps."""
        betons = [word for word in args if word.endswith(".beton")]
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if "unexpected extra argument" not in error.message or len(betons) < 2:
                raise
            raise UsageError(
                "--beton: takes one name; put a pattern in quotes, so that the shell leaves it "
                f"as it is: --beton '{shard_pattern(Path(betons[0]))}'"
            ) from None


class GroupedCommand(BetonCommand):
    """A command whose help lists its options under headings, in the order of their first use."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options; those without a heading come last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        last = "Other options"
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "heading", last), []).append(record)
        rest = groups.pop(last, [])
        for heading, records in [*groups.items(), (last, rest)]:
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def device_option(heading: str = "Other options") -> Decorator:
    return click.option(
        "--device",
        cls=Option,
        heading=heading,
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to compute; auto takes CUDA where there is a device.",
    )


def precision_option(heading: str = "Other options") -> Decorator:
    return click.option(
        "--precision",
        cls=Option,
        heading=heading,
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="auto takes half precision only where the hardware has it.",
    )


def jobs_option(heading: str = "Other options") -> Decorator:
    return click.option(
        "--jobs",
        cls=Option,
        heading=heading,
        type=AT_LEAST_ONE,
        help="Decoding threads.  [default: the CPUs of this process]",
    )


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
checkpoint_option = click.option(
    "--checkpoint", type=PATH, required=True, help="best.pt or last.pt of a run."
)


def print_json(value: dict[str, Any]) -> None:
    """The result of a command as one line of JSON."""
    click.echo(json.dumps(value))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in [head, *rows]
    ]


class Doorkeeper:
    """The process's guard against long calls after Ctrl-C, where ``main`` has started one."""

    def __init__(self) -> None:
        self.guard: InterruptGuard | None = None

    def open(self) -> InterruptGuard:
        """Starts the guard; call it in the main thread."""
        self.guard = InterruptGuard(farewell).start()
        return self.guard

    def watch(self, folder: Path | None, stop: Stop | None = None) -> None:
        """Sweeps ``folder`` at a sudden end (None: it is not ours); ``stop`` gets the first
        Ctrl-C."""
        if self.guard is not None:
            self.guard.folders += [] if folder is None else [folder]
            self.guard.stop_request = stop


doorkeeper = Doorkeeper()


def farewell() -> None:
    """The last line of a process that ends at once."""
    sys.stderr.write(f"\ntrainer: {FAREWELL}\n")
    sys.stderr.flush()
