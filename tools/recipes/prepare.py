"""The images of a recipe as beton files: from raw images, or from a folder of betons.

A folder of betons (``--prepare-only``) has all that training needs, and is complete without the
raw images: a folder for each way of preparing with ``train.beton`` and ``val.beton``, their
manifests (which hold the class names), row indices and statistics; and ``recipe.json``, written
last, which names what the betons are for.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from imagenet_prep.beton.verify import check_betons
from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.core.files import read_json, write_json
from imagenet_prep.dataset.manifest import load_manifest
from imagenet_prep.dataset.names import manifest_beside, stats_beside
from imagenet_prep.dataset.shards import find_betons
from imagenet_prep.jpeg.index import rows_beside
from tools import demo
from tools.recipes.book import Side
from tools.recipes.options import Options
from tools.recipes.sets import Choice, source_of
from trainer.config import presets

RECIPE_NAME = "recipe.json"
FORMAT = 1


@dataclass(frozen=True)
class Prepared:
    """The beton files of a recipe; ``images`` has the numbers of images and classes; ``digest``
    is of both files."""

    train: Path
    val: Path
    digest: str
    images: dict[str, Any]


def prepared(given: Options, name: str) -> Prepared:
    """The betons of side ``name``: from ``given.betons`` if set, else prepared from raw images."""
    side = given.recipe.side(name)
    return prepare(given, side) if given.betons is None else _load(given.betons, given, name)


def prepare(given: Options, side: Side) -> Prepared:
    """Raw images -> beton files, as the side's preset wants them. Raises StageError."""
    recipe, how = given.recipe, preparation(side.preset, given.size)
    folder = given.out / "-".join(filter(None, ["prepared", *how.values(), given.choice.name]))
    source = source_of(recipe.raw, given.raw, folder.with_name(f"{folder.name}-raw"), given.choice)
    words = ["imagenet-prep", "prepare", *source.words(), "--dst", str(folder)]
    words += [word for pair in how.items() for word in pair]
    words += [] if given.jobs is None else ["--jobs", str(given.jobs)]
    demo.run_stage([*words, "--json"])
    if not (folder / "val.beton").exists():
        raise ToolError(
            "recipe.no_validation", f"{given.raw}: no validation images; add val/ or test/"
        )
    return _described(folder, recipe.title, how)


def _described(folder: Path, title: str, how: dict[str, str]) -> Prepared:
    """The betons of a folder with their numbers and digest."""
    train, val = folder / "train.beton", folder / "val.beton"
    manifests = load_manifest(train), load_manifest(val)
    images = {
        "set": title,
        "train": manifests[0].samples,
        "val": manifests[1].samples,
        "classes": len(manifests[0].classes),
        "fit": how.get("--fit", "shortest"),
        "size_px": int(how.get("--size", 256)),
    }
    return Prepared(train, val, " ".join(one.digest for one in manifests), images)


def preparation(preset: str, size: int | None) -> dict[str, str]:
    """The options of a preset's ``prepare`` command, without --src; ``size`` replaces its own."""
    words = shlex.split(presets.find(preset).prepare)[2:]
    options = dict(zip(words[::2], words[1::2], strict=True))
    options.pop("--src", None)
    return options if size is None else options | {"--size": str(size)}


def make_betons(given: Options) -> dict[str, Prepared]:
    """Prepares the selected sides and fills the folder ``given.betons`` -> side, its betons there.

    Betons are hard links where the file system has them. A folder of the same recipe and images
    gets further sides; one of another recipe is a UsageError.
    """
    folder = given.betons
    assert folder is not None
    if folder.is_dir() and any(folder.iterdir()):
        known = _read(folder, given.recipe.name)
        if known["choice"] != asdict(given.choice) or known["size"] != given.size:
            raise UsageError(
                "recipe.other_betons", f"{folder}: holds a different selection of the images, or "
                "crops of another size; give another folder"
            )  # fmt: skip
        sides = dict(known["sides"])
    else:
        sides = {}
    made = {name: prepare(given, given.recipe.side(name)) for name in given.sides}
    for name, betons in made.items():
        how = preparation(given.recipe.side(name).preset, given.size)
        target = folder / ("-".join([how.get("--fit", "shortest"), how.get("--size", "256")]))
        target.mkdir(parents=True, exist_ok=True)
        for path in _files(betons):
            _link(path, target / path.name)
        sides[name] = {"folder": target.name, "prepare": how, "digest": betons.digest}
        made[name] = _described(target, given.recipe.title, how)
    value = {"format": FORMAT, "recipe": given.recipe.name, "choice": asdict(given.choice)}
    write_json(folder / RECIPE_NAME, value | {"size": given.size, "sides": sides})
    return made


def _files(betons: Prepared) -> Iterator[Path]:
    """The files of both betons that training reads, manifests last."""
    for beton in (betons.train, betons.val):
        for path in (beton, rows_beside(beton), stats_beside(beton), manifest_beside(beton)):
            if path.exists():
                yield path


def _link(path: Path, target: Path) -> None:
    """Makes ``target`` a hard link to ``path``, or a copy on another file system."""
    if target.exists() and target.samefile(path):
        return
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    temporary.replace(target)


def of_betons(given: Options) -> Options:
    """Options with the selection of images that ``given.betons`` was made with.

    Raises ToolError or UsageError where that is no folder of this recipe.
    """
    if given.betons is None:
        return given
    known = _read(given.betons, given.recipe.name)
    return replace(given, choice=Choice(**known["choice"]), size=known["size"])


def _read(folder: Path, recipe: str) -> dict[str, Any]:
    """The folder's recipe.json, which must be of ``recipe``."""
    remedy = "make the folder with tools/recipes.sh NAME --prepare-only, or copy it again"
    value = read_json(folder / RECIPE_NAME, "the description of a folder of betons", remedy)
    found = (value.get("format"), value.get("recipe"))
    if found != (FORMAT, recipe):
        raise UsageError(
            "recipe.other_betons",
            f"{folder}: holds betons for {found[1]} in format {found[0]}, expected {recipe} in "
            f"format {FORMAT}; {remedy}",
        )
    return value


def _load(folder: Path, given: Options, name: str) -> Prepared:
    """The betons of side ``name`` in a folder of ``--prepare-only``, every byte checked."""
    side = _read(folder, given.recipe.name)["sides"].get(name)
    how = preparation(given.recipe.side(name).preset, given.size)
    if side is None or side["prepare"] != how:
        raise UsageError(
            "recipe.side_not_prepared",
            f"{folder}: has no images prepared with {shlex.join(_words(how))} for --{name}; "
            f"run --prepare-only --{name} with this folder",
        )
    found = _described(folder / side["folder"], given.recipe.title, how)
    faults = [] if found.digest == side["digest"] else ["they are not those of recipe.json"]
    for path in (found.train, found.val):
        report = check_betons(find_betons(path), jobs=given.jobs)
        faults += [f"{path.name}: {fault}" for fault in report.faults]
        faults += [f"{path.name}: sample {one.index} {one.reason}" for one in report.damaged[:1]]
    if faults:
        raise ToolError(
            "recipe.betons_damaged",
            f"{folder / side['folder']}: the betons are damaged: {'; '.join(faults)}; copy the "
            "folder again",
        )
    return found


def _words(how: dict[str, str]) -> list[str]:
    return [word for pair in how.items() for word in pair] or ["the default options"]
