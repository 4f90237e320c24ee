"""Images of a beton, the best and the worst predictions, and the grid of predictions."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from trainer.inference.judge import Judged
from trainer.report.gallery import (
    Tile,
    best_and_worst,
    examples,
    grid_png,
    read_images,
    spread_examples,
)

if TYPE_CHECKING:
    from tests.trainer.conftest import Sample


def judged() -> Judged:
    """Four images: two correct (the second more probable), two wrong (the last one worse)."""
    truth = torch.tensor([0.6, 0.9, 0.2, 0.1])
    return Judged(
        indices=torch.tensor([3, 1, 4, 0]),
        labels=torch.tensor([0, 1, 2, 0]),
        predicted=torch.tensor([0, 1, 1, 2]),
        confidence=torch.tensor([0.6, 0.9, 0.7, 0.8]),
        truth=truth,
        losses=-truth.log(),
        in_top5=torch.ones(4, dtype=torch.bool),
    )


def test_images_of_a_beton_are_its_samples(small_beton: Sample) -> None:
    for index, pixels in zip([5, 0], read_images(small_beton.path, [5, 0]), strict=True):
        difference = np.abs(pixels.astype(int) - small_beton.images[index])
        # The fixture keeps the pixels from before JPEG compression.
        assert pixels.shape == (64, 64, 3)
        assert difference.mean() < 2


def test_the_most_and_the_least_probable_come_first() -> None:
    assert best_and_worst(judged(), 5) == ([1, 0], [3, 2])
    assert best_and_worst(judged(), 1) == ([1], [3])


def test_examples_carry_names_and_pixels(small_beton: Sample) -> None:
    from tests.trainer.conftest import CLASSES

    found = examples(small_beton.path, judged(), [3, 1], CLASSES)
    assert [(tile.lines, tile.right) for tile in found] == [
        (("✗ ant", "80% cat"), False),
        (("✓ bee", "90% bee"), True),
    ]
    expected = read_images(small_beton.path, [0])[0]
    assert np.array_equal(found[0].pixels, expected)


def test_a_grid_has_a_cell_for_each_image_and_cuts_long_names() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    shown = [
        Tile(np.full((64, 64, 3), colour, np.uint8), ("a" * 200 + ".jpg", "90% ant"))
        for colour in colours
    ]
    with Image.open(io.BytesIO(grid_png(shown))) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    for colour in colours:
        share = (np.abs(pixels - colour).max(axis=2) < 3).sum()
        assert share == 224 * 224
    # Long names do not run into the borders.
    assert (pixels[:, :12] == 255).all()
    assert (pixels[:, -12:] == 255).all()


def test_correct_and_wrong_images_differ_by_their_frames() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    frames = {}
    for right in (True, False, None):
        with Image.open(io.BytesIO(grid_png([Tile(grey, ("ant",), right)]))) as image:
            frames[right] = image.convert("RGB").getpixel((14, 100))
    assert frames == {True: (0x1A, 0x7F, 0x37), False: (0xC6, 0x28, 0x28), None: (128, 128, 128)}


def test_examples_are_spread_over_the_set_then_the_worst(
    small_beton: Sample,
) -> None:
    from tests.trainer.conftest import CLASSES

    found = spread_examples(small_beton.path, judged(), CLASSES, 3)
    assert [(tile.lines, tile.right) for tile in found] == [
        (("✓ ant", "60% ant"), True),
        (("✗ cat", "70% bee"), False),
        (("✗ ant", "80% cat"), False),
    ]
    everything = spread_examples(small_beton.path, judged(), CLASSES)
    assert [tile.right for tile in everything] == [True, True, False, False]
