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
from imagenet_prep.core.errors import UsageError
from imagenet_prep.core.redact import shown
from imagenet_prep.storage.location import Location, Url
from imagenet_prep.storage.urls import is_url

if TYPE_CHECKING:
    from imagenet_prep.workers.processes import Jobs

P = TypeVar("P", Path, Location)
F = TypeVar("F", bound=Callable[..., Any])

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


def option(
    name: str, help: str, type: Any = None, default: Any = None, **more: Any
) -> Callable[[F], F]:
    """A click option, whose default is shown; after a space ``name`` has the parameter's name."""
    if default is not None:
        more |= {"default": default, "show_default": True}
    return click.option(*name.split(), help=help, type=type, **more)


def all_of(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Decorators -> one; the help lists their options in this order."""
    return lambda command: functools.reduce(lambda made, add: add(made), options[::-1], command)


json_option = option(
    "--json as_json", "Print the result, or the error, as one JSON object.", is_flag=True
)
jobs_option = option(
    "--jobs", "Number of workers.  [default: number of processors]", click.IntRange(min=1)
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
        if self.backend == "local":
            if self.address is not None:
                message = "--address: needs a cluster; add --backend dask or --backend ray"
                raise UsageError("cluster.address_without_backend", message)
            yield self.jobs
            return
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

    return _WHERE(with_where)


_WHERE = all_of(
    option(
        "--backend",
        "Workers: processes of this machine, a Dask cluster or a Ray cluster.",
        click.Choice(BACKENDS),
        "local",
    ),
    option(
        "--address",
        "Address of the cluster.  [default: start one of --jobs workers on this machine]",
        metavar="HOST:PORT",
    ),
    jobs_option,
)


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
