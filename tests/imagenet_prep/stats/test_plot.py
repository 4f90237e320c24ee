"""The images for people: whole PNGs, drawn from what was given, without side effects."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imagenet_prep.dataset.statistics import Stats
from imagenet_prep.stats import moments as stats
from imagenet_prep.stats import plot


def opened(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return np.asarray(image.convert("RGB"))


def plain(level: int, colour: int) -> NDArray[np.uint8]:
    """A image of one colour channel."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., colour] = level
    return image


def share(image: NDArray[np.uint8], colour: tuple[int, int, int]) -> float:
    """The part of a image that has exactly this colour."""
    return float((image == np.array(colour, np.uint8)).all(axis=-1).mean())


def some_stats() -> tuple[Stats, NDArray[np.uint8]]:
    images = np.random.default_rng(0).integers(40, 200, (6, 32, 32, 3), np.uint8)
    return stats.finish(stats.moments_of(images), ""), images[0]


def test_contact_sheet_shows_every_image() -> None:
    images = [plain(200, 0), plain(200, 1), plain(200, 2)]
    sheet = opened(plot.contact_sheet(images, ["red", "green", "blue"], columns=2))
    for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200)):
        assert share(sheet, colour) > 0.15


def test_titles_are_drawn_as_they_are() -> None:
    """Formulas, letters that the font lacks and very long names: no warning, no error."""
    titles = ["$a_b$", "漢字", "\t\n", "x" * 500, "é"]
    blank = plot.contact_sheet([plain(9, 0)] * 5, [""] * 5)
    assert plot.contact_sheet([plain(9, 0)] * 5, titles) != blank


@pytest.mark.parametrize("titles", [[], ["one", "two"]])
def test_contact_sheet_needs_a_title_for_each_image(titles: list[str]) -> None:
    with pytest.raises(ValueError, match="1 images"):
        plot.contact_sheet([plain(9, 0)], titles)
    with pytest.raises(ValueError, match="0 images"):
        plot.contact_sheet([], [])


def test_statistics_image_is_a_whole_png_and_the_same_each_time() -> None:
    found, example = some_stats()
    png = plot.stats_image(found, example)
    assert opened(png).shape == (2030, 1200, 3)  # upright: a phone shows its whole width
    assert png == plot.stats_image(found, example)


def test_statistics_image_contains_the_example_unchanged() -> None:
    found, _ = some_stats()
    image = opened(plot.stats_image(found, plain(201, 0)))
    # Three of 21 previews are the image itself, each nearly a hundredth of the area.
    assert 0.027 < share(image, (201, 0, 0)) < 0.03


@pytest.mark.parametrize(
    ("level", "shown"), [(0.4, 168), (1, 228), (1.26, 254), (20, 228), (127, 255), (200, 228)]
)
def test_deviation_of_the_mean_is_amplified_as_far_as_it_fits(level: float, shown: int) -> None:
    """A mean whose upper half is ``level`` above grey, and whose lower half is below."""
    mean = np.full((32, 32, 3), 128 - level, np.float32)
    mean[:16] += np.float32(2 * level)
    plain_stats = stats.finish(stats.moments_of(np.zeros((1, 32, 32, 3), np.uint8)), "")
    found = dataclasses.replace(plain_stats, mean=mean, channel_mean=np.full(3, 128.0))
    image = opened(plot.stats_image(found, plain(9, 0)))
    # The middle of the upper half of the second image, above on the right.
    assert abs(int(image[300, 900, 0]) - shown) <= 1


def test_statistics_of_one_colour_can_be_drawn() -> None:
    image = plain(80, 1)
    found = stats.finish(stats.moments_of(image[None]), "")
    assert share(opened(plot.stats_image(found, image)), (0, 80, 0)) > 0.3
