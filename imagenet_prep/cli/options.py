"""What the commands of ``imagenet-prep`` share: options, and how a result is printed."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imagenet_prep.core.console import one_line, say
from imagenet_prep.core.redact import shown
from imagenet_prep.storage.location import Location, Url
from imagenet_prep.storage.urls import is_url

if TYPE_CHECKING:
    from imagenet_prep.workers.processes import Jobs

P = TypeVar("P", Path, Location)

PROGRAM = "imagenet-prep"
BACKENDS = ("local", "dask", "ray")


class _Folder(click.Path):
    """A path on a disk; a URL is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and is_url(value):
            self.fail(f"{shown(value)} is a URL; give a path on a disk", param, ctx)
        return super().convert(value, param, ctx)


FOLDER = _Folder(path_type=Path)
FILE = _Folder(path_type=Path, dir_okay=False)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result, or the error, as one JSON object."
)
jobs_option = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Number of workers.  [default: number of processors]",
)


@dataclass(frozen=True, slots=True)
class Where:
    """The workers of a command: --backend, --address and --jobs."""

    backend: str
    address: str | None
    jobs: int | None

    def path(self, path: P) -> P:
        """A path that workers on a cluster know, too: absolute, except for local workers."""
        return path if self.backend == "local" or isinstance(path, Url) else path.absolute()

    @contextlib.contextmanager
    def workers(self, *, reads: Sequence[Location], writes: Sequence[Path] = ()) -> Iterator[Jobs]:
        """The workers, until the block ends; raises what ``cluster.open_workers`` does."""
        from imagenet_prep.workers.cluster import open_workers

        with open_workers(
            self.backend,
            self.address,
            self.jobs,
            reads=[self.path(path) for path in reads if isinstance(path, Path)],
            writes=[self.path(path) for path in writes],
        ) as jobs:
            yield jobs


def where_options(command: Callable[..., None]) -> Callable[..., None]:
    """--backend, --address and --jobs, which the command gets as ``where``."""

    @functools.wraps(command)
    def with_where(
        *arguments: Any, backend: str, address: str | None, jobs: int | None, **options: Any
    ) -> None:
        command(*arguments, where=Where(backend, address, jobs), **options)

    for option in (
        jobs_option,
        click.option(
            "--address",
            metavar="HOST:PORT",
            help="Address of the cluster.  [default: start one of --jobs workers on this machine]",
        ),
        click.option(
            "--backend",
            type=click.Choice(BACKENDS),
            default="local",
            show_default=True,
            help="Workers: processes of this machine, a Dask cluster or a Ray cluster.",
        ),
    ):
        with_where = option(with_where)
    return with_where


def print_result(as_json: bool, value: dict[str, Any], lines: Sequence[str]) -> None:
    """The result of a command: ``value`` as JSON, or ``lines`` for people."""
    click.echo(json.dumps(value) if as_json else "\n".join(map(one_line, lines)))


def is_pillow_simd() -> bool:
    """Whether the module PIL is pillow-simd."""
    import PIL

    return re.search(r"\.post\d+$", PIL.__version__) is not None


def warn_stock_pillow() -> None:
    """Prints a warning where the module PIL is not pillow-simd."""
    if not is_pillow_simd():
        import PIL

        say(
            f"{PROGRAM}: warning: the module PIL here is stock Pillow {PIL.__version__}, not "
            "pillow-simd: the crops are the same, but made more slowly; install pillow-simd with "
            "make env"
        )
