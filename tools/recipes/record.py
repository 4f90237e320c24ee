"""The record of a recipe: header, every epoch of every seed, result.

``tools/records/recipe-NAME.jsonl`` has one JSON object per line, and several runs one after the
other. A run begins with a line ``"kind": "header"``, has one ``"epoch"`` line per epoch and seed,
and ends with a ``"result"`` line. A complete run is appended at once. There are no names of hosts
and no paths. Accuracies are percent of the validation images.
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
# Errors are whole numbers of images: smaller differences are rounding.
_SAME_PERCENT = 1e-3
_ONE_CLASS_ON_END = 3


@dataclass(frozen=True)
class Run:
    """One run of one side of a recipe."""

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
    """The result of one seed: the best checkpoint's evaluation with the centre view and with more
    views (None if the recipe has one only), wall seconds, and the notices of the run."""

    seed: int
    centre: Row
    views: Row | None
    wall_s: float
    notices: tuple[str, ...]


def epoch_lines(seed: int, metrics: Sequence[Row]) -> list[Row]:
    """``metrics.jsonl`` of a run -> the record's lines of this seed, with 6 digits."""
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

    ``top1`` and ``top5`` are of the best checkpoint, ``last_top1`` of the last epoch, which was
    not selected by its error; for ``one_class_epochs`` see the function. ``least`` is the goal,
    and ``seeds_at_least`` the number of seeds that reached it.
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
    """The number of epochs with exactly the error of predicting one class for every image, where
    three or more follow one another; a single one may be a coincidence.

    ``images`` has the number of validation images per class.
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
    """Adds a run to a record, which is created if missing -> True, or False if the record has the
    same run (same settings, same figures)."""
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
    """The runs of a record in order. ToolError for a damaged line or an incomplete run."""
    runs: list[Run] = []
    header: Row | None = None
    epochs: list[Row] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ToolError(
            "record.unreadable", f"{path}: cannot be read ({error}); run the recipe again"
        ) from None
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
                "record.order",
                f"{path}: unexpected line {number} ({row['kind']}); delete the run around it and "
                "record it again",
            )
    if header is not None:
        raise ToolError(
            "record.incomplete",
            f"{path}: the last run has no result; delete it and record it again",
        )
    return runs


def _row(path: Path, number: int, text: str) -> Row:
    try:
        row = json.loads(text)
    except ValueError:
        row = None
    if not isinstance(row, dict) or "kind" not in row:
        raise ToolError("record.damaged", f"{path}: line {number} is damaged; delete it")
    return row
