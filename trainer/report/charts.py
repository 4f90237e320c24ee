"""Rows of a run -> curves by epoch, as coordinates for the SVG elements of ``report.html``.

``report.html.jinja`` draws them. Colours and dashes are CSS classes, so that the charts follow
the light or dark theme. The same rows give the same coordinates.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 72, WIDTH - 12, 10, HEIGHT - 40
_PANEL_GAP = 18
_MARKED_EPOCHS = 12
_MOST_TICKS = 6

Row = Mapping[str, Any]
Scale = Callable[[float], float]
Ticks = list[tuple[float, str]]

_ERRORS = {
    "train_top1_error": ("training, top-1", "train"),
    "train_top5_error": ("training, top-5", "train dashed"),
    "val_top1_error": ("validation, top-1", "val"),
    "val_top5_error": ("validation, top-5", "val dashed"),
}
_LOSSES = {"train_loss": ("training", "train"), "val_loss": ("validation", "val")}
_CHARTS: dict[str, list[tuple[str, float, dict[str, tuple[str, str]]]]] = {
    "Loss": [("cross-entropy (nats)", 1, _LOSSES)],
    "Error": [("error (%)", 1, _ERRORS)],
    "Learning rate": [("learning rate", 1, {"lr": ("rate", "train")})],
    "Speed and waiting": [
        ("images/s", 1, {"images_per_second": ("images/s", "train")}),
        ("wait for data (%)", 100, {"wait_share": ("wait", "train")}),
    ],
}
"""Title -> panels, one above the other: unit, factor, and column -> label and CSS classes."""


@dataclass(frozen=True)
class Reference:
    """Another run to compare with, drawn in grey: its name, and column -> value by epoch."""

    name: str
    values: Mapping[str, Sequence[float]]


def published_reference() -> Reference:
    """The epoch log of a published ImageNet training: losses in nats, errors in percent.

    One tower, batch 256, SGD 0.01, divided by ten every 30 epochs, 100 epochs in all.
    """
    with Path(__file__).with_name("published_curve.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in rows[0] if name != "epoch"]
    values = {name: [float(row[name]) for row in rows] for name in columns}
    return Reference("danipari/alexnet, 2025", values)


def number(row: Row, key: str) -> float:
    """The value of ``key``, NaN where there is none."""
    value = row.get(key)
    return math.nan if value is None else float(value)


def finite(rows: Sequence[Row], key: str) -> list[float]:
    """The finite values of ``key``, in the order of ``rows``."""
    return [value for row in rows if math.isfinite(value := number(row, key))]


def charts(
    rows: Sequence[Row], best: Row | None, reference: Reference | None = None
) -> list[dict[str, Any]]:
    """One chart each for loss, error, learning rate, speed and waiting.

    ``rows`` has one dict per epoch, at least one (see ``write_report``); ``best`` is the row
    whose validation error is marked. ``reference`` is drawn up to the last epoch of ``rows``.
    A chart has title, ticks of the epochs, and panels: unit, top and bottom (px), ticks,
    curves (label, style, path, points) and the point of the best epoch.
    """
    first, last = number(rows[0], "epoch"), number(rows[-1], "epoch")
    half = max((last - first) / 2 * 1.03, 0.5)
    x = _scale((first + last) / 2 - half, (first + last) / 2 + half, LEFT, RIGHT)
    ticks = [(x(tick), f"{tick:g}") for tick in _multiples(first, last) if tick.is_integer()]
    found = []
    for title, plans in _CHARTS.items():
        height = (BOTTOM - TOP - _PANEL_GAP * (len(plans) - 1)) / len(plans)
        panels = []
        for index, (unit, factor, columns) in enumerate(plans):
            top = TOP + index * (height + _PANEL_GAP)
            lines = _lines(columns, factor, rows, reference)
            y, marks = _vertical(lines, top + height, top, "rate" in unit)
            panel = {"unit": unit, "top": top, "bottom": top + height, "ticks": marks}
            panel["curves"] = [_curve(line, x, y, len(rows)) for line in lines]
            marked = best is not None and "val_top1_error" in columns
            error = finite([best], "val_top1_error") if marked and best is not None else []
            panel["best"] = (x(number(best or {}, "epoch")), y(error[0])) if error else None
            panels.append(panel)
        found.append({"title": title, "panels": panels, "ticks": ticks})
    return found


@dataclass(frozen=True)
class _Line:
    label: str
    style: str
    points: list[tuple[float, float]]


def _lines(
    columns: Mapping[str, tuple[str, str]],
    factor: float,
    rows: Sequence[Row],
    reference: Reference | None,
) -> list[_Line]:
    """What a panel shows, in its own units: the reference first, under the run's curves."""
    epochs = [number(row, "epoch") for row in rows]
    lines = []
    for key, (label, style) in columns.items() if reference is not None else ():
        values = list(reference.values.get(key, ()))[: int(epochs[-1])] if reference else []
        points = [(float(epoch), value) for epoch, value in enumerate(values, 1)]
        if reference is not None and points:
            lines.append(_Line(f"{label}: {reference.name}", f"reference {style}", points))
    for key, (label, style) in columns.items():
        if finite(rows, key):
            measured = [number(row, key) * factor for row in rows]
            lines.append(_Line(label, style, list(zip(epochs, measured, strict=True))))
    return lines


def _curve(line: _Line, x: Scale, y: Scale, epochs: int) -> dict[str, Any]:
    """A line in pixels: its SVG path, interrupted where a value is missing, and markers."""
    path, command = "", "M"
    placed = [(x(epoch), y(value)) for epoch, value in line.points]
    for across, down in placed:
        missing = math.isnan(down)
        path += "" if missing else f"{command}{across:g} {down:g}"
        command = "M" if missing else "L"
    marked = epochs <= _MARKED_EPOCHS and not line.style.startswith("reference")
    points = [point for point in placed if marked and not math.isnan(point[1])]
    return {"label": line.label, "style": line.style, "path": path, "points": points}


def _vertical(
    lines: Sequence[_Line], bottom: float, top: float, may_be_logarithmic: bool
) -> tuple[Scale, Ticks]:
    """The scale of an axis and its ticks: from zero, except for rates that fall by factors."""
    values = [value for line in lines for _, value in line.points if math.isfinite(value)]
    if may_be_logarithmic and _falls_in_steps(values):
        low, high = math.log10(min(values)), math.log10(max(values))
        room = 0.06 * (high - low)
        scale = _scale(low - room, high + room, bottom, top)
        powers = range(math.ceil(low - room), math.floor(high + room) + 1)
        ticks = [(scale(power), f"{10.0**power:g}") for power in powers]
        return lambda value: scale(math.log10(value) if value > 0 else math.nan), ticks
    limit = 1.08 * max(values, default=0.0) or 1.0
    linear = _scale(0.0, limit, bottom, top)
    return linear, [(linear(tick), f"{tick:,.6g}") for tick in _multiples(0.0, limit)]


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    """The function that takes ``low`` to ``start`` and ``high`` to ``end`` (0.1 px); NaN stays."""
    return lambda value: round(start + (value - low) / (high - low) * (end - start), 1)


def _multiples(low: float, high: float) -> list[float]:
    """At most seven values between the two: multiples of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    raw = (high - low) / _MOST_TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _falls_in_steps(values: Sequence[float]) -> bool:
    """True where values fall in few large steps, which only a logarithmic axis shows."""
    few = len(set(values)) <= max(2, len(values) // 4)
    return len(values) > 1 and few and min(values) > 0 and max(values) / min(values) >= 8
