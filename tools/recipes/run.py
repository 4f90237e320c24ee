"""Runs a recipe, from its raw images to its record.

    tools/recipes.sh NAME --raw FOLDER [--theirs] [--out FOLDER] [--seeds 0,1,2] ...
    tools/recipes.sh NAME --raw FOLDER --prepare-only --betons FOLDER [--ours --theirs]
    tools/recipes.sh NAME --betons FOLDER [--ours --theirs] ...

Prepares the images, trains each seed, evaluates the best checkpoint of each, draws the curves and
a grid of predictions, and appends all figures to tools/records/recipe-NAME.jsonl. The same command
continues an interrupted recipe. --prepare-only makes a folder of betons, from which --betons trains
on another machine without the raw images and without a network. Options after -- go to trainer run.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.core.files import publish, write_json
from tools import demo
from tools.demo import INTERRUPTED, TERMINATED, StageError
from tools.recipes import record as recipe_record
from tools.recipes.book import Side
from tools.recipes.options import Options, options
from tools.recipes.prepare import Prepared, make_betons, of_betons, prepared
from tools.recipes.record import Run, SeedResult
from trainer.config import presets
from trainer.config.run_config import as_dict

# Health notices of a run, not its messages when it continues or ends.
NOTICE = "trainer: after "
GRID_NAME = "grid.png"
# An interrupted run ends after its step, with a checkpoint: that may take a while on a CPU.
CHECKPOINT_S = 120.0


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
        demo.run_stage([*words, *given.machine, "--json"], notice, CHECKPOINT_S)
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
        found, _ = demo.run_stage(words)
        known[str(views)] = {key: found[key] for key in ("top1_error", "top5_error", "classes")}
        write_json(_state_path(folder), state)
    evaluation: dict[str, Any] = known[str(views)]
    return evaluation


def run_side(given: Options, name: str) -> Run:
    """One side of the recipe with all its seeds -> its run for the record."""
    from trainer.report.metrics import read_metrics

    side = given.recipe.side(name)
    images = prepared(given, name)
    seeds: list[SeedResult] = []
    epochs: list[recipe_record.Row] = []
    folder = given.out
    for seed in given.seeds:
        folder = train(given, side, images, seed)
        grid = folder / GRID_NAME
        centre = evaluate(given, images, folder, 1, grid)
        many = side.views > 1
        views = evaluate(given, images, folder, side.views, grid) if many else None
        state = _read(_state_path(folder))
        notices = tuple(state["notices"])
        seeds.append(SeedResult(seed, centre, views, float(state["wall_s"]), notices))
        epochs += recipe_record.epoch_lines(seed, read_metrics(folder))
    # The goal is for the whole data set, not for an easier part.
    least = (None, None) if given.choice.classes is not None else (side.top1, side.top5)
    result = recipe_record.result_line(seeds, epochs, least)
    return Run(header(given, name, images, folder), tuple(epochs), result)


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
    words, changes = ["tools/recipes.sh", given.recipe.name], given.changes(name)
    if given.betons is None:
        words += ["--raw", given.raw.resolve().name]
    else:  # the selection of the images was an option of --prepare-only
        words += ["--betons", given.betons.resolve().name]
        changes = changes[:2] if "--preset" in changes else []
    words += ["--theirs"] if name == "theirs" else []
    words += ["--seeds", ",".join(map(str, given.seeds)), *changes]
    return shlex.join([*words, *(["--", *given.extra] if given.extra else [])])


def run_recipe(given: Options) -> None:
    """Runs the selected sides, records them and draws the curves."""
    from tools.recipes.charts import curves, latest
    from tools.recipes.table import accuracy

    given.out.mkdir(parents=True, exist_ok=True)
    if given.prepare_only:
        _prepare_only(given)
        return
    given = of_betons(given)
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


def _prepare_only(given: Options) -> None:
    """Makes the folder of betons and prints how to train from it."""
    for name, betons in make_betons(given).items():
        images = betons.images
        counts = f"{images['train']:,} + {images['val']:,} images, {images['classes']} classes"
        print(f"\n{given.recipe.name}, {name}: {counts}, {betons.train.parent}")
    sides = " ".join(f"--{name}" for name in given.sides)
    print(f"train:       tools/recipes.sh {given.recipe.name} --betons {given.betons} {sides}")


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
