"""The speedup as an image: a bar for each variant, seconds for ImageNet from zero on."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from tools.bench.speedup_plan import IMAGENET_SAMPLES, Measured, duration

_BAR, _MUTED, _GRID = "#2f6fd0", "#5f6b7a", "#dfe3e8"


def draw(found: Sequence[Measured], where: str) -> bytes:
    """Figures, and in a word the machine -> a PNG. The same figures give the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    look: dict[Any, Any] = {"font.size": 10, "font.family": "DejaVu Sans"}
    buffer = io.BytesIO()
    with mpl.rc_context(look):
        figure = Figure(figsize=(11, 1.6 + 0.5 * len(found)), layout="constrained", dpi=100)
        axes = figure.subplots()
        places = range(len(found))
        seconds = [one.seconds for one in found]
        axes.barh(places, seconds, color=_BAR, height=0.62)
        for place, one in zip(places, found, strict=True):
            axes.plot([one.least_s, one.most_s], [place, place], color="black", linewidth=1)
            words = f"  {duration(one.seconds)}   ×{one.times:.3g}   ({one.images:,} images)"
            axes.text(one.most_s, place, words, va="center")
        axes.set_yticks(places, [f"{one.name}\n{one.change}" for one in found], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.45 * max(one.most_s for one in found))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel(f"seconds for {IMAGENET_SAMPLES:,} images (a thin line: of any lap)")
        axes.grid(True, axis="x", color=_GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        figure.suptitle(f"An epoch of ImageNet with AlexNet, one change at a time ({where})",
                        x=0.01, ha="left", fontsize=11, color=_MUTED)  # fmt: skip
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
