"""The class list: classes.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.files import read_json, write_json
from imagenet_prep.dataset.names import CLASSES_NAME


@dataclass(frozen=True)
class Classes:
    """The classes of a data set; a label is an index into ``names``.

    ``names`` are the folder names (wnids for ImageNet), ``readable`` maps some or
    all of them to a name for people.
    """

    names: tuple[str, ...]
    readable: Mapping[str, str]

    def title(self, label: int) -> str:
        """The name for people of ``label``; the folder name where none is known."""
        return self.readable.get(self.names[label], self.names[label])

    def __len__(self) -> int:
        return len(self.names)


def save_classes(folder: Path, classes: Classes) -> None:
    """Writes ``classes.json`` into ``folder``."""
    rows = [
        {"label": label, "class": name, "name": classes.title(label)}
        for label, name in enumerate(classes.names)
    ]
    write_json(folder / CLASSES_NAME, {"format": 1, "classes": rows})


def load_classes(folder: Path) -> Classes:
    """Reads ``classes.json`` from ``folder``; ToolError if it is missing or damaged."""
    remedy = "run imagenet-prep crop again"
    path = folder / CLASSES_NAME
    value = read_json(path, "the class list", remedy, "classes")
    try:
        rows = sorted(value["classes"], key=lambda row: row["label"])
        names = tuple(str(row["class"]) for row in rows)
        readable = {str(row["class"]): str(row["name"]) for row in rows}
        if [row["label"] for row in rows] != list(range(len(rows))):
            raise ValueError("labels are not 0, 1, 2, ...")
    except (KeyError, TypeError, ValueError) as error:
        raise ToolError(
            "classes.damaged", f"{path}: the class list is damaged ({error}); {remedy}"
        ) from None
    return Classes(names, readable)
