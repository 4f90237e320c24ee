"""The records of the recipes -> the tables of docs/recipes.md, in Markdown.

    python tools/recipes/table.py [tools/records/recipe-*.jsonl ...]

The last complete run of each side counts. A run with other settings than the recipe's is shown
only if there is no other, with its options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from imagenet_prep.core.errors import ToolError
from tools.recipes.book import RECIPES, Recipe
from tools.recipes.record import RECORDS, Row, Run, read
from trainer.config.presets import PRESETS

HEAD = (
    "recipe", "tutorial, published", "tutorial, here", "ours, goal", "ours, here", "images",
    "minutes, tutorial / ours",
)  # fmt: skip
COMMANDS_HEAD = ("recipe", "prepare", "train", "our changes, and why")


def table(records: Mapping[str, Sequence[Run]]) -> str:
    """Recipe -> its runs; a table with one line per recipe, a dash for what is unknown."""
    lines = [HEAD, ("---",) * len(HEAD)]
    lines += [_line(recipe, records.get(name, ())) for name, recipe in RECIPES.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def commands() -> str:
    """A table of the commands of our side of each recipe, its changes and the reasons."""
    lines = [COMMANDS_HEAD, ("---",) * len(COMMANDS_HEAD)]
    for recipe in RECIPES.values():
        preset = PRESETS[recipe.ours.preset]
        lines.append((
            f"`{recipe.name}`", f"`{preset.prepare}`",
            f"`{preset.command}`", preset.notes,
        ))  # fmt: skip
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def shown(runs: Sequence[Run], side: str) -> Run | None:
    """The run of ``side`` that the table shows: the last one with the recipe's settings, else
    the last one; None without any."""
    of = [run for run in runs if run.side == side]
    as_written = [run for run in of if not run.header["options"]]
    return (as_written or of)[-1] if of else None


def _line(recipe: Recipe, runs: Sequence[Run]) -> tuple[str, ...]:
    theirs, ours = shown(runs, "theirs"), shown(runs, "ours")
    either = ours or theirs
    minutes = " / ".join("–" if run is None else _minutes(run) for run in (theirs, ours))
    return (
        f"`{recipe.name}`",
        recipe.theirs.claim,
        "–" if theirs is None else accuracy(theirs),
        recipe.ours.claim,
        "–" if ours is None else accuracy(ours),
        "–" if either is None else _images(either.header["pictures"]),
        minutes if either is not None else "–",
    )


def accuracy(run: Run) -> str:
    """``95.3 ± 0.4 % (94.9-95.8, 5 seeds)``; top-5 for more than ten classes."""
    result = run.result
    words = f"{_spread(result['top1'])} %"
    if run.header["pictures"]["classes"] > 10:
        words += f" top-1, {_spread(result['top5'])} % top-5"
    if "views_top1" in result:
        words += f"; {run.header['views']} views {_spread(result['views_top1'])} %"
    count = len(result["seeds"])
    notes = [f"{result['top1']['least']:.2f} to {result['top1']['most']:.2f}"] if count > 1 else []
    notes.append(f"{count} seed{'s' if count > 1 else ''}")
    stuck = [str(row["one_class_epochs"]) for row in result["seeds"] if row["one_class_epochs"]]
    if stuck:
        notes.append(f"one class predicted for {', '.join(stuck)} epochs")
    if run.header["options"]:
        notes.append(f"with {' '.join(run.header['options'])}")
    return f"{words} ({'; '.join(notes)})"


def _spread(value: Row) -> str:
    deviation = value["deviation"]
    return f"{value['mean']:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def _images(counts: Row) -> str:
    return f"{counts['train']:,} + {counts['val']:,}"


def _minutes(run: Run) -> str:
    """Minutes of one seed, with the number of cores or the device."""
    minutes = run.result["minutes"]["mean"]
    machine = run.header["machine"]
    cores = f"{machine['cores']} core{'s' if machine['cores'] != 1 else ''}"
    return f"{minutes:.3g} ({machine.get('gpu') or cores})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the records and prints both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("records", type=Path, nargs="*", help="default: those in tools/records")
    given = parser.parse_args(arguments)
    paths = given.records or sorted(RECORDS.glob("recipe-*.jsonl"))
    try:
        records = by_recipe(paths)
    except ToolError as error:
        print(f"table: {error}", file=sys.stderr)
        return error.status
    print(f"{table(records)}\n\n{commands()}")
    return 0


def by_recipe(paths: Sequence[Path]) -> dict[str, list[Run]]:
    """Records -> the runs in them, by recipe; ToolError where one cannot be read."""
    records: dict[str, list[Run]] = {}
    for path in paths:
        for run in read(path):
            records.setdefault(str(run.header["recipe"]), []).append(run)
    return records


if __name__ == "__main__":
    sys.exit(main())
