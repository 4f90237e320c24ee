"""The command line of tools/recipes.sh: one recipe from its images to its record."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imagenet_prep.core.errors import UsageError
from tools.recipes.book import RECIPES, SIDES, Recipe, find
from tools.recipes.record import RECORDS
from tools.recipes.sets import Choice
from trainer.config import presets


@dataclass(frozen=True)
class Options:
    """The command line. ``betons`` is a folder of prepared betons, None where the images are
    prepared from ``raw``. ``extra`` are options of ``trainer run``."""

    recipe: Recipe
    sides: tuple[str, ...]
    raw: Path
    betons: Path | None
    prepare_only: bool
    out: Path
    record: Path
    seeds: tuple[int, ...]
    choice: Choice
    size: int | None
    device: str | None
    jobs: int | None
    overwrite: bool
    extra: tuple[str, ...]

    @property
    def machine(self) -> list[str]:
        """Options that change no result."""
        words = [] if self.device is None else ["--device", self.device]
        return words if self.jobs is None else [*words, "--jobs", str(self.jobs)]

    def changes(self, name: str) -> list[str]:
        """The differences of side ``name`` from the recipe, as options of recipes.sh."""
        usual = find(self.recipe.name)
        words = []
        for option, value, standard in (
            ("--preset", self.recipe.side(name).preset, usual.side(name).preset),
            ("--per-class", self.choice.per_class, usual.per_class),
            ("--val-per-class", self.choice.val_per_class, None),
            ("--classes", self.choice.classes, None),
            ("--size", self.size, None),
        ):
            if value != standard:
                words += [option, str(value)]
        return words


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    at_least_one = _at_least_one
    made = argparse.ArgumentParser(
        prog="tools/recipes.sh",
        description="Runs a recipe, from raw images or prepared betons to its record.",
        epilog="Options after -- go to trainer run, e.g. -- --batch-size 32.",
    )  # fmt: skip
    made.add_argument("name", metavar="NAME", help=", ".join(RECIPES))
    made.add_argument(
        "--betons",
        type=Path,
        metavar="FOLDER",
        help="train from this folder of --prepare-only, without raw images",
    )
    made.add_argument(
        "--prepare-only",
        action="store_true",
        help="make the folder --betons (default: OUT/betons), do not train",
    )
    made.add_argument("--ours", action="store_true", help="our settings (the default)")
    made.add_argument("--theirs", action="store_true", help="the tutorial's; both with --ours")
    made.add_argument(
        "--raw",
        type=Path,
        metavar="FOLDER",
        help="where the set is, or the folder around it (default: raw)",
    )
    made.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/recipe-NAME")
    made.add_argument(
        "--record", type=Path, metavar="FILE", help="default: tools/records/recipe-NAME.jsonl"
    )
    made.add_argument("--seeds", type=_numbers, metavar="0,1,2", help="default: the recipe's")
    made.add_argument("--preset", metavar="NAME", help="another one than the recipe's")
    made.add_argument("--epochs", type=at_least_one, metavar="N", help="others than the preset's")
    made.add_argument(
        "--per-class",
        type=at_least_one,
        metavar="N",
        help="largest number of training images per class",
    )
    made.add_argument(
        "--val-per-class",
        type=at_least_one,
        metavar="N",
        help="largest number of validation images per class",
    )
    made.add_argument("--classes", type=at_least_one, metavar="N", help="only the first N")
    made.add_argument("--size", type=at_least_one, metavar="PX", help="of the crops; usual: 256")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"))
    made.add_argument("--jobs", type=at_least_one, metavar="N", help="workers, decoding threads")
    made.add_argument("--overwrite", action="store_true", help="train again from the beginning")
    return made  # fmt: skip


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("must be at least 1")
    return number


def options(arguments: Sequence[str]) -> Options:
    """Words -> options; UsageError where they do not go together."""
    words = list(arguments)
    at = words.index("--") if "--" in words else len(words)
    given = parser().parse_args(words[:at])
    extra = words[at + 1 :]
    recipe = find(given.name)
    sides = tuple(name for name in SIDES if getattr(given, name)) or ("ours",)
    _check_betons(given)
    out = given.out or Path("runs") / f"recipe-{recipe.name}"
    if given.preset is not None:
        if len(sides) > 1:
            raise UsageError(
                "recipe.two_sides", "--preset is for one side; give --ours or --theirs, not both"
            )
        changed = replace(recipe.side(sides[0]), preset=given.preset)
        ours = sides == ("ours",)
        recipe = replace(recipe, ours=changed) if ours else replace(recipe, theirs=changed)
    for side in sides:
        presets.find(recipe.side(side).preset)
    if given.epochs is not None:
        extra = ["--epochs", str(given.epochs), *extra]
    return Options(
        recipe=recipe,
        sides=sides,
        raw=given.raw or Path("raw"),
        betons=given.betons or (out / "betons" if given.prepare_only else None),
        prepare_only=given.prepare_only,
        out=out,
        record=given.record or RECORDS / f"recipe-{recipe.name}.jsonl",
        seeds=given.seeds or recipe.seeds,
        choice=Choice(given.per_class or recipe.per_class, given.val_per_class, given.classes),
        size=given.size,
        device=given.device,
        jobs=given.jobs,
        overwrite=given.overwrite,
        extra=tuple(extra),
    )


def _check_betons(given: argparse.Namespace) -> None:
    """UsageError for options that --betons has no use for."""
    if given.betons is None or given.prepare_only:
        return
    for option in ("raw", "per_class", "val_per_class", "classes", "size"):
        if getattr(given, option) is not None:
            raise UsageError(
                "recipe.betons_are_prepared",
                f"--{option.replace('_', '-')} has no effect on betons that are prepared already; "
                "leave it out, or make other betons with --prepare-only",
            )
