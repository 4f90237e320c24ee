"""Runs a recipe, from its raw images to its record.

    tools/recipes.sh NAME --raw FOLDER [--theirs] [--out FOLDER] [--seeds 0,1,2] ...

Prepares the images, trains each seed, evaluates the best checkpoint of each, draws the curves and
a grid of predictions, and appends all figures to tools/records/recipe-NAME.jsonl. The same command
continues an interrupted recipe. Options after -- go to trainer run.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.core.files import publish, write_json
from tools.demo import INTERRUPTED, TERMINATED, StageError, run_stage
from tools.recipes import record as recipe_record
from tools.recipes.book import RECIPES, SIDES, Recipe, Side, find
from tools.recipes.record import RECORDS, Run, SeedResult
from tools.recipes.sets import Choice, source_of
from trainer.config import presets
from trainer.config.run_config import as_dict

# Health notices of a run, not its messages when it continues or ends.
NOTICE = "trainer: after "
GRID_NAME = "grid.png"
# An interrupted run ends after its step, with a checkpoint: that may take a while on a CPU.
CHECKPOINT_S = 120.0


@dataclass(frozen=True)
class Options:
    """The command line. ``extra`` are options of ``trainer run``."""

    recipe: Recipe
    sides: tuple[str, ...]
    raw: Path
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


@dataclass(frozen=True)
class Prepared:
    """The beton files of a recipe; ``images`` has the numbers of images and classes; ``digest``
    is of both files."""

    train: Path
    val: Path
    digest: str
    images: dict[str, Any]


def prepare(given: Options, side: Side) -> Prepared:
    """Raw images -> beton files, as the side's preset wants them. Raises StageError."""
    recipe, how = given.recipe, preparation(side.preset)
    if given.size is not None:
        how["--size"] = str(given.size)
    folder = given.out / "-".join(filter(None, ["prepared", *how.values(), given.choice.name]))
    source = source_of(recipe.raw, given.raw, folder.with_name(f"{folder.name}-raw"), given.choice)
    words = ["imagenet-prep", "prepare", *source.words(), "--dst", str(folder)]
    words += [word for pair in how.items() for word in pair]
    words += [] if given.jobs is None else ["--jobs", str(given.jobs)]
    run_stage([*words, "--json"])
    train, val = folder / "train.beton", folder / "val.beton"
    if not val.exists():
        raise ToolError(
            "recipe.no_validation", f"{given.raw}: no validation images; add val/ or test/"
        )
    manifests = {path: _read(path.with_name(path.name + ".json")) for path in (train, val)}
    images = {
        "set": recipe.title,
        "train": int(manifests[train]["samples"]),
        "val": int(manifests[val]["samples"]),
        "classes": len(manifests[train]["classes"]),
        "fit": how.get("--fit", "shortest"),
        "size_px": int(how.get("--size", 256)),
    }
    digest = " ".join(str(manifests[path]["digest"]) for path in (train, val))
    return Prepared(train, val, digest, images)


def preparation(preset: str) -> dict[str, str]:
    """The options of a preset's ``prepare`` command, without --src."""
    words = shlex.split(presets.find(preset).prepare)[2:]
    options = dict(zip(words[::2], words[1::2], strict=True))
    options.pop("--src", None)
    return options


def _read(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


def train(given: Options, side: Side, prepared: Prepared, seed: int) -> Path:
    """Trains one seed, or continues it -> its folder.

    A file beside the folder keeps the wall seconds of all processes that worked on it, the
    notices of the run, and whether it is done.
    """
    folder = given.out / side.preset / f"seed-{seed}"
    words = ["trainer", "run", "--beton", str(prepared.train), "--preset", side.preset]
    words += ["--seed", str(seed), *given.extra]
    what = {
        "words": words,
        "settings": json.loads(json.dumps(as_dict(presets.preset(side.preset)))),
        "beton": prepared.digest,
    }
    state_path = _state_path(folder)
    state: dict[str, Any] = {**what, "wall_s": 0.0, "notices": [], "done": False}
    if state_path.exists() and not given.overwrite:
        state = _read(state_path)
        if any(state[key] != value for key, value in what.items()):
            raise UsageError(
                "recipe.other_run",
                f"{folder}: holds a run with other options, another version of the preset or "
                "other images; give another --out, or --overwrite",
            )
        if state["done"]:
            return folder
    begun = (folder / "config.json").exists() and not given.overwrite
    words = [*words, "--out", str(folder), "--resume" if begun else "--overwrite"]

    def notice(line: str) -> None:
        if line.startswith(NOTICE):
            state["notices"].append(line.removeprefix("trainer: "))

    with _timed(state_path, state):
        run_stage([*words, *given.machine, "--json"], notice, CHECKPOINT_S)
        state["done"] = True
    return folder


def _state_path(folder: Path) -> Path:
    return folder.with_name(folder.name + ".json")


@contextlib.contextmanager
def _timed(path: Path, state: dict[str, Any]) -> Iterator[None]:
    """Adds the time of the block to ``state`` and writes it to ``path``, also after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, state)
    started = time.perf_counter()
    try:
        yield
    finally:
        state["wall_s"] += time.perf_counter() - started
        write_json(path, state)


def evaluate(
    given: Options, prepared: Prepared, folder: Path, views: int, grid: Path
) -> dict[str, Any]:
    """The evaluation of a run's best checkpoint, kept in the run's file; the first time it also
    draws a grid of predictions at ``grid``."""
    state = _read(_state_path(folder))
    known: dict[str, Any] = state.setdefault("evaluations", {})
    if str(views) not in known:
        words = ["trainer", "eval", "--checkpoint", str(folder / "best.pt")]
        words += ["--beton", str(prepared.val), "--views", str(views), *given.machine]
        words += ["--image", str(grid), "--json"]
        found, _ = run_stage(words)
        known[str(views)] = {key: found[key] for key in ("top1_error", "top5_error", "classes")}
        write_json(_state_path(folder), state)
    evaluation: dict[str, Any] = known[str(views)]
    return evaluation


def run_side(given: Options, name: str) -> Run:
    """One side of the recipe with all its seeds -> its run for the record."""
    from trainer.report.metrics import read_metrics

    side = given.recipe.side(name)
    prepared = prepare(given, side)
    seeds: list[SeedResult] = []
    epochs: list[recipe_record.Row] = []
    folder = given.out
    for seed in given.seeds:
        folder = train(given, side, prepared, seed)
        grid = folder / GRID_NAME
        centre = evaluate(given, prepared, folder, 1, grid)
        many = side.views > 1
        views = evaluate(given, prepared, folder, side.views, grid) if many else None
        state = _read(_state_path(folder))
        notices = tuple(state["notices"])
        seeds.append(SeedResult(seed, centre, views, float(state["wall_s"]), notices))
        epochs += recipe_record.epoch_lines(seed, read_metrics(folder))
    # The goal is for the whole data set, not for an easier part.
    least = (None, None) if given.choice.classes is not None else (side.top1, side.top5)
    result = recipe_record.result_line(seeds, epochs, least)
    return Run(header(given, name, prepared, folder), tuple(epochs), result)


def header(given: Options, name: str, prepared: Prepared, folder: Path) -> dict[str, Any]:
    """The first line of the record: command, machine, versions, settings."""
    from tools.bench.recording import accelerator, commit, machine, package_versions

    side = given.recipe.side(name)
    settings = dict(_read(folder / "config.json")["run"])
    for varies in ("seed", "jobs"):
        settings.pop(varies, None)
    found: dict[str, Any] = {
        "kind": "header",
        "recipe": given.recipe.name,
        "side": name,
        "preset": side.preset,
        "options": [*given.changes(name), *given.extra],
        "command": command(given, name),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **commit(),
        "machine": machine() | accelerator(),
        "versions": package_versions(),
        "pictures": prepared.images,
        "views": side.views,
        "said": side.claim,
        "settings": settings,
    }
    return found


def command(given: Options, name: str) -> str:
    """The command that repeats this side; of folders only the last part."""
    words = ["tools/recipes.sh", given.recipe.name, "--raw", given.raw.resolve().name]
    words += ["--theirs"] if name == "theirs" else []
    words += ["--seeds", ",".join(map(str, given.seeds)), *given.changes(name)]
    return shlex.join([*words, *(["--", *given.extra] if given.extra else [])])


def run_recipe(given: Options) -> None:
    """Runs the selected sides, records them and draws the curves."""
    from tools.recipes.charts import curves, latest
    from tools.recipes.table import accuracy

    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.sides:
        run = run_side(given, name)
        added = recipe_record.append(given.record, run)
        chart = given.record.with_suffix(".png")
        with publish(chart) as temporary:
            runs = latest(recipe_record.read(given.record))
            temporary.write_bytes(curves(given.recipe.title, runs))
        print(f"\n{given.recipe.name}, {name} ({run.header['preset']}): {accuracy(run)}")
        side = given.recipe.side(name)
        if "seeds_at_least" in run.result:
            reached = f"{run.result['seeds_at_least']} of {len(given.seeds)} seeds"
            print(f"goal:        {side.claim}; reached by {reached}")
        print(f"record:      {given.record}{'' if added else ' (it had this run already)'}")
        print(f"curves:      {chart}")
        print(f"seeds:       {given.out / side.preset}/seed-*/{GRID_NAME} and report.html")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    at_least_one = _at_least_one
    made = argparse.ArgumentParser(
        prog="tools/recipes.sh", description=(__doc__ or "").partition("\n")[0],
        epilog="Options after -- go to trainer run, e.g. -- --batch-size 32.",
    )  # fmt: skip
    made.add_argument("name", metavar="NAME", help=", ".join(RECIPES))
    made.add_argument("--ours", action="store_true", help="our settings (the default)")
    made.add_argument("--theirs", action="store_true", help="the tutorial's; both with --ours")
    made.add_argument(
        "--raw",
        type=Path,
        default=Path("raw"),
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
        raw=given.raw,
        out=given.out or Path("runs") / f"recipe-{recipe.name}",
        record=given.record or RECORDS / f"recipe-{recipe.name}.jsonl",
        seeds=given.seeds or recipe.seeds,
        choice=Choice(given.per_class or recipe.per_class, given.val_per_class, given.classes),
        size=given.size,
        device=given.device,
        jobs=given.jobs,
        overwrite=given.overwrite,
        extra=tuple(extra),
    )


def _terminated(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise SystemExit(TERMINATED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line -> exit status; an error is one message."""
    try:
        run_recipe(options(sys.argv[1:] if arguments is None else arguments))
    except ToolError as error:
        print(f"recipes: {error}", file=sys.stderr)
        return error.status
    except StageError as error:
        if str(error):
            print(f"recipes: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        print(f"recipes: {error.filename}: {error.strerror}; name another folder", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nrecipes: interrupted; the same command continues", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(main())
