"""Images with the predicted classes: for ``report.html``, and as a PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from imagenet_prep.dataset.beton_tables import inspect_betons
from imagenet_prep.dataset.classes import Classes
from imagenet_prep.dataset.shards import Betons, find_betons
from trainer.inference.judge import Judged
from trainer.report.image_grid import grid

_CELL_PX = 224
_BORDER_PX = 12
_LINE_PX = 16
_FRAME_PX = 5
_RIGHT, _WRONG, _UNKNOWN = "#1a7f37", "#c62828", "#1f4e99"
_RAW = 1  # FFCV's mode of a sample that is stored as pixels


@dataclass(frozen=True, eq=False)
class Tile:
    """An image (S, S, 3) uint8 with lines of text under it.

    ``right``: the prediction is correct (True), wrong (False) or the class is unknown (None).
    """

    pixels: NDArray[np.uint8]
    lines: tuple[str, ...]
    right: bool | None = None


def best_and_worst(judged: Judged, count: int) -> tuple[list[int], list[int]]:
    """Rows of ``judged``, at most ``count`` each: the correct predictions with the highest
    probability, and the wrong ones with the lowest probability of the true class."""
    right = (judged.labels == judged.predicted).numpy()
    surest = np.argsort(-judged.truth.numpy(), kind="stable")
    best = [int(row) for row in surest if right[row]][:count]
    worst = [int(row) for row in surest[::-1] if not right[row]][:count]
    return best, worst


def examples(
    beton: Path | Betons, judged: Judged, rows: Sequence[int], classes: Classes
) -> list[Tile]:
    """Rows of ``judged`` -> tiles with the true class, and the predicted one under it."""
    images = read_images(beton, [int(judged.indices[row]) for row in rows])
    tiles = []
    for pixels, row in zip(images, rows, strict=True):
        label, predicted = int(judged.labels[row]), int(judged.predicted[row])
        right = label == predicted
        lines = (
            f"{'✓' if right else '✗'} {classes.title(label)}",
            f"{float(judged.confidence[row]):.0%} {classes.title(predicted)}",
        )
        tiles.append(Tile(pixels, lines, right))
    return tiles


def spread_examples(beton: Path, judged: Judged, classes: Classes, count: int = 36) -> list[Tile]:
    """At most ``count`` images of an evaluation: two thirds spread evenly over the data set,
    then the wrong ones with the lowest probability of the true class."""
    total = len(judged.labels)
    spread = min(total, count - count // 3)
    rows = [number * total // spread for number in range(spread)]
    worst = best_and_worst(judged, 2 * count)[1]
    rows += [row for row in worst if row not in rows][: count - len(rows)]
    return examples(beton, judged, rows, classes)


def read_images(beton: Path | Betons, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
    """The samples with those indices of a data set, (S, S, 3) uint8 each."""
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


def resized(pixels: NDArray[np.uint8], side_px: int) -> Image.Image:
    """Pixels (H, W, 3) -> a square image of that size, bicubic."""
    return Image.fromarray(pixels).resize((side_px, side_px), Image.Resampling.BICUBIC)


def grid_png(tiles: Sequence[Tile]) -> bytes:
    """Tiles -> one PNG, about square; a green frame is correct, a red one wrong."""
    lines = max(len(tile.lines) for tile in tiles)
    wide, high = _CELL_PX + _BORDER_PX, _CELL_PX + _BORDER_PX + lines * _LINE_PX
    columns = max(1, min(len(tiles), round((len(tiles) * high / wide) ** 0.5)))
    font = _font()
    cells = np.stack([_cell(tile, lines, font) for tile in tiles])
    buffer = io.BytesIO()
    Image.fromarray(grid(cells, columns, _BORDER_PX)).save(buffer, "PNG")
    return buffer.getvalue()


def _cell(tile: Tile, lines: int, font: Any) -> NDArray[np.uint8]:
    """A tile with its frame and its text, room for ``lines``."""
    cell = Image.new("RGB", (_CELL_PX, _CELL_PX + lines * _LINE_PX), "white")
    cell.paste(resized(tile.pixels, _CELL_PX), (0, 0))
    draw: Any = ImageDraw.Draw(cell)
    colour = _UNKNOWN if tile.right is None else _RIGHT if tile.right else _WRONG
    if tile.right is not None:
        draw.rectangle((0, 0, _CELL_PX - 1, _CELL_PX - 1), outline=colour, width=_FRAME_PX)
    for number, line in enumerate(tile.lines):
        while line and draw.textlength(line, font=font) > _CELL_PX:
            line = line.removesuffix("…")[:-1] + "…"
        at = (0, _CELL_PX + 2 + number * _LINE_PX)
        draw.text(at, line, fill="black" if number else colour, font=font)
    return np.asarray(cell)


def _font() -> Any:
    """DejaVu Sans, which matplotlib brings: it has the letters of most languages."""
    import matplotlib as mpl

    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), 12)
