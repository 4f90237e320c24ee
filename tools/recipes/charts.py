"""Runs of a recipe -> curves of error and loss by epoch, as a PNG.

The same runs give the same bytes.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tools.recipes.record import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"ours": "#2f6fd0", "theirs": "#d9660b"}
_MUTED, _GRID = "#5f6b7a", "#dfe3e8"
_PANELS = (("top1_error", "top-1 error (%)"), ("loss", "loss (cross-entropy, nats)"))


def latest(runs: Sequence[Run]) -> list[Run]:
    """The last run of each side, ``ours`` first."""
    found = {run.side: run for run in runs}
    return [found[side] for side in _COLOURS if side in found]


def curves(title: str, runs: Sequence[Run]) -> bytes:
    """Validation is solid, training dashed; each seed is thin and the mean of all seeds thick."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    look: dict[Any, Any] = {"font.size": 10, "font.family": "DejaVu Sans", "axes.edgecolor": _GRID}
    buffer = io.BytesIO()
    with mpl.rc_context(look):
        figure = Figure(figsize=(11, 4.4), layout="constrained", dpi=100)
        for axes, (key, unit) in zip(figure.subplots(1, 2), _PANELS, strict=True):
            for run in runs:
                _draw(axes, run, key)
            _finish(axes, unit)
            if key == "top1_error":
                _targets(axes, runs)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        # One column per run, training above validation, and one for the goals.
        columns = math.ceil(len(labels) / 2)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
        figure.suptitle(title)
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Axes, run: Run, key: str) -> None:
    colour = _COLOURS[run.side]
    for part, dashes, name in (("train", (0, (3, 2)), "training"), ("val", "-", "validation")):
        column = f"{part}_{key}"
        for seed in run.seeds:
            line = list(_line(run.of_seed(seed), column))
            if line:
                axes.plot(*zip(*line, strict=True), color=colour, alpha=0.35, linewidth=0.8,
                          linestyle=dashes)  # fmt: skip
        line = list(_mean(run, column))
        if line:
            label = f"{run.side} ({run.header['preset']}), {name}"
            marker = "o" if len(line) == 1 else None
            axes.plot(*zip(*line, strict=True), color=colour, linewidth=1.9, linestyle=dashes,
                      label=label, marker=marker)  # fmt: skip


def _line(rows: Sequence[Any], column: str) -> Iterator[tuple[int, float]]:
    for row in rows:
        if row.get(column) is not None:
            yield int(row["epoch"]), float(row[column])


def _mean(run: Run, column: str) -> Iterator[tuple[int, float]]:
    """The mean over the seeds, by epoch."""
    values: dict[int, list[float]] = {}
    for epoch, value in _line(run.epochs, column):
        values.setdefault(epoch, []).append(value)
    for epoch in sorted(values):
        yield epoch, statistics.fmean(values[epoch])


def _targets(axes: Axes, runs: Sequence[Run]) -> None:
    """The goal of a run, as a horizontal line."""
    for run in runs:
        least = run.result.get("least_top1")
        if least is not None:
            label = f"goal, {run.side}: {least:g} % correct"
            axes.axhline(100 - least, color=_MUTED, linewidth=1, linestyle=":", label=label)


def _finish(axes: Axes, unit: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(True, color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
