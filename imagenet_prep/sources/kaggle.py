"""ImageNet as Kaggle's competition "imagenet-object-localization-challenge" has it.

    ILSVRC/Data/CLS-LOC/train/<wnid>/*.JPEG
    ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_*.JPEG       labels: LOC_val_solution.csv or built in
    ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_*.JPEG     no labels; left out

The source is the outer folder, ``ILSVRC``, or ``CLS-LOC``; keys are relative to ``CLS-LOC``.
"""

from __future__ import annotations

import functools

from imagenet_prep.containers import imagenet
from imagenet_prep.containers.names import read_text
from imagenet_prep.containers.source import Finding
from imagenet_prep.core.errors import ToolError
from imagenet_prep.sources.folders import SplitFolder, find_in
from imagenet_prep.storage.location import Location

_SOLUTION = "LOC_val_solution.csv"
_PATHS = (("ILSVRC", "Data", "CLS-LOC"), ("Data", "CLS-LOC"))


def is_kaggle(src: Location) -> bool:
    """Whether ``src`` is one of the folders of that set."""
    return src.is_dir() and _base(src) is not None


def find_kaggle(src: Location) -> Finding | None:
    """That set -> its train and val; None: it is not there. Raises ToolError."""
    base = _base(src)
    if base is None:
        return None
    splits = [
        SplitFolder(name, base / name, f"{name}/")
        for name in ("train", "val")
        if (base / name).is_dir()
    ]
    finding = find_in(src, splits, {}, _val_classes(src))
    if (base / "test").is_dir():
        finding.notices.append("test: left out, its images have no classes")
    return finding


def _base(src: Location) -> Location | None:
    """The folder CLS-LOC."""
    if src.name == "CLS-LOC" and (src / "train").is_dir():
        return src
    for path in _PATHS:
        base = functools.reduce(lambda folder, name: folder / name, path, src)
        if (base / "train").is_dir() or (base / "val").is_dir():
            return base
    return None


def _val_classes(src: Location) -> functools.partial[str]:
    """The class of an image of val by its name: from the solution where it is there."""
    solution: dict[str, str] = {}
    for folder in (src, src.parent, src.parent.parent.parent):
        path = folder / _SOLUTION
        if folder is not src and src.name not in ("ILSVRC", "CLS-LOC"):
            break
        if path.is_file():
            for number, line in enumerate(read_text(path, "the labels of val").splitlines(), 1):
                image, _, boxes = line.partition(",")
                if line.strip() and image != "ImageId":
                    if not boxes.split():
                        raise ToolError(
                            "list.row", f"{path}: line {number} has no class; fetch it again"
                        )
                    solution[image] = boxes.split()[0]
            break
    return functools.partial(_class_of, solution)


def _class_of(solution: dict[str, str], name: str) -> str:
    return solution.get(name.rpartition(".")[0], "") or imagenet.val_class(name)
