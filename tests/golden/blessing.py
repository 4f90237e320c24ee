"""Goldens: small JSON files beside this one, compared by tests and written by this script only.

    python -m tests.golden.blessing [NAME...]

A golden changes only when somebody decides that it should; its name is that of the function
in ``CASES`` that makes its contents.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.golden import loader_cases, odd_cases

FOLDER = Path(__file__).parent
CASES: Mapping[str, Callable[[], Mapping[str, object]]] = {
    "loader": loader_cases.digests,
    "odd": odd_cases.outcomes,
}
NEED_DATA = frozenset({"odd"})
"""Those that are made from the real data, which is not on every machine."""


def read(name: str) -> dict[str, object]:
    """The contents of a golden."""
    value: dict[str, object] = json.loads((FOLDER / f"{name}.json").read_text())
    return value


def bless(name: str) -> None:
    """Makes what is now the truth."""
    text = json.dumps(CASES[name](), indent=1, sort_keys=True)
    (FOLDER / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    here = [name for name in CASES if name not in NEED_DATA or odd_cases.ODD.is_dir()]
    for chosen in sys.argv[1:] or here:
        bless(chosen)
