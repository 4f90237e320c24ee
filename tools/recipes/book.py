"""The recipes: five published AlexNet tutorials, and our settings for the same data.

A recipe has two sides, ``ours`` and ``theirs`` (the tutorial). Each is a preset of ``trainer run``
with the settings, the preparation of the images, and the reasons. Figures are
top-1 and top-5 accuracy in percent.
"""

from __future__ import annotations

from dataclasses import dataclass

from imagenet_prep.core.errors import UsageError

SIDES = ("ours", "theirs")


@dataclass(frozen=True)
class Side:
    """One way to train: its preset, and the number of views of each image in the evaluation.

    ``claim`` is its published result or our goal, as text. ``top1`` and ``top5`` are the least
    accuracy expected here (None: no expectation).
    """

    preset: str
    claim: str
    views: int = 1
    top1: float | None = None
    top5: float | None = None


@dataclass(frozen=True)
class Recipe:
    """A recipe: its raw data set, both sides, the seeds, and the largest number of images per
    class for training and for validation (None: all)."""

    name: str
    title: str
    raw: str
    ours: Side
    theirs: Side
    seeds: tuple[int, ...] = (0, 1, 2)
    per_class: int | None = None

    def side(self, name: str) -> Side:
        """``ours`` or ``theirs``."""
        return self.ours if name == "ours" else self.theirs


_IMAGENET = Side(
    "tutorial-imagenet",
    "error 39.93 / 17.73 % on ImageNet, five views, after 100 epochs",
    views=5,
)

_ALL = (
    Recipe(
        "cat-fish",
        "cats and fish",
        "cat-fish",
        ours=Side("cat-fish", "95 %, each of five seeds", top1=95.0),
        theirs=Side("tutorial-cat-fish", "70-73 %; most runs predict one class only"),
        seeds=(0, 1, 2, 3, 4),
    ),
    Recipe(
        "tiny-imagenet",
        "Tiny ImageNet",
        "tiny-imagenet",
        ours=Side("tiny-imagenet", "42 % top-1, 67 % top-5", top1=42.0, top5=67.0),
        theirs=Side("tutorial-tiny-imagenet", "31.75 % top-1, 58.76 % top-5"),
    ),
    Recipe(
        "imagenette",
        "ImageNet, rehearsed on Imagenette",
        "imagenette",
        ours=Side("imagenette", "85 % top-1 (best published AlexNet: 79 %)", top1=85.0),
        theirs=_IMAGENET,
    ),
    Recipe(
        "imagenet",
        "ImageNet (ILSVRC2012)",
        "imagenet",
        ours=Side("best", "unknown"),
        theirs=_IMAGENET,
        seeds=(0,),
    ),
    Recipe(
        "fashion-mnist",
        "FashionMNIST",
        "fashion-mnist",
        ours=Side("fashion-mnist", "92.2 % in 10 epochs at most", top1=92.2),
        theirs=Side("tutorial-fashion-mnist", "90.47 %, best 91.35 %"),
    ),
    Recipe(
        "cats-dogs",
        "cats and dogs",
        "cats-dogs",
        ours=Side("cats-dogs", "88 % from 2,000 images", top1=88.0),
        theirs=Side("tutorial-cats-dogs", "52-56 % after 10 epochs"),
        per_class=1000,
    ),
)

RECIPES = {recipe.name: recipe for recipe in _ALL}


def find(name: str) -> Recipe:
    """The named recipe; UsageError for an unknown name."""
    if name not in RECIPES:
        raise UsageError(
            "recipe.unknown", f"unknown recipe {name!r}; choose from {', '.join(RECIPES)}"
        )
    return RECIPES[name]
