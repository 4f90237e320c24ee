"""One side of a race: the process in which a contender runs. See ``tools/bench/harness.py``.

Started as ``python -m tools.bench.contender module:function``. The first line on stdin holds the
function's arguments (a JSON object); the function imports and prepares all that it needs
and gives a :class:`Contender`. Then each line ``lap`` makes it run once and ``reset``
clear up, both answered by one JSON object in a line. What libraries print goes to stderr.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import unittest.mock
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Facts = Mapping[str, Any]
# Modules whose version belongs to a result, if the contender has loaded them.
_NAMED = ("PIL", "torch", "torchvision", "numpy", "nvidia.dali", "pyvips", "simplejpeg")


def nothing() -> None:
    """The reset of a contender that leaves nothing behind."""


@dataclass(frozen=True)
class Contender:
    """``lap`` does the work once and returns its result: ``count`` images, and more.

    ``reset`` undoes a lap, outside the measured time.
    """

    lap: Callable[[], Facts]
    reset: Callable[[], None] = nothing


@contextlib.contextmanager
def quick_ffcv() -> Iterator[None]:
    """Spares the seconds of compiling that importing FFCV takes for two tables of constants
    that only Python reads; nothing that runs later is touched."""
    import numba.typed

    with unittest.mock.patch.object(numba.typed, "Dict", dict):
        yield


def versions() -> dict[str, str]:
    """The loaded libraries that a result depends on, with their versions."""
    found = {}
    for name in _NAMED:
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            found[name] = str(version)
    return found


def prepare(name: str, arguments: Facts) -> Contender | str:
    """``module:function`` of tools -> its contender, or what is not installed for it."""
    module, _, function = name.partition(":")
    try:
        made = getattr(importlib.import_module(f"tools.bench.{module}"), function)(**arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "tools", "imagenet_prep", "trainer"):
            raise  # a fault of ours
        return f"{missing} is not installed (make bench-env)"
    assert isinstance(made, Contender)
    return made


def main(name: str) -> int:
    """Answers the lines on stdin until they end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: Facts) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    contender = prepare(name, json.loads(sys.stdin.readline()))
    if isinstance(contender, str):
        answer({"absent": contender})
        return 0
    answer({"versions": versions()})
    for line in sys.stdin:
        if line.strip() == "reset":
            contender.reset()
            answer({})
        else:
            answer(contender.lap())
    return 0


if __name__ == "__main__":
    # By its name and not as __main__, so that a contender's Contender is this one's.
    from tools.bench import contender as named

    sys.exit(named.main(sys.argv[1]))
