"""Rows of a run -> curves by epoch, as SVG elements for a page.

The colours are CSS variables that the page defines (``--train``, ``--val``, ``--muted``,
``--line``), so that the curves follow the reader's light or dark theme. The same rows
give the same bytes: no dates, no random identifiers.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FEW_EPOCHS = 12

# Stand-in colours for matplotlib, each replaced by a CSS value in the finished SVG.
_INK, _MUTED, _GRID, _TRAIN, _VAL = "#010203", "#010204", "#010205", "#010206", "#010207"
_CSS_OF = {
    _INK: "currentColor",
    _MUTED: "var(--muted)",
    _GRID: "var(--line)",
    _TRAIN: "var(--train)",
    _VAL: "var(--val)",
}

_LOOK: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "svg.fonttype": "path",
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "grid.color": _GRID,
    "legend.labelcolor": _INK,
}


@dataclass(frozen=True)
class _Line:
    key: str
    label: str
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class _Panel:
    unit: str
    lines: tuple[_Line, ...]
    times: float = 1.0
    best: str | None = None
    may_be_logarithmic: bool = False


_CHARTS: dict[str, tuple[_Panel, ...]] = {
    "Loss": (
        _Panel(
            "cross-entropy (nats)",
            (
                _Line("train_loss", "training", _TRAIN),
                _Line("val_loss", "validation", _VAL),
            ),
        ),
    ),
    "Error": (
        _Panel(
            "error (%)",
            (
                _Line("train_top1_error", "training, top-1", _TRAIN),
                _Line("train_top5_error", "training, top-5", _TRAIN, dashed=True),
                _Line("val_top1_error", "validation, top-1", _VAL),
                _Line("val_top5_error", "validation, top-5", _VAL, dashed=True),
            ),
            best="val_top1_error",
        ),
    ),
    "Learning rate": (
        _Panel("learning rate", (_Line("lr", "rate", _TRAIN),), may_be_logarithmic=True),
    ),
    "Speed and waiting": (
        _Panel("images/s", (_Line("images_per_second", "images/s", _TRAIN),)),
        _Panel("wait for data (%)", (_Line("wait_share", "wait", _TRAIN),), times=100.0),
    ),
}


def number(row: Mapping[str, Any], key: str) -> float:
    """The value of ``key``, NaN where there is none."""
    value = row.get(key)
    return math.nan if value is None else float(value)


def finite(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """The finite values of ``key``, in the order of ``rows``."""
    return [value for row in rows if math.isfinite(value := number(row, key))]


@dataclass(frozen=True)
class Reference:
    """Another run to compare with, drawn faintly: its name, and column -> value by epoch."""

    name: str
    values: Mapping[str, Sequence[float]]


def chart_cards(
    rows: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any] | None,
    reference: Reference | None = None,
) -> str:
    """One card per chart: loss, error, learning rate, speed and waiting.

    ``rows`` has one dict per epoch, as ``report.write_report`` describes them, at least
    one; ``best`` is the row whose error is marked. Of ``reference`` the epochs up to the
    last one of ``rows`` are drawn.
    """
    return "".join(
        _chart(title, panels, rows, best, reference) for title, panels in _CHARTS.items()
    )


def _chart(
    title: str,
    panels: Sequence[_Panel],
    rows: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any] | None,
    reference: Reference | None,
) -> str:
    """One card with the curves of ``panels``, one above the other over the same epochs."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    identity = re.sub(r"\W+", "-", title.lower())
    buffer = io.StringIO()
    with mpl.rc_context({**_LOOK, "svg.hashsalt": identity}):
        figure = Figure(figsize=(5.6, 3.3), layout="constrained")
        stacked = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(stacked, panels, strict=True):
            compared = [] if reference is None else _refer(axes, panel, rows, reference)
            _draw(axes, panel, rows, best, compared)
        stacked[-1].set_xlabel("epoch")
        if len(stacked[0].get_lines()) > 1:
            # Above the axes: inside them it would lie on the curves of a run that stays put.
            figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return (
        f'<section class="card plot"><h2>{escape(title)}</h2>'
        f"{_inline(buffer.getvalue(), identity, f'{title} by epoch')}</section>"
    )


def _draw(
    axes: Axes,
    panel: _Panel,
    rows: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any] | None,
    compared: Sequence[float],
) -> None:
    """Draws the lines of ``panel`` that have values; marks the best epoch where asked.

    ``compared`` are values that are drawn already and have to fit on the axes.
    """
    epochs = [number(row, "epoch") for row in rows]
    drawn = [line for line in panel.lines if finite(rows, line.key)]
    for line in drawn:
        axes.plot(
            epochs,
            [number(row, line.key) * panel.times for row in rows],
            label=line.label,
            color=line.colour,
            linewidth=1.6,
            linestyle=(0, (4, 2)) if line.dashed else "-",
            marker="o" if len(rows) <= _FEW_EPOCHS else None,
            markersize=3.5,
            markerfacecolor="none" if line.dashed else line.colour,
        )
    if panel.best is not None and best is not None and finite([best], panel.best):
        point = ([number(best, "epoch")], [number(best, panel.best)])
        look: dict[str, Any] = {"color": _VAL, "markersize": 8, "markerfacecolor": "none"}
        axes.plot(*point, "o", label="best epoch", **look)
    values = [value * panel.times for line in drawn for value in finite(rows, line.key)]
    values += compared
    _scale(axes, panel, epochs, values)


def _reference_dashes(line: _Line) -> tuple[int, tuple[float, ...]]:
    """How a line of the reference is drawn: all of them are grey."""
    if line.dashed:
        return (0, (4, 2))
    return (0, (1, 1.5)) if line.colour == _VAL else (0, (4, 1.5, 1, 1.5))


def _refer(
    axes: Axes, panel: _Panel, rows: Sequence[Mapping[str, Any]], reference: Reference
) -> list[float]:
    """Draws what ``reference`` has of ``panel`` -> the values that were drawn."""
    last = int(number(rows[-1], "epoch"))
    drawn: list[float] = []
    for line in panel.lines:
        values = list(reference.values.get(line.key, ()))[:last]
        if values:
            axes.plot(
                range(1, len(values) + 1),
                values,
                label=f"{line.label}: {reference.name}",
                color=_MUTED,
                linewidth=0.9,
                linestyle=_reference_dashes(line),
                alpha=0.8,
            )
            drawn += values
    return drawn


def _scale(axes: Axes, panel: _Panel, epochs: Sequence[float], values: Sequence[float]) -> None:
    """Limits, ticks and grid: from zero upwards, except where rates fall by factors."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if panel.may_be_logarithmic and _steps(values):
        axes.set_yscale("log")
    else:
        highest = max(values, default=0.0)
        axes.set_ylim(bottom=0, top=1.08 * highest if highest > 0 else 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    middle = (epochs[0] + epochs[-1]) / 2
    half = max((epochs[-1] - epochs[0]) / 2 * 1.03, 0.5)
    axes.set_xlim(middle - half, middle + half)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylabel(panel.unit)
    axes.grid(True, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", length=0)


def _steps(values: Sequence[float]) -> bool:
    """True where values fall in few large steps, which only a logarithmic axis shows."""
    few = len(set(values)) <= max(2, len(values) // 4)
    return len(values) > 1 and few and min(values) > 0 and max(values) / min(values) >= 8


def _inline(svg: str, identity: str, label: str) -> str:
    """matplotlib's SVG document -> an element for a page: own ids, theme colours, no links."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<style type=\"text/css\">.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="', f'id="{identity}-', svg)
    svg = svg.replace("url(#", f"url(#{identity}-").replace('href="#', f'href="#{identity}-')
    for colour, css in _CSS_OF.items():
        svg = svg.replace(colour, css)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
