"""Folders of several runs -> the settings in which they differ, their best figures, one chart."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.files import read_json
from trainer.report.metrics import read_metrics

_SHOWN = ("val_loss", "val_top1_error", "val_top5_error", "train_loss", "train_top1_error")
_CURVES = (("loss", "train_loss", "val_loss"), ("top-1 error (%)", "train_top1_error",
                                               "val_top1_error"))  # fmt: skip


def compare(folders: Sequence[Path]) -> dict[str, Any]:
    """The runs in ``folders`` -> ``settings`` (name -> one value per run, where they differ) and
    ``runs`` (folder, epochs, best row, seconds of training and every epoch's row).

    ToolError for a folder without a run.
    """
    configs, runs = [], []
    for folder in folders:
        if not (folder / "config.json").exists():
            raise ToolError(
                "compare.no_run", f"{folder}: holds no run; give folders of trainer run"
            )
        stored = read_json(folder / "config.json", "the run's configuration", "train it again")
        rows = [row for row in read_metrics(folder) if row.get("kind") == "epoch"]
        if not rows:
            raise ToolError(
                "compare.no_epoch", f"{folder}: has no finished epoch yet; leave it out"
            )
        configs.append(stored["run"] | {"ranks": stored.get("ranks", 1)})
        key = "val_top1_error" if "val_top1_error" in rows[-1] else "epoch"
        with_key = [row for row in rows if row.get(key) is not None]
        best = min(with_key, key=lambda row: row[key]) if key != "epoch" else rows[-1]
        runs.append(
            {
                "folder": str(folder),
                "epochs": len(rows),
                "best": {name: best[name] for name in ("epoch", *_SHOWN) if name in best},
                "seconds": sum(float(row["seconds"]) for row in rows),
                "rows": rows,
            }
        )
    names = sorted({name for config in configs for name in config})
    settings = {name: [config.get(name) for config in configs] for name in names}
    return {"settings": {k: v for k, v in settings.items() if _differs(v)}, "runs": runs}


def _differs(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values)


def chart_png(runs: Sequence[dict[str, Any]]) -> bytes:
    """The runs of :func:`compare` -> PNG: loss and top-1 error by epoch, training dashed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (label, train, val) in enumerate(_CURVES, 1):
        axes = figure.add_subplot(1, 2, place)
        for number, run in enumerate(runs):
            epochs = [row["epoch"] for row in run["rows"]]
            for name, style in ((train, "--"), (val, "-")):
                if name in run["rows"][-1]:
                    values = [row.get(name) for row in run["rows"]]
                    shown = [float("nan") if value is None else value for value in values]
                    text = run["folder"] if style == "-" or val not in run["rows"][-1] else None
                    axes.plot(epochs, shown, style, color=f"C{number % 10}", label=text)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
