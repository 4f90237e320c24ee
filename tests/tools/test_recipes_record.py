"""A recipe's record: what a run becomes in it, that it reads back, its table and its curves."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagenet_prep.core.errors import ToolError
from tools.recipes import charts as recipe_charts
from tools.recipes import table as recipe_table
from tools.recipes.record import (
    Row,
    Run,
    SeedResult,
    append,
    epoch_lines,
    one_class_epochs,
    read,
    result_line,
)


def metrics(errors: list[float]) -> list[dict[str, Any]]:
    """metrics.jsonl of a run with these validation errors, steps in between."""
    rows: list[dict[str, Any]] = []
    for epoch, error in enumerate(errors, 1):
        rows.append({"kind": "step", "epoch": epoch, "step": epoch * 10, "train_loss": 1.0})
        rows.append({"kind": "epoch", "epoch": epoch, "train_loss": 1 / 3, "val_loss": 0.5,
                     "train_top1_error": 50.0, "val_top1_error": error, "seconds": 12.0,
                     "step_share": 0.5})  # fmt: skip
    return rows


def evaluation(top1: float, top5: float, images: tuple[int, ...] = (59, 41)) -> Row:
    """The output of ``trainer eval --json``."""
    classes = [{"images": count} for count in images]
    return {"top1_error": 100 - top1, "top5_error": 100 - top5, "classes": classes}


def run(side: str = "ours", *, options: tuple[str, ...] = (), classes: int = 2) -> Run:
    """A run of two seeds."""
    seeds = [
        SeedResult(0, evaluation(94.0, 99.0), evaluation(95.0, 99.5), 60.0, ()),
        SeedResult(1, evaluation(97.0, 99.0), evaluation(98.0, 99.5), 120.0, ("stuck; try",)),
    ]
    epochs = [*epoch_lines(0, metrics([41.0, 41.0, 41.0, 8.0])), *epoch_lines(1, metrics([4.0]))]
    header: dict[str, Any] = {
        "kind": "header", "recipe": "cat-fish", "side": side, "preset": side, "settings": {},
        "options": list(options), "views": 10, "machine": {"cores": 2},
        "pictures": {"train": 1300, "val": 100, "classes": classes},
    }  # fmt: skip
    return Run(header, tuple(epochs), result_line(seeds, epochs, (95.0, None)))


def test_only_epochs_are_recorded_with_figures_of_six_digits() -> None:
    (line,) = epoch_lines(7, metrics([25.0]))
    assert line == {
        "kind": "epoch", "seed": 7, "epoch": 1, "train_loss": 0.333333, "val_loss": 0.5,
        "train_top1_error": 50.0, "val_top1_error": 25.0, "seconds": 12.0,
    }  # fmt: skip


def test_the_result_has_mean_spread_and_seeds_at_the_goal() -> None:
    result = run().result
    assert result["top1"] == {"mean": 95.5, "deviation": 2.1213, "least": 94.0, "most": 97.0}
    assert result["views_top1"]["mean"] == 96.5
    assert result["last_top1"]["most"] == 96.0
    assert result["minutes"]["mean"] == 1.5
    assert result["seeds_at_least"] == 1
    assert [row["notices"] for row in result["seeds"]] == [[], ["stuck; try"]]
    assert [row["one_class_epochs"] for row in result["seeds"]] == [3, 0]


@pytest.mark.parametrize(
    ("errors", "count"),
    [
        ([41.0, 41.0, 41.0, 41.0], 4),
        ([59.0, 59.0, 41.0, 30.0], 3),
        ([41.0, 41.0, 40.0, 41.0], 0),
        ([12.0, 41.0, 41.0, 41.0, 41.0, 9.0], 4),
        ([], 0),
    ],
)
def test_epochs_with_the_error_of_one_class_count_from_three(
    errors: list[float], count: int
) -> None:
    assert one_class_epochs(epoch_lines(0, metrics(errors)), [59, 41, 0]) == count


def test_a_record_reads_back_and_takes_each_run_once(tmp_path: Path) -> None:
    path = tmp_path / "records" / "recipe.jsonl"
    ours, theirs = run(), run("theirs")
    assert append(path, ours)
    assert append(path, theirs)
    assert not append(path, run())
    assert read(path) == [ours, theirs]
    assert read(path)[0].seeds == (0, 1)
    assert [row["epoch"] for row in read(path)[0].of_seed(0)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (lambda lines: lines[:-1], "the last run has no result"),
        (lambda lines: lines[1:], "unexpected line 1 .epoch."),
        (lambda lines: [*lines[:2], "{", *lines[2:]], "line 3 is damaged"),
        (lambda lines: [lines[0], *lines], "unexpected line 2 .header."),
    ],
)
def test_a_damaged_record_is_an_error(tmp_path: Path, cut: Any, reason: str) -> None:
    path = tmp_path / "recipe.jsonl"
    path.write_text("\n".join(cut(run().lines().splitlines())) + "\n")
    with pytest.raises(ToolError, match=reason):
        read(path)


def test_the_table_shows_the_last_run_as_the_recipe_has_it() -> None:
    changed = run(options=("--epochs", "1"))
    text = recipe_table.table({"cat-fish": [run(), changed]})
    lines = text.splitlines()
    assert lines[0].startswith("| recipe | tutorial, published |")
    assert len(lines) == 8
    wanted = "95.50 ± 2.12 %; 10 views 96.50 % (94.00 to 97.00; 2 seeds; one class predicted"
    (line,) = (line for line in lines if "`cat-fish`" in line)
    assert wanted in line.replace("96.50 ± 2.12 %", "96.50 %")
    assert "1,300 + 100" in line
    assert "– / 1.5 (2 cores)" in line
    only = recipe_table.table({"cat-fish": [changed]})
    assert "with --epochs 1" in only


def test_the_curves_show_both_sides_and_are_the_same_each_time() -> None:
    runs = recipe_charts.latest([run("theirs"), run(), run("theirs")])
    assert [one.side for one in runs] == ["ours", "theirs"]
    data = recipe_charts.curves("cats and fish", runs)
    assert data == recipe_charts.curves("cats and fish", runs)
    assert data != recipe_charts.curves("cats and fish", runs[:1])
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (1100, 440)
