"""The file of ``--classes`` -> which classes to take, in which order, and their names."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from imagenet_prep.containers.names import read_text
from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.storage.location import Location

Choice = Sequence[tuple[str, str]]
"""(class, name for people or "") in the order of the labels."""


def read_choice(path: Location, known: Collection[str]) -> Choice:
    """One class a line, with a name for people after a tab, a comma or a space -> the choice.

    The space is that of Kaggle's LOC_synset_mapping.txt. A comma or space may belong to the
    class's own name, where ``known`` has such a class. Empty lines are skipped. Raises
    UsageError or ToolError for a class that is not ``known`` or is listed twice.
    """
    if not path.is_file():
        what = "is not a file" if path.exists() else "no such file"
        raise UsageError("classes.missing", f"{path}: {what}; give a file with one class a line")
    chosen: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "the class list").splitlines(), 1):
        if not line.strip():
            continue
        name, title = _parts(line.strip(), known)
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {_some(known)}"
            raise ToolError(
                "classes.unknown", f"{path}: line {number}: the source has no class {name}; {hint}"
            )
        if name in chosen:
            raise ToolError(
                "classes.duplicate",
                f"{path}: line {number}: the class {name} is listed twice; remove one",
            )
        chosen[name] = title
    if not chosen:
        raise ToolError("classes.empty", f"{path}: lists no classes; write one a line")
    return tuple(chosen.items())


def _parts(line: str, known: Collection[str]) -> tuple[str, str]:
    """(class, name for people) of a line."""
    if line in known:
        return line, ""
    parts = [line.partition(separator) for separator in "\t, "]
    usable = [(name.strip(), title.strip()) for name, mark, title in parts if mark]
    return next((pair for pair in usable if pair[0] in known), usable[0] if usable else (line, ""))


def _some(known: Collection[str]) -> str:
    names = sorted(known)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
