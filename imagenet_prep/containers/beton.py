"""FFCV betons as a source -> their classes and images, to be cropped again.

Any beton of FFCV's format 2 with one image field and one integer field, of any sizes, raw and
JPEG mixed; with our manifest beside it its class names are known.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from imagenet_prep.containers.names import entries_of, safe_part, split_in, text_of
from imagenet_prep.containers.source import Finding, Source, found, in_memory
from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset.names import manifest_beside
from imagenet_prep.storage.byte_range import Place
from imagenet_prep.storage.location import Location, Url


def is_beton(src: Location) -> bool:
    """Whether ``src`` is a beton, or a folder of some and of nothing else but their files."""
    if isinstance(src, Url):
        return False
    if not src.is_dir():
        return src.suffix == ".beton"
    names = [entry.name for entry in entries_of(src)]
    return any(name.endswith(".beton") for name in names) and all(
        name.endswith((".beton", ".beton.json", ".beton.rows", ".npz", ".md", ".txt"))
        for name in names
    )


def find_beton(src: Location) -> Finding | None:
    """Betons -> their images; None: there are none. Raises ToolError for damaged files."""
    names = [entry.name for entry in entries_of(src)] if src.is_dir() else [src.name]
    betons = [name for name in names if name.endswith(".beton")]
    if isinstance(src, Url) or not betons:
        return None
    folder = src if src.is_dir() else src.parent
    sources: list[Source] = []
    known: tuple[list[str], dict[str, str]] | None = None
    for name in betons:
        here = _classes(manifest_beside(folder / name))
        if (sources and (here is None) != (known is None)) or (here and known and here != known):
            raise ToolError(
                "source.class_conflict", f"{folder}: the betons {betons[0]} and {name} have "
                "different classes; crop them one by one"
            )  # fmt: skip
        known = here
        sources += _samples(folder / name, known[0] if known is not None else None)
    finding = in_memory(sources)
    if known is not None:
        finding.order, finding.readable = known
    else:
        finding.number_labels()
    return finding


def _classes(manifest: Path) -> tuple[list[str], dict[str, str]] | None:
    """The classes of our manifest and their names for people; None where there is none."""
    try:
        value = json.loads(manifest.read_text(encoding="utf-8"))
        return [str(name) for name in value["classes"]], dict(value.get("readable", {}))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _samples(path: Path, classes: list[str] | None) -> list[Source]:
    """The images of one beton. Raises ToolError for anything damaged."""
    from imagenet_prep.dataset.beton_tables import images_in

    try:
        if not path.is_file():
            raise ValueError("is not a file")
        images = images_in(path)
        if images.labels is None:
            raise ValueError("has not exactly one integer label a sample")
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    split = split_in(re.split(r"[^a-z]+", path.stem.lower()))
    labels, stem = images.labels.tolist(), text_of(path.stem)
    digits = len(str(len(labels) - 1))
    rows = zip(labels, images.places.tolist(), images.raw.tolist(), strict=True)
    sources = []
    for index, (label, (start, size), (height, width)) in enumerate(rows):
        if label < 0 or (classes is not None and label >= len(classes)):
            raise _damaged(path, f"sample {index} has the label {label}")
        class_name = str(label) if classes is None else classes[label]
        place = Place(str(path), start, size, f"ppm:{width}x{height}" if height else "")
        key = f"{text_of(path.name)}/{index:0{digits}}"
        inside = f"{safe_part(class_name)}/{stem}/{index:0{digits}}"
        sources.append(found(key, split, class_name, inside, place))
    return sources


def _damaged(path: Path, reason: str) -> ToolError:
    return ToolError("source.beton_damaged", f"{path}: {reason}; make or fetch it again")
