"""The speedup as an image: hours of an ImageNet epoch for each variant, and published ones."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from tools.bench.speedup_plan import IMAGENET_SAMPLES, Measured, Published, duration

_DOT, _OTHER, _MUTED, _GRID = "#2f6fd0", "#b0612a", "#5f6b7a", "#dfe3e8"


def draw(found: Sequence[Measured], where: str, published: Sequence[Published]) -> bytes:
    """Figures, the machine in words, and published figures of other machines -> a PNG.

    The same figures give the same bytes. Hours are on a logarithmic axis, which both parts share.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    look: dict[Any, Any] = {"font.size": 10, "font.family": "DejaVu Sans"}
    buffer = io.BytesIO()
    with mpl.rc_context(look):
        rows = (len(found), len(published))
        figure = Figure(figsize=(11, 2.4 + 0.45 * sum(rows)), layout="constrained", dpi=100)
        ours, theirs = figure.subplots(2, 1, sharex=True, height_ratios=rows)
        for place, one in enumerate(found):
            hours = one.seconds / 3600
            ours.plot([one.least_s / 3600, one.most_s / 3600], [place, place], color=_DOT)
            ours.plot(hours, place, "o", color=_DOT)
            ours.annotate(f"{duration(one.seconds)}   ×{one.times:.3g}", (hours, place),
                          (9, 6), textcoords="offset points", fontsize=9)  # fmt: skip
        ours.set_yticks(range(rows[0]), [f"{one.name}\n{one.change}" for one in found], fontsize=8)
        ours.set_title(f"here, extrapolated from some hundred images ({where})", fontsize=9)
        for place, other in enumerate(published):
            theirs.plot(other.hours, place, "o", color=_OTHER)
            theirs.annotate(f"{other.hours:g} h", (other.hours, place), (9, 6),
                            textcoords="offset points", fontsize=9)  # fmt: skip
        names = [f"{one.change}\n{one.hardware}" for one in published]
        theirs.set_yticks(range(rows[1]), names, fontsize=8)
        theirs.set_title("published by a tutorial, on its own machines", fontsize=9)
        hours_of = [one.seconds / 3600 for one in found] + [one.hours for one in published]
        theirs.set_xscale("log")
        theirs.set_xlim(min(hours_of) / 2, max(hours_of) * 3)
        theirs.set_xlabel(f"hours for {IMAGENET_SAMPLES:,} images (a line: all laps)")
        theirs.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        for axes in (ours, theirs):
            axes.invert_yaxis()
            axes.margins(y=0.12)
            axes.grid(True, axis="x", color=_GRID, linewidth=0.7)
            axes.set_axisbelow(True)
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
        figure.suptitle("An epoch of ImageNet with AlexNet, one change at a time", x=0.01,
                        ha="left", fontsize=11, color=_MUTED)  # fmt: skip
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
