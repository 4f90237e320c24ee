"""A recipe's record: what was run on what, every epoch of every seed, what came of it.

``tools/records/recipe-NAME.jsonl`` holds one JSON object a line; several runs follow one
another. Each begins with a line ``"kind": "header"``, has one ``"epoch"`` line per epoch and
seed, and ends with a ``"result"`` line; a whole run is appended at once. Nothing in it names a
host or a folder of one. Accuracies are percent of the validation pictures.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.files import publish

RECORDS = Path(__file__).resolve().parents[1] / "records"
Row = Mapping[str, Any]

_EPOCH_KEYS = (
    "epoch", "train_loss", "train_top1_error", "train_top5_error", "val_loss", "val_top1_error",
    "val_top5_error", "lr", "seconds", "images_per_second", "wait_share",
)  # fmt: skip
# An error is a whole number of pictures: this much is rounding.
_SAME_PERCENT = 1e-3
_ONE_CLASS_ON_END = 3


@dataclass(frozen=True)
class Run:
    """One run of one side of a recipe, as a record has it."""

    header: Row
    epochs: tuple[Row, ...]
    result: Row

    @property
    def side(self) -> str:
        """``ours`` or ``theirs``."""
        return str(self.header["side"])

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in the order of the record."""
        return tuple(dict.fromkeys(int(row["seed"]) for row in self.epochs))

    def of_seed(self, seed: int) -> list[Row]:
        """The epochs of one seed."""
        return [row for row in self.epochs if row["seed"] == seed]

    def lines(self) -> str:
        """The record's text."""
        rows = (self.header, *self.epochs, self.result)
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@dataclass(frozen=True)
class SeedResult:
    """What one seed gave: the best checkpoint's evaluation at the centre view and at more views
    (None where the recipe has one only), wall seconds, and what the run itself noticed."""

    seed: int
    centre: Row
    views: Row | None
    wall_s: float
    notices: tuple[str, ...]


def epoch_lines(seed: int, metrics: Sequence[Row]) -> list[Row]:
    """A run's ``metrics.jsonl`` -> the record's lines of this seed, figures to 6 digits."""
    return [
        {"kind": "epoch", "seed": seed}
        | {key: _short(row[key]) for key in _EPOCH_KEYS if row.get(key) is not None}
        for row in metrics
        if row.get("kind", "epoch") == "epoch"
    ]


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def result_line(
    seeds: Sequence[SeedResult], epochs: Sequence[Row], least: tuple[float | None, float | None]
) -> Row:
    """The line with mean and spread over the seeds.

    ``top1`` and ``top5`` are of the best checkpoint, ``last_top1`` of the last epoch (nobody
    chose that one by its error); ``one_class_epochs``: see the function of that name.
    ``least`` is what was asked for, and ``seeds_at_least`` how many seeds gave that.
    """
    rows = [_seed_line(one, [row for row in epochs if row["seed"] == one.seed]) for one in seeds]
    line: dict[str, Any] = {"kind": "result"}
    for key in ("top1", "top5", "last_top1", "views_top1", "views_top5", "minutes"):
        values = [row[key] for row in rows if row.get(key) is not None]
        if values:
            line[key] = spread(values)
    line["least_top1"], line["least_top5"] = least
    if least != (None, None):
        line["seeds_at_least"] = sum(
            all(
                wanted is None or row[key] >= wanted
                for key, wanted in zip(("top1", "top5"), least, strict=True)
            )
            for row in rows
        )
    return line | {"seeds": rows}


def spread(values: Sequence[float]) -> Row:
    """Values -> mean, sample deviation (None for one value), least and most, to 5 digits."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    found = (statistics.fmean(values), deviation, min(values), max(values))
    figures = (None if value is None else float(f"{value:.5g}") for value in found)
    return dict(zip(("mean", "deviation", "least", "most"), figures, strict=True))


def _seed_line(one: SeedResult, epochs: Sequence[Row]) -> dict[str, Any]:
    last = epochs[-1].get("val_top1_error") if epochs else None
    line: dict[str, Any] = {
        "seed": one.seed,
        "top1": _accuracy(one.centre["top1_error"]),
        "top5": _accuracy(one.centre["top5_error"]),
        "last_top1": None if last is None else _accuracy(last),
        "epochs": len(epochs),
        "minutes": float(f"{one.wall_s / 60:.4g}"),
        "one_class_epochs": one_class_epochs(epochs, [row["images"] for row in
                                                      one.centre["classes"]]),
        "notices": list(one.notices),
    }  # fmt: skip
    if one.views is not None:
        line |= {f"views_{k}": _accuracy(one.views[f"{k}_error"]) for k in ("top1", "top5")}
    return line


def _accuracy(error: float) -> float:
    return float(f"{100 - error:.5g}")


def one_class_epochs(epochs: Sequence[Row], images: Sequence[int]) -> int:
    """How many of the epochs have exactly the error of naming one class for every picture, three
    or more on end: a single one may be a coincidence.

    ``images`` are the validation pictures of each class.
    """
    total = sum(images)
    errors = {100 * (1 - count / total) for count in images if count}
    count = run = 0
    for row in epochs:
        found = row.get("val_top1_error")
        same = found is not None and any(abs(found - error) < _SAME_PERCENT for error in errors)
        run = run + 1 if same else 0
        if run >= _ONE_CLASS_ON_END:
            count += _ONE_CLASS_ON_END if run == _ONE_CLASS_ON_END else 1
    return count


def append(path: Path, run: Run) -> bool:
    """Adds a run to a record (made if need be), unless the record has the same one already
    (same settings, same figures) -> whether it was added."""
    known = read(path) if path.exists() else []
    for other in known:
        same = all(
            other.header.get(key) == run.header.get(key)
            for key in ("side", "preset", "settings", "pictures")
        )
        if same and other.epochs == run.epochs:
            return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with publish(path) as temporary:
        text = "".join(other.lines() for other in known)
        temporary.write_text(text + run.lines(), encoding="utf-8")
    return True


def read(path: Path) -> list[Run]:
    """A record's runs in order. ToolError with one sentence where a line is damaged or a run
    has no end."""
    runs: list[Run] = []
    header: Row | None = None
    epochs: list[Row] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ToolError(f"{path}: the record cannot be read ({error}); run it again") from None
    for number, text in enumerate(lines, 1):
        row = _row(path, number, text)
        if row["kind"] == "header" and header is None:
            header, epochs = row, []
        elif row["kind"] == "epoch" and header is not None:
            epochs.append(row)
        elif row["kind"] == "result" and header is not None:
            runs.append(Run(header, tuple(epochs), row))
            header = None
        else:
            raise ToolError(
                f"{path}: line {number} ({row['kind']}) is out of turn; delete the run around "
                "it and record it again"
            )
    if header is not None:
        raise ToolError(f"{path}: its last run has no result; delete that and record it again")
    return runs


def _row(path: Path, number: int, text: str) -> Row:
    try:
        row = json.loads(text)
    except ValueError:
        row = None
    if not isinstance(row, dict) or "kind" not in row:
        raise ToolError(f"{path}: line {number} is no line of a record; delete it")
    return row
