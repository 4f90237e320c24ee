"""Rows of a run -> ``report.html``, one file without links to other files or servers.

The page follows the light or dark theme of the browser. The same values give the same bytes:
there are no dates in it and no random identifiers. ``report.html.jinja`` has its layout.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from imagenet_prep.core.files import publish
from trainer import TRIVIAL_TOP5
from trainer.report import charts
from trainer.report.charts import Reference, finite, number
from trainer.report.gallery import Tile, resized

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REPORT_NAME = "report.html"
_TEMPLATE = "report.html.jinja"
_MATRIX_CLASSES = 50
_MOST_LETTERS = 24
_THUMBNAIL_PX = 112

_COLUMNS = (
    ("epoch", "epoch", 1.0, ".0f"),
    ("train_loss", "train loss", 1.0, ".4f"),
    ("train_top1_error", "train top-1 (%)", 1.0, ".2f"),
    ("train_top5_error", "train top-5 (%)", 1.0, ".2f"),
    ("val_loss", "val loss", 1.0, ".4f"),
    ("val_top1_error", "val top-1 (%)", 1.0, ".2f"),
    ("val_top5_error", "val top-5 (%)", 1.0, ".2f"),
    ("lr", "learning rate", 1.0, ".3g"),
    ("images_per_second", "images/s", 1.0, ",.0f"),
    ("wait_share", "wait (%)", 100.0, ".1f"),
    ("step_share", "steps (%)", 100.0, ".1f"),
    ("seconds", "time (s)", 1.0, ",.1f"),
)
"""Column of the rows, title, factor and format of the table of epochs."""


def write_report(
    folder: Path,
    *,
    config: dict[str, Any],
    rows: list[dict[str, Any]],
    classes: Sequence[str],
    kernels: NDArray[np.uint8] | None,
    environment: dict[str, Any],
    confusion: NDArray[np.integer[Any]] | None,
    best: Sequence[Tile] = (),
    worst: Sequence[Tile] = (),
    reference: Reference | None = None,
) -> Path:
    """Publishes ``folder/report.html`` and returns its path.

    ``rows`` has one dict per epoch: epoch, train_loss, val_loss, train_ and val_
    top1_error and top5_error (percent), images_per_second, wait_share (0-1), lr,
    seconds (of that epoch). Missing values and None are left out, and so are rows whose
    ``kind`` is ``step`` and the top-5 errors of five classes or fewer. ``kernels`` is
    (H, W, 3); ``confusion`` counts images, (true class, predicted class), and must be as
    large as ``classes`` (else ValueError). ``best`` and ``worst`` become galleries;
    ``reference`` is drawn with the curves.
    """
    if confusion is not None and confusion.shape != (len(classes), len(classes)):
        raise ValueError(f"a confusion of shape {confusion.shape} for {len(classes)} classes")
    epochs = [row for row in rows if row.get("kind", "epoch") == "epoch"]
    if len(classes) <= TRIVIAL_TOP5:
        epochs = [{k: value for k, value in row.items() if "top5" not in k} for row in epochs]
    part, best_row = _best(epochs)
    page = _render(
        name=folder.resolve().name,
        summary=_summary(epochs, part, best_row, len(classes)),
        charts=charts.charts(epochs, best_row, reference) if epochs else [],
        kernels=None if kernels is None else _embedded(Image.fromarray(kernels), "png"),
        matrix=None if confusion is None else _matrix(confusion.tolist(), classes),
        by_class=[] if confusion is None else _by_class(confusion.tolist(), classes),
        worst=[_thumbnail(tile) for tile in worst],
        best=[_thumbnail(tile) for tile in best],
        epochs=_epoch_table(epochs),
        config=_flat(config, ""),
        environment=_flat(environment, ""),
    )
    target = folder / REPORT_NAME
    with publish(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def _render(**values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    limits = {name: getattr(charts, name.upper()) for name in ("left", "right", "top", "bottom")}
    size = {"width": charts.WIDTH, "height": charts.HEIGHT}
    return environment.get_template(_TEMPLATE).render(**values, **limits, **size)


def _best(rows: Sequence[Mapping[str, Any]]) -> tuple[str, Mapping[str, Any] | None]:
    """The set to compare, and its row of lowest top-1 error (of several, the last)."""
    part = "val" if finite(rows, "val_top1_error") else "train"
    known = [row for row in rows if math.isfinite(number(row, f"{part}_top1_error"))]

    def error(row: Mapping[str, Any]) -> float:
        return number(row, f"{part}_top1_error")

    return part, min(reversed(known), key=error, default=None)


def _summary(
    rows: Sequence[Mapping[str, Any]], part: str, best: Mapping[str, Any] | None, classes: int
) -> dict[str, Any]:
    """The text under the title, and the tiles with the main figures."""
    if not rows:
        return {"text": "No epoch has finished yet.", "tiles": []}
    of = "validation" if part == "val" else "training"
    speeds = sorted(finite(rows, "images_per_second"))
    speed = f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "–"
    spent = _duration(sum(finite(rows, "seconds")))
    last = _shown(rows[-1], "epoch", ".0f")
    top1, top5 = (
        "–" if best is None else f"{_shown(best, f'{part}_top{k}_error', '.2f')} %" for k in (1, 5)
    )
    epoch = "–" if best is None else _shown(best, "epoch", ".0f")
    errors = f"{top1} top-1 and {top5} top-5" if classes > TRIVIAL_TOP5 else f"{top1} top-1"
    text = (
        f"AlexNet on {classes:,} classes: {errors} error on the {of} set at epoch {epoch} of "
        f"{last}, the best one; {spent} of training at {speed} images/s."
    )
    tiles = [
        (top1, f"best top-1 error ({of})"),
        *([(top5, "top-5 error, same epoch")] if classes > TRIVIAL_TOP5 else []),
        (f"{epoch} / {last}", "best epoch / last epoch"),
        (spent, "time in epochs"),
        (speed, "images/s (median)"),
    ]
    return {"text": text, "tiles": tiles}


def _shown(row: Mapping[str, Any], key: str, form: str, times: float = 1.0) -> str:
    value = number(row, key) * times
    return format(value, form) if math.isfinite(value) else "–"


def _duration(seconds: float) -> str:
    """``75.2`` -> ``1 min 15 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _embedded(image: Image.Image, kind: str) -> str:
    """An image -> a data URL with its PNG or JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _thumbnail(tile: Tile) -> dict[str, Any]:
    source = _embedded(resized(tile.pixels, _THUMBNAIL_PX), "jpeg")
    return {"source": source, "lines": tile.lines, "right": tile.right}


def _matrix(counts: list[list[int]], classes: Sequence[str]) -> dict[str, Any]:
    """The confusion matrix: its cells that are not zero, none where there are too many classes."""
    size = len(classes)
    names = [n if len(n) <= _MOST_LETTERS else n[: _MOST_LETTERS - 1] + "…" for n in classes]
    cells = [
        {
            "row": true,
            "column": predicted,
            "count": count,
            "depth": max(0.06, (count / sum(row)) ** 0.6),  # makes few errors visible
            "title": f"true {classes[true]}, predicted {classes[predicted]}: {count:,} "
            f"({count / sum(row):.1%})",
        }
        for true, row in enumerate(counts)
        for predicted, count in enumerate(row)
        if count and size <= _MATRIX_CLASSES
    ]
    margin = 34 + round(7.2 * max(map(len, names), default=0))
    return {"size": size, "names": names, "cells": cells, "margin": margin}


def _by_class(counts: list[list[int]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Accuracy by class, the worst first, with the class that it is most often confused with."""
    found = []
    for label, row in enumerate(counts):
        total, right = sum(row), row[label]
        share = right / total if total else math.inf
        wrong = [0 if other == label else count for other, count in enumerate(row)]
        most = max(wrong)
        shown = {
            "name": classes[label],
            "total": f"{total:,}",
            "right": f"{right:,}",
            "accuracy": f"{share:.1%}" if total else "",
            "percent": f"{100 * share:.0f}" if total else "",
            "error": f"{classes[wrong.index(most)]} ({most:,})" if most else "–",
        }
        found.append((share, shown))
    return [shown for _, shown in sorted(found, key=lambda entry: entry[0])]


def _epoch_table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Titles, then one line per epoch; columns without a value are left out."""
    columns = [column for column in _COLUMNS if finite(rows, column[0])]
    lines = [[_shown(row, key, form, times) for key, _, times, form in columns] for row in rows]
    return [[title for _, title, _, _ in columns], *lines] if rows else []


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    """Nested settings -> (dotted name, text); of a dict of flags, those that are set."""
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            if all(isinstance(item, bool) for item in value.values()):
                pairs.append((name, _text([key for key, item in value.items() if item])))
            else:
                pairs += _flat(value, name + ".")
        else:
            pairs.append((name, _text(value)))
    return pairs


def _text(value: Any) -> str:
    """A configuration value for people."""
    if value is None or value in ([], {}, ""):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
