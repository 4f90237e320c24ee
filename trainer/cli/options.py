"""What the commands of ``trainer`` share: options, grouped help, output."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from imagenet_prep.core.console import Bar
from imagenet_prep.core.errors import UsageError
from imagenet_prep.dataset.shards import shard_pattern
from trainer.config.run_config import SETTINGS, Setting

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
AT_LEAST_ONE = click.IntRange(min=1)
PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)


class Option(click.Option):
    """An option with the heading of the help under which it is listed."""

    def __init__(self, *names: Any, heading: str = "Other options", **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.heading = heading


class BetonCommand(click.Command):
    """A command with --beton that explains a pattern which the shell has expanded."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does; for several beton files after one --beton a UsageError with the remedy."""
        betons = [word for word in args if word.endswith(".beton")]
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if "unexpected extra argument" not in error.message or len(betons) < 2:
                raise
            raise UsageError(
                "usage.unquoted_pattern",
                "--beton takes one name; put a pattern in quotes, so that the shell does not "
                f"expand it: --beton '{shard_pattern(Path(betons[0]))}'",
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


def config_options(*names: str, **changes: Any) -> Decorator:
    """Adds the options of these settings of RunConfig, with their defaults shown.

    ``changes`` replace arguments of ``click.option``, such as ``default``.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            declared = SETTINGS[name]
            shown = declared.default is not None
            details = {"default": declared.default, "show_default": shown} | changes
            command = _option(declared, **details)(command)
        return command

    return add


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds an option for each setting of RunConfig that has a heading; None: the preset's."""
    for declared in reversed(SETTINGS.values()):
        if declared.heading:
            details = {"cls": Option, "heading": declared.heading, "default": None}
            command = _option(declared, **details)(command)
    return command


def _option(declared: Setting, **details: Any) -> Decorator:
    """A click option for one setting."""
    flags = "/".join(filter(None, (declared.flag, declared.negative)))
    if declared.metavar:
        details["metavar"] = declared.metavar
    if declared.type == "tuple[str, ...]":
        details |= {"multiple": True, "callback": lambda _c, _p, value: value or None}
    details = {"help": declared.help} | details
    return click.option(flags, type=_click_type(declared), **details)


def _click_type(declared: Setting) -> Any:
    if declared.choices:
        return click.Choice(declared.choices)
    if declared.type == "tuple[int, ...]":
        return _IntegersType()
    kind = {"bool": bool, "int": int, "int | None": int, "float": float}.get(declared.type, str)
    if kind not in (int, float):
        return kind
    bounds: dict[str, Any] = {
        "min": declared.low if declared.above is None else declared.above,
        "max": declared.high if declared.below is None else declared.below,
        "min_open": declared.above is not None,
        "max_open": declared.below is not None,
    }
    return click.IntRange(**bounds) if kind is int else click.FloatRange(**bounds)


class _IntegersType(click.ParamType[Any]):
    """``25,51,79`` -> (25, 51, 79)."""

    name = "integers"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """The integers; a usage error for anything else."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            return self.fail(f"{value!r} is not a list of integers such as 25,51,79", param, ctx)


json_option = click.option("--json", "as_json", is_flag=True, help="Result as JSON on stdout.")
checkpoint_option = click.option(
    "--checkpoint", type=PATH, required=True, help="Checkpoint: best.pt or last.pt of a run."
)


def print_json(value: Any) -> None:
    """The result of a command as one line of JSON; numbers that are not finite become null."""
    click.echo(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def echo(line: str, *, err: bool = False) -> None:
    """A line on stdout or stderr. A closed stream (a terminal that has gone, ``| head``) is
    replaced by /dev/null: training continues without it."""
    stream = sys.stderr if err else sys.stdout
    try:
        click.echo(line, file=stream)
    except (OSError, ValueError):
        _discard(stream)


def _discard(stream: Any) -> None:
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class SafeBar(Bar):
    """A progress bar that a closed stderr does not end."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """The ``Progress`` callback."""
        try:
            super().__call__(what, done, total)
        except (OSError, ValueError):
            _discard(sys.stderr)


class Duration(click.ParamType[float]):
    """``11h30m`` -> seconds; a number alone is minutes."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """The seconds, above 0; a usage error for anything else."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", value)
        days, hours, minutes, seconds = (
            [int(part or 0) for part in found.groups()] if found else [0, 0, 0, 0]
        )
        if value.isdigit():
            minutes = int(value)
        total = float(seconds + 60 * (minutes + 60 * (hours + 24 * days)))
        if total <= 0:
            self.fail(f"{value!r} is not a duration such as 11h30m, 45m or 90s", param, ctx)
        return total


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


def setting_text(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "one per CPU" if value is None else str(value) or "none"
