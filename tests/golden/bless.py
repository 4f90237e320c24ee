"""Goldens: small JSON files in this folder, compared by tests, written by this script only.

    python -m tests.golden.bless [NAME...]

``NAME_cases.py`` has a function ``cases`` that computes the contents of ``NAME.json``. Without
names, all of them are written, except those whose data this machine lacks.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem.removesuffix("_cases") for path in FOLDER.glob("*_cases.py")))


def computed(name: str) -> dict[str, object] | None:
    """The contents of a golden as the code makes it now; None where its data is missing."""
    module = importlib.import_module(f"tests.golden.{name}_cases")
    found: dict[str, object] | None = module.cases()
    return found


def main(names: list[str]) -> None:
    """Writes the named goldens."""
    for name in names or NAMES:
        contents = computed(name)
        if contents is not None:
            text = json.dumps(contents, indent=1, sort_keys=True)
            (FOLDER / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
