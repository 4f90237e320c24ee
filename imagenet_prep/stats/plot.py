"""Images of a data set for people: values in -> PNG bytes out.

Drawn with matplotlib's own canvas object, so that nothing global is touched and no
display is needed. Units: 0-255 levels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.dataset.statistics import Stats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 100
_FONT = "DejaVu Sans"  # comes with matplotlib
_TITLE_LETTERS = 24
# The plot of statistics: upright, with text that is readable on a phone.
_WIDTH_IN, _HEIGHT_IN, _MARGIN_IN = 6.0, 10.15, 0.2
_STATS_DPI = 200
_STEPS = range(-3, 4)
_CHANNELS = "RGB"


def contact_sheet(
    images: Sequence[NDArray[np.uint8]], titles: Sequence[str], columns: int = 8
) -> bytes:
    """Images (H, W, 3) uint8 with a title under each -> one PNG, ``columns`` to a row.

    Long titles are cut; letters that the font lacks become a box. Raises ValueError when
    there is no image or not one title for each.
    """
    if not images or len(images) != len(titles):
        raise ValueError(f"{len(images)} images and {len(titles)} titles")
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    figure = _figure(1.75 * columns, 2.0 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, title in zip(axes, images, titles, strict=False):
        axis.imshow(image)
        # Below the image, in the axis's own units: 0 is its lower edge.
        _write(axis, 0.5, -0.04, title, size=8, ha="center", va="top")
    figure.subplots_adjust(0.01, 0.5 / (2.0 * rows) * 0.6, 0.99, 0.995, wspace=0.06, hspace=0.14)
    return _png(figure)


def stats_image(stats: Stats, example: NDArray[np.uint8], lighting: float = 0.1) -> bytes:
    """Statistics and one image (S, S, 3) uint8 -> a PNG that shows what they mean.

    The mean image; its deviation from its channel means, amplified, with the scale; the three
    directions of colour with their standard deviations, largest first; and ``example`` with
    the shifts that training adds (Krizhevsky et al., 2012), -3 to +3 standard deviations of
    the noise, which is ``lighting`` times the data's along each direction.
    """
    figure = _figure(_WIDTH_IN, _HEIGHT_IN, _STATS_DPI)
    count = f"{stats.count:,} image{'s' if stats.count != 1 else ''}"
    size = f"{stats.size_px} × {stats.size_px} pixels"
    _text(figure, _MARGIN_IN, 0.12, f"{count} of {size}", size=13, weight="bold")
    _draw_means(figure, stats)
    _draw_directions(figure, stats, top=4.1)
    _draw_lighting(figure, stats, example, lighting, top=6.6)
    return _png(figure)


def _draw_means(figure: Figure, stats: Stats) -> None:
    side = (_WIDTH_IN - 3 * _MARGIN_IN) / 2
    second = 2 * _MARGIN_IN + side
    mean = stats.mean.astype(np.float64)
    deviation = mean - stats.channel_mean
    factor = _amplification(float(np.abs(deviation).max()))
    for left, image, title in (
        (_MARGIN_IN, mean, "Mean image"),
        (second, 128 + factor * deviation, "Its deviation from the channel means"),
    ):
        _text(figure, left, 0.48, title, size=9.5)
        _place(figure, left, 0.7, side, side).imshow(_levels(image))
    below = 0.7 + side + 0.06
    values = zip(("red", "green", "blue"), stats.channel_mean, strict=True)
    means = "   ".join(f"{name} {value:.1f}" for name, value in values)
    _text(figure, _MARGIN_IN, below, f"channel means\n{means}", size=9, linespacing=1.35)
    # What a grey of the image beside it stands for; a colour does so for each channel.
    most = 127 / factor
    greys = np.repeat(np.arange(1, 256, dtype=np.uint8)[None, :, None], 3, axis=2)
    _strip(figure, greys, second, below + 0.03, side, 0.16)
    for share, align in ((0, "left"), (0.5, "center"), (1, "right")):
        value = _signed(most * (2 * share - 1), 0 if most >= 10 else 1) if share != 0.5 else "0"
        unit = " levels" if share == 1 else ""
        _text(figure, second + share * side, below + 0.23, value + unit, size=9, ha=align)


def _amplification(largest: float) -> float:
    """The largest of 0.5, 1, 2, 5, 10, ... 100 that keeps ``largest`` levels inside 0-255."""
    allowed = [factor for factor in (1, 2, 5, 10, 20, 50, 100) if factor * largest <= 127]
    return float(max(allowed, default=0.5))


def _draw_directions(figure: Figure, stats: Stats, top: float) -> None:
    """A strip per direction, the mean colour at -3 to +3 standard deviations along it."""
    _text(figure, _MARGIN_IN, top, "Directions of colour", size=11, weight="bold")
    _text(
        figure,
        _MARGIN_IN,
        top + 0.22,
        "the mean colour at −3 … +3 standard deviations (sd) along each",
        size=9,
    )
    width = _WIDTH_IN - 2 * _MARGIN_IN
    offsets = np.linspace(_STEPS[0], _STEPS[-1], 241)
    for row, direction in enumerate((2, 1, 0)):
        vector, stdev = stats.eigenvectors[:, direction], stats.eigenstdev[direction]
        strip = stats.channel_mean + offsets[:, None] * stdev * vector
        at = top + 0.48 + 0.62 * row
        _strip(figure, _levels(strip)[None], _MARGIN_IN, at, width, 0.32)
        parts = "   ".join(
            f"{_signed(value, 3)} {name}" for name, value in zip(_CHANNELS, vector, strict=True)
        )
        words = f"sd {stdev:.2f} levels"
        _text(figure, _MARGIN_IN, at + 0.36, words, size=9.5, weight="bold")
        _text(figure, _MARGIN_IN + width, at + 0.36, parts, size=9.5, ha="right")


def _draw_lighting(
    figure: Figure, stats: Stats, example: NDArray[np.uint8], lighting: float, top: float
) -> None:
    """``example`` shifted along each direction: a row per direction, a column per step."""
    _text(figure, _MARGIN_IN, top, "Lighting", size=11, weight="bold")
    _text(
        figure,
        _MARGIN_IN,
        top + 0.22,
        f"one image at −3 … +3 sd of training's noise, {lighting:g} × those above; in levels",
        size=9,
    )
    gap = 0.05
    side = (_WIDTH_IN - 2 * _MARGIN_IN + gap) / len(_STEPS) - gap
    for row, direction in enumerate((2, 1, 0)):
        vector = stats.eigenvectors[:, direction]
        noise = lighting * stats.eigenstdev[direction]
        at = top + 0.48 + row * (side + 0.26)
        for column, step in enumerate(_STEPS):
            left = _MARGIN_IN + column * (side + gap)
            shifted = _levels(example + step * noise * vector)
            _place(figure, left, at, side, side).imshow(shifted)
            words = f"{_signed(step * noise, 1)}" if step else "unchanged"
            _text(figure, left + side / 2, at + side + 0.03, words, size=8, ha="center")


def _place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """A bare axis, by inches from the upper left corner of the figure."""
    wide, high = figure.get_size_inches()
    axis = figure.add_axes((left / wide, 1 - (top + height) / high, width / wide, height / high))
    axis.set_axis_off()
    return axis


def _strip(
    figure: Figure, row: NDArray[np.uint8], left: float, top: float, width: float, height: float
) -> None:
    """Colours (1, N, 3) as a bar, with a line around it, because some are as white as paper."""
    axis = _place(figure, left, top, width, height)
    axis.set_axis_on()
    axis.imshow(row, aspect="auto")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color="0.7", linewidth=0.5)


def _text(figure: Figure, left: float, top: float, words: str, **style: Any) -> None:
    """Words whose upper edge is ``top`` inches below that of the figure."""
    wide, high = figure.get_size_inches()
    figure.text(left / wide, 1 - top / high, words, va="top", **style)


def _signed(value: float, decimals: int) -> str:
    """A figure with its sign, a minus as long as the plus."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def _levels(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Any levels -> uint8, rounded and clipped."""
    levels: NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return levels


def _figure(width_in: float, height_in: float, dpi: int = _DPI) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), dpi=dpi, facecolor="white")


def _write(axis: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """A class name: cut, never parsed as mathematics, missing letters as boxes."""
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
