"""Pictures with what a network said of them: for the report, and as a PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from imagenet_prep.dataset.classes import Classes
from imagenet_prep.dataset.shards import Betons, find_betons
from trainer.inference.judge import Judged
from trainer.loader.tables import inspect_betons

THUMB_PX = 112
_LINE_PX = 16
_FRAME_PX = 5
_RIGHT, _WRONG, _PLAIN = "#1a7f37", "#c62828", "#1f4e99"
_RAW = 1  # FFCV's mode of a sample that is stored as pixels


@dataclass(frozen=True, eq=False)
class Example:
    """A picture (S, S, 3) uint8 with its true class ("" if unknown), the predicted class, the
    probability of that, 0 to 1, and whether it was recognised (True where nobody knows): two
    classes may have one name."""

    pixels: NDArray[np.uint8]
    truth: str
    predicted: str
    confidence: float
    right: bool = True


@dataclass(frozen=True, eq=False)
class Tile:
    """A picture of a grid (S, S, 3) uint8 with lines of text under it; ``right`` marks it as
    recognised or not, None: nobody knows."""

    pixels: NDArray[np.uint8]
    lines: tuple[str, ...]
    right: bool | None = None


def best_and_worst(judged: Judged, count: int) -> tuple[list[int], list[int]]:
    """Rows of ``judged``: the surest right answers, and the mistakes that gave the true class
    the least; ``count`` of each at most."""
    right = (judged.labels == judged.predicted).numpy()
    surest = np.argsort(-judged.truth.numpy(), kind="stable")
    best = [int(row) for row in surest if right[row]][:count]
    worst = [int(row) for row in surest[::-1] if not right[row]][:count]
    return best, worst


def examples(
    beton: Path | Betons, judged: Judged, rows: Sequence[int], classes: Classes
) -> list[Example]:
    """Those rows of ``judged`` with their pictures from ``beton``."""
    pictures = read_pictures(beton, [int(judged.indices[row]) for row in rows])
    return [
        Example(
            pixels,
            classes.title(int(judged.labels[row])),
            classes.title(int(judged.predicted[row])),
            float(judged.confidence[row]),
            int(judged.labels[row]) == int(judged.predicted[row]),
        )
        for pixels, row in zip(pictures, rows, strict=True)
    ]


def read_pictures(beton: Path | Betons, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
    """The samples at those places of a data set, (S, S, 3) uint8 each."""
    betons = beton if isinstance(beton, Betons) else find_betons(beton)
    info = inspect_betons(betons.paths)
    found = []
    for index in indices:
        offset, size, mode, number = info.extents[index].tolist()
        with betons.paths[number].open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if mode == _RAW:
            side = info.side_px
            found.append(np.frombuffer(data, np.uint8).reshape(side, side, 3).copy())
        else:
            with Image.open(io.BytesIO(data)) as image:
                found.append(np.asarray(image.convert("RGB")))
    return found


def gallery_card(title: str, note: str, shown: Sequence[Example]) -> str:
    """A card of ``report.html`` with the pictures and, under each, what was said."""
    figures = []
    for one in shown:
        said = f"{escape(one.predicted)} {one.confidence:.0%}"
        truth = "" if one.right else f"<br>is {escape(one.truth)}"
        figures.append(
            f'<figure><img alt="{escape(one.truth)}" width="{THUMB_PX}" height="{THUMB_PX}" '
            f'src="data:image/jpeg;base64,{_thumb_base64(one.pixels)}">'
            f"<figcaption>{said}{truth}</figcaption></figure>"
        )
    return (
        f'<section class="card"><h2>{escape(title)}</h2><div class="gallery">{"".join(figures)}'
        f'</div><p class="note">{escape(note)}</p></section>'
    )


def _thumb(pixels: NDArray[np.uint8]) -> Image.Image:
    size = (THUMB_PX, THUMB_PX)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def _thumb_base64(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    _thumb(pixels).save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def grid_picture(tiles: Sequence[Tile]) -> bytes:
    """Tiles -> one PNG, about as wide as high: right ones framed in green, wrong ones in red."""
    lines = max((len(tile.lines) for tile in tiles), default=0)
    cell, wide = 2 * THUMB_PX, 2 * THUMB_PX + 12
    high = cell + 12 + lines * _LINE_PX
    columns = max(1, min(len(tiles), round((len(tiles) * high / wide) ** 0.5)))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * wide + 12, rows * high + 12), "white")
    draw: Any = ImageDraw.Draw(sheet)
    font = _font()
    for index, tile in enumerate(tiles):
        x, y = 12 + index % columns * wide, 12 + index // columns * high
        picture = Image.fromarray(tile.pixels).resize((cell, cell), Image.Resampling.BICUBIC)
        sheet.paste(picture, (x, y))
        colour = _PLAIN if tile.right is None else _RIGHT if tile.right else _WRONG
        if tile.right is not None:
            box = (x, y, x + cell - 1, y + cell - 1)
            draw.rectangle(box, outline=colour, width=_FRAME_PX)
        for number, line in enumerate(tile.lines):
            at = (x, y + cell + 2 + number * _LINE_PX)
            text = _fitting(line, draw, font, cell)
            draw.text(at, text, fill="black" if number else colour, font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def grid_of(beton: Path, judged: Judged, classes: Classes, count: int = 36) -> list[Tile]:
    """``count`` pictures of an evaluation at most: two thirds spread evenly over the set, as
    often right as the network is, then the mistakes that gave the true class the least."""
    total = len(judged.labels)
    spread = min(total, count - count // 3)
    rows = [number * total // spread for number in range(spread)]
    worst = best_and_worst(judged, 2 * count)[1]
    rows += [row for row in worst if row not in rows][: count - len(rows)]
    return [
        Tile(
            one.pixels,
            (f"{'✓' if one.right else '✗'} {one.truth}", f"{one.confidence:.0%} {one.predicted}"),
            one.right,
        )
        for one in examples(beton, judged, rows, classes)
    ]


def _font() -> Any:
    """DejaVu Sans, which comes with matplotlib: names of classes are in any language."""
    import matplotlib as mpl

    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), 12)


def _fitting(line: str, draw: Any, font: Any, width_px: int) -> str:
    """``line`` cut so that it is no wider."""
    if draw.textlength(line, font=font) <= width_px:
        return line
    while line and draw.textlength(line + "…", font=font) > width_px:
        line = line[:-1]
    return line + "…"
