"""The file of ``--classes`` -> which classes to take, in which order, and their names."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.sources.types import Choice, read_text
from imagenet_prep.storage.location import Location


def read_choice(path: Location, known: Collection[str]) -> Choice:
    """One class a line, with a readable name after a tab or a comma -> the classes chosen.

    Their order is that of their labels. A comma may belong to the class's own name, where
    ``known`` has such a class. Empty lines count for nothing. Raises UsageError or ToolError
    with one sentence for a class that is not ``known`` or is there twice, and for no classes.
    """
    if not path.is_file():
        what = "is no file" if path.exists() else "no such file"
        raise UsageError(f"{path}: {what}; name a file with one class a line")
    chosen: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "the class list").splitlines(), 1):
        if not line.strip():
            continue
        name, title = _parts(line.strip(), known)
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {_some(known)}"
            raise ToolError(f"{path}: line {number}: the source has no class {name}; {hint}")
        if name in chosen:
            raise ToolError(f"{path}: line {number}: the class {name} is there twice; remove one")
        chosen[name] = title
    if not chosen:
        raise ToolError(f"{path}: names no classes; write one a line")
    return tuple(chosen.items())


def _parts(line: str, known: Collection[str]) -> tuple[str, str]:
    if "\t" in line or line not in known:
        name, _, title = line.partition("\t" if "\t" in line else ",")
        return name.strip(), title.strip()
    return line, ""


def _some(known: Collection[str]) -> str:
    names = sorted(known)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
