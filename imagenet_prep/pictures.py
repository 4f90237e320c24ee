"""Pictures of a data set for people: values in -> PNG bytes out.

Drawn with matplotlib's own canvas object, so that nothing global is touched and no
display is needed. Units: 0-255 levels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.artifacts import Stats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 100
_FONT = "DejaVu Sans"  # comes with matplotlib
_TITLE_LETTERS = 24
_STEPS = range(-3, 4)
_CHANNELS = "RGB"


def contact_sheet(
    images: Sequence[NDArray[np.uint8]], titles: Sequence[str], columns: int = 8
) -> bytes:
    """Pictures (H, W, 3) uint8 with a title under each -> one PNG, ``columns`` to a row.

    Long titles are cut; letters that the font lacks become a box. Raises ValueError when
    there is no picture or not one title for each.
    """
    if not images or len(images) != len(titles):
        raise ValueError(f"{len(images)} pictures and {len(titles)} titles")
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    figure = _figure(1.75 * columns, 2.0 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, title in zip(axes, images, titles, strict=False):
        axis.imshow(image)
        # Below the picture, in the axis's own units: 0 is its lower edge.
        _write(axis, 0.5, -0.04, title, size=8, ha="center", va="top")
    figure.subplots_adjust(0.01, 0.5 / (2.0 * rows) * 0.6, 0.99, 0.995, wspace=0.06, hspace=0.14)
    return _png(figure)


def stats_picture(stats: Stats, example: NDArray[np.uint8], lighting: float = 0.1) -> bytes:
    """Statistics and one picture (S, S, 3) uint8 -> a PNG that shows what they mean.

    The mean image; its deviation from its channel means, amplified; the three directions
    of colour with their standard deviations, largest first; and ``example`` with the
    shifts that training adds (Krizhevsky et al., 2012), -3 to +3 standard deviations of
    the noise, which is ``lighting`` times the data's along each direction.
    """
    figure = _figure(13, 10)
    parts: Any = figure.subfigures(2, 1, height_ratios=[4.2, 5.8])
    above, below = parts
    left, middle, right = above.subplots(1, 3, width_ratios=[1, 1, 1.45])
    above.subplots_adjust(0.02, 0.03, 0.98, 0.82, wspace=0.06)
    count = f"{stats.count:,} picture{'s' if stats.count != 1 else ''}"
    size = f"{stats.size_px} × {stats.size_px} pixels"
    above.suptitle(f"{count} of {size}", x=0.02, y=0.97, ha="left", size=15, weight="bold")
    _draw_means(left, middle, stats)
    _draw_directions(right, stats)
    _draw_lighting(below, stats, example, lighting)
    return _png(figure)


def _draw_means(left: Axes, right: Axes, stats: Stats) -> None:
    mean = stats.mean.astype(np.float64)
    left.imshow(_levels(mean))
    values = ", ".join(
        f"{name} {value:.1f}" for name, value in zip(_CHANNELS, stats.channel_mean, strict=True)
    )
    left.set_title(f"Mean image\n{values}", size=10, loc="left")
    deviation = mean - stats.channel_mean
    factor = _amplification(float(np.abs(deviation).max()))
    right.imshow(_levels(128 + factor * deviation))
    right.set_title(
        f"Mean image less its channel means, × {factor:g}\n"
        f"from {_signed(deviation.min(), 1)} to {_signed(deviation.max(), 1)} levels around grey",
        size=10,
        loc="left",
    )
    for axis in (left, right):
        axis.set_axis_off()


def _amplification(largest: float) -> float:
    """The largest of 1, 2, 5, 10, ... 100 that keeps ``largest`` levels inside 0-255."""
    allowed = [factor for factor in (1, 2, 5, 10, 20, 50, 100) if factor * largest <= 127]
    return float(max(allowed, default=1))


def _draw_directions(axis: Axes, stats: Stats) -> None:
    """A strip per direction, the mean colour at -3 to +3 standard deviations along it."""
    axis.set_title(
        "Directions of colour\nthe mean colour at −3 … +3 standard deviations (sd) along each",
        size=10,
        loc="left",
    )
    offsets = np.linspace(_STEPS[0], _STEPS[-1], 241)
    for row, direction in enumerate((2, 1, 0)):
        vector, stdev = stats.eigenvectors[:, direction], stats.eigenstdev[direction]
        strip = stats.channel_mean + offsets[:, None] * stdev * vector
        place = (_STEPS[0], _STEPS[-1], row + 0.62, row)
        axis.imshow(_levels(strip)[None], extent=place, aspect="auto")
        parts = "  ".join(
            f"{_signed(value, 3)} {name}" for name, value in zip(_CHANNELS, vector, strict=True)
        )
        axis.text(-3, row + 0.66, f"sd {stdev:.2f} levels", size=10, va="top", weight="bold")
        axis.text(3, row + 0.66, parts, size=10, va="top", ha="right")
    axis.set_xlim(_STEPS[0], _STEPS[-1])
    axis.set_ylim(2.9, 0)
    axis.set_axis_off()


def _draw_lighting(figure: Any, stats: Stats, example: NDArray[np.uint8], lighting: float) -> None:
    """``example`` shifted along each direction: a row per direction, a column per step."""
    figure.suptitle(
        f"Lighting: one picture at −3 … +3 sd of the noise that training adds "
        f"({lighting:g} × the sd of each direction)",
        x=0.02,
        y=0.985,
        ha="left",
        size=12,
        weight="bold",
    )
    axes = figure.subplots(3, len(_STEPS))
    figure.subplots_adjust(0.075, 0.01, 0.98, 0.89, wspace=0.04, hspace=0.04)
    for row, direction in zip(axes, (2, 1, 0), strict=True):
        vector = stats.eigenvectors[:, direction]
        noise = lighting * stats.eigenstdev[direction]
        for axis, step in zip(row, _STEPS, strict=True):
            axis.imshow(_levels(example + step * noise * vector))
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_frame_on(False)
        row[0].set_ylabel(
            f"1 sd =\n{noise:.1f} levels", size=10, rotation=0, ha="right", va="center", labelpad=6
        )
    for axis, step in zip(axes[0], _STEPS, strict=True):
        label = "unchanged" if step == 0 else f"{_signed(step, 0)} sd"
        axis.set_title(label, size=10)


def _signed(value: float, decimals: int) -> str:
    """A figure with its sign, a minus as long as the plus."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def _levels(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Any levels -> uint8, rounded and clipped."""
    levels: NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return levels


def _figure(width_in: float, height_in: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), dpi=_DPI, facecolor="white")


def _write(axis: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Somebody's own words: cut, never taken for mathematics, missing letters as boxes."""
    from matplotlib.font_manager import findfont, get_font

    if len(text) > _TITLE_LETTERS:
        text = text[: _TITLE_LETTERS - 1] + "…"
    font = get_font(findfont(_FONT))
    shown = "".join(
        letter if letter.isprintable() and font.get_char_index(ord(letter)) else "□"
        for letter in text
    )
    axis.text(x, y, shown, transform=axis.transAxes, parse_math=False, family=_FONT, **style)


def _png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
