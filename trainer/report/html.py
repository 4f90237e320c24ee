"""Rows of a run -> ``report.html``, one file that needs nothing else and no network.

The page follows the reader's light or dark theme. The same values give the same bytes:
there are no dates in it and no random identifiers.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagenet_prep.core.files import publish
from trainer import TRIVIAL_TOP5
from trainer.report.charts import Reference, chart_cards, finite, number
from trainer.report.gallery import Example, gallery_card

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REPORT_NAME = "report.html"
MATRIX_CLASSES = 50
_NUMBERED_CLASSES = 20
_LABEL_CHARACTERS = 24
_OPEN_EPOCHS = 12

_STYLE = """
:root{color-scheme:light dark;--page:#f4f5f7;--card:#fff;--ink:#1d232b;--muted:#5f6b7a;
--line:#dfe3e8;--train:#2f6fd0;--val:#d9660b;--good:#2f6fd0;--bad:#d9660b}
@media (prefers-color-scheme:dark){:root{--page:#121519;--card:#1b2027;--ink:#e6e9ee;
--muted:#98a3b3;--line:#313945;--train:#6aa5ff;--val:#ff9a4d;--good:#3d7be0;--bad:#d9702a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);line-height:1.5;
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:26px;margin:0;line-height:1.25;overflow-wrap:anywhere}
h2{font-size:17px;margin:0 0 10px}
p{margin:6px 0 0}.note,figcaption{color:var(--muted);font-size:13px}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;
margin:18px 0 0;min-width:0}
.grid{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:18px;margin-top:18px}
.grid>.card{margin:0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;
margin-top:18px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 16px}
.tile b{display:block;font-size:22px;font-weight:600;font-variant-numeric:tabular-nums}
.tile span{color:var(--muted);font-size:13px}
svg,img{display:block;max-width:100%;height:auto}.plot svg{width:100%}
.matrix{overflow-x:auto}.matrix text{font-size:12px;fill:currentColor}
.matrix text.on{fill:#fff}.matrix text.axis{fill:var(--muted)}
.scroll{overflow-x:auto}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(112px,1fr));gap:12px}
.gallery figure{margin:0}.gallery figcaption{overflow-wrap:anywhere;line-height:1.3;margin-top:4px}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{color:var(--muted);font-weight:500}tr:last-child td,tr:last-child th{border-bottom:0}
th:first-child,td:first-child,.words td{text-align:left}
.words td,.words th{white-space:normal;overflow-wrap:anywhere;vertical-align:top;text-align:left}
.words th{width:42%;padding-left:0}
.bar{display:inline-block;width:90px;height:8px;border-radius:4px;background:var(--line);
margin-right:8px;vertical-align:1px}.bar i{display:block;height:100%;border-radius:4px;
background:var(--good)}
summary{cursor:pointer;font-size:17px;font-weight:600}details[open] summary{margin-bottom:10px}
@media (max-width:760px){.grid{grid-template-columns:minmax(0,1fr)}}
@media print{body{background:#fff}.card,.tile{break-inside:avoid}}
"""


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


def write_report(
    folder: Path,
    *,
    config: dict[str, Any],
    rows: list[dict[str, Any]],
    classes: Sequence[str],
    kernels: NDArray[np.uint8] | None,
    environment: dict[str, Any],
    confusion: NDArray[np.integer[Any]] | None,
    best: Sequence[Example] = (),
    worst: Sequence[Example] = (),
    reference: Reference | None = None,
) -> Path:
    """Publishes ``folder/report.html`` and returns its path.

    ``rows`` has one dict per epoch: epoch, train_loss, val_loss, train_ and val_
    top1_error and top5_error (percent), images_per_second, wait_share (0-1), lr,
    seconds (of that epoch); what is missing or None is left out, and so are rows whose
    ``kind`` is ``step`` and the top-5 errors of five classes or fewer. ``kernels`` is
    (H, W, 3); ``confusion`` counts pictures, (true class, predicted class), and must be as
    large as ``classes`` (else ValueError). ``best`` and ``worst`` are shown as pictures,
    ``reference`` beside the curves.
    """
    epochs = [row for row in rows if row.get("kind", "epoch") == "epoch"]
    if len(classes) <= TRIVIAL_TOP5:
        epochs = [
            {name: value for name, value in row.items() if "top5" not in name} for row in epochs
        ]
    if confusion is not None and confusion.shape != (len(classes), len(classes)):
        raise ValueError(f"a confusion of shape {confusion.shape} for {len(classes)} classes")
    name = folder.resolve().name
    parts = [_summary(epochs, len(classes))]
    if epochs:
        parts.append(f'<div class="grid">{chart_cards(epochs, _best(epochs)[1], reference)}</div>')
    if kernels is not None:
        parts.append(_kernels(kernels))
    if confusion is not None:
        parts.append(_confusion(confusion, classes))
        parts.append(_per_class(confusion, classes))
    if worst:
        note = "Mistakes that gave the true class the least probability; look for wrong labels."
        parts.append(gallery_card("Worst predictions", note, worst))
    if best:
        parts.append(gallery_card("Best predictions", "The surest right answers.", best))
    if epochs:
        parts.append(_epoch_table(epochs))
    parts.append(
        f'<div class="grid">{_words("Configuration", config)}'
        f"{_words('Environment', environment)}</div>"
    )
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(name)} – training report</title><style>{_STYLE}</style></head>\n"
        f"<body><main><h1>{escape(name)}</h1>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )
    target = folder / REPORT_NAME
    with publish(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def _best(rows: Sequence[Mapping[str, Any]]) -> tuple[str, Mapping[str, Any] | None]:
    """The set to judge by and its row of lowest top-1 error (of several, the last)."""
    part = "val" if finite(rows, "val_top1_error") else "train"
    known = [row for row in rows if math.isfinite(number(row, f"{part}_top1_error"))]

    def error(row: Mapping[str, Any]) -> float:
        return number(row, f"{part}_top1_error")

    return part, min(reversed(known), key=error, default=None)


def _summary(rows: Sequence[Mapping[str, Any]], classes: int) -> str:
    """The sentence under the title and the tiles with the figures that matter."""
    if not rows:
        return '<p class="summary">No epoch has finished yet.</p>'
    part, best = _best(rows)
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
    sentence = (
        f"AlexNet on {classes:,} classes: {errors} error on the {of} set, "
        f"the best at epoch {epoch} of {last}, after {spent} of training at {speed} images/s."
    )
    tiles = (
        (top1, f"best top-1 error ({of})"),
        *([(top5, "top-5 error, same epoch")] if classes > TRIVIAL_TOP5 else []),
        (f"{epoch} / {last}", "best epoch / last epoch"),
        (spent, "time in epochs"),
        (speed, "images/s (median)"),
    )
    cells = "".join(f'<div class="tile"><b>{b}</b><span>{t}</span></div>' for b, t in tiles)
    return f'<p class="summary">{sentence}</p><div class="tiles">{cells}</div>'


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


def _kernels(image: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        '<figure class="card"><h2>First-layer kernels</h2>'
        f'<img alt="The first layer\'s kernels" width="{image.shape[1]}" '
        f'height="{image.shape[0]}" src="data:image/png;base64,{data}">'
        "<figcaption>Each kernel around grey, scaled by its own largest weight.</figcaption>"
        "</figure>"
    )


def _confusion(counts: NDArray[np.integer[Any]], classes: Sequence[str]) -> str:
    """The confusion as a picture of squares, where the classes are few enough to see."""
    size = len(classes)
    if size > MATRIX_CLASSES:
        return (
            '<section class="card"><h2>Confusion</h2><p class="note">A picture of '
            f"{size:,} × {size:,} classes would be too fine to read.</p></section>"
        )
    cell = 34 if size <= _NUMBERED_CLASSES else 16
    names = [_shortened(name) for name in classes]
    margin = 34 + round(7.2 * max(map(len, names), default=0))
    side = cell * size
    marks = [
        f'<text class="axis" x="{margin + side / 2:g}" y="14" text-anchor="middle">predicted</text>'
        f'<text class="axis" transform="translate(14 {margin + side / 2:g}) rotate(-90)" '
        'text-anchor="middle">true class</text>'
    ]
    for index, name in enumerate(names):
        at = margin + cell * (index + 0.5)
        marks.append(
            f'<text x="{margin - 8}" y="{at + 4:g}" text-anchor="end">{escape(name)}</text>'
            f'<text transform="translate({at + 4:g} {margin - 8}) rotate(-90)">'
            f"{escape(name)}</text>"
        )
    for true, row in enumerate(counts.tolist()):
        for predicted, count in enumerate(row):
            if count:
                share = count / sum(row)
                what = f"{classes[true]} taken for {classes[predicted]}: {count:,} ({share:.1%})"
                marks.append(_square(true, predicted, count, share, what, cell, margin, size))
    extent = margin + side + 2
    frame = f'<rect x="{margin}" y="{margin}" width="{side}" height="{side}" fill="none" '
    return (
        '<section class="card"><h2>Confusion</h2><div class="matrix">'
        f'<svg role="img" aria-label="Confusion matrix" viewBox="0 0 {extent} {extent}" '
        f'width="{extent}" height="{extent}">{"".join(marks)}'
        f'{frame}stroke="var(--line)"/></svg></div>'
        '<p class="note">Blue: right, orange: wrong; the deeper, the larger the share of '
        "the true class. Validation pictures; point at a square for its figures.</p></section>"
    )


def _square(
    true: int,
    predicted: int,
    count: int,
    share: float,
    what: str,
    cell: int,
    margin: int,
    size: int,
) -> str:
    """One square of the confusion with its figure and what it says when pointed at."""
    x, y = margin + cell * predicted, margin + cell * true
    # The root lifts the few mistakes of a good network out of the background.
    depth = max(0.06, share**0.6)
    colour = "var(--good)" if true == predicted else "var(--bad)"
    figure = ""
    if size <= _NUMBERED_CLASSES:
        on = ' class="on"' if depth > 0.6 else ""
        figure = (
            f'<text{on} x="{x + cell / 2:g}" y="{y + cell / 2 + 4:g}" '
            f'text-anchor="middle">{count}</text>'
        )
    return (
        f'<g><title>{escape(what)}</title><rect x="{x + 0.5}" y="{y + 0.5}" width="{cell - 1}" '
        f'height="{cell - 1}" fill="{colour}" fill-opacity="{depth:.2f}"/>{figure}</g>'
    )


def _shortened(name: str) -> str:
    return name if len(name) <= _LABEL_CHARACTERS else name[: _LABEL_CHARACTERS - 1] + "…"


def _per_class(counts: NDArray[np.integer[Any]], classes: Sequence[str]) -> str:
    """Accuracy by class, the worst first, with what each is most often taken for."""
    entries = []
    for label, row in enumerate(counts.tolist()):
        total, right = sum(row), row[label]
        share = right / total if total else math.inf
        wrong = [0 if other == label else count for other, count in enumerate(row)]
        most = max(wrong)
        taken = f"{escape(classes[wrong.index(most)])} ({most:,})" if most else "–"
        bar = f'<span class="bar"><i style="width:{100 * share:.0f}%"></i></span>{share:.1%}'
        entries.append(
            (
                share,
                f"<tr><td>{escape(classes[label])}</td><td>{total:,}</td><td>{right:,}</td>"
                f"<td>{bar if total else '–'}</td><td>{taken}</td></tr>",
            )
        )
    body = "".join(line for _, line in sorted(entries, key=lambda entry: entry[0]))
    return (
        f'<details class="card"{" open" if len(classes) <= _NUMBERED_CLASSES else ""}>'
        '<summary>Accuracy by class</summary><div class="scroll"><table><tr><th>class</th>'
        "<th>pictures</th><th>right</th><th>accuracy</th><th>most often taken for</th></tr>"
        f"{body}</table></div></details>"
    )


def _epoch_table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [column for column in _COLUMNS if finite(rows, column[0])]
    head = "".join(f"<th>{title}</th>" for _, title, _, _ in columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{_shown(row, key, form, times)}</td>" for key, _, times, form in columns)
        + "</tr>"
        for row in rows
    )
    return (
        f'<details class="card"{" open" if len(rows) <= _OPEN_EPOCHS else ""}>'
        f'<summary>Epochs</summary><div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
        "</details>"
    )


def _words(title: str, values: Mapping[str, Any]) -> str:
    """A card with ``values`` as a table of two columns, nested dicts with dotted names."""
    body = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(_text(value))}</td></tr>"
        for name, value in _flat(values, "")
    )
    return f'<section class="card words"><h2>{title}</h2><table>{body}</table></section>'


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            if all(isinstance(item, bool) for item in value.values()):
                pairs.append((name, [key for key, item in value.items() if item]))
            else:
                pairs += _flat(value, name + ".")
        else:
            pairs.append((name, value))
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
