"""What a recipe is made of: its settings and the words around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.config.run_config import RunConfig


@dataclass(frozen=True)
class Preset:
    """A recipe: its settings, a line that says what it is for, and the whole text.

    ``prepare`` and ``command`` are what to type; ``result`` says what came of it and where
    that is known from; ``notes`` what was chosen, and why.
    """

    config: RunConfig
    summary: str
    prepare: str
    command: str
    time: str
    result: str
    notes: str = ""


NOT_RUN = "Not run here."

SGD_2012: dict[str, Any] = {
    "batch_size": 128,
    "optimizer": "sgd",
    "lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "warmup_epochs": 0.0,
    "label_smoothing": 0.0,
    "clip_norm": 0.0,
    "checkpoint_every": 2000,
}
"""Learning as the paper describes it (Krizhevsky, Sutskever, Hinton 2012, section 5)."""


def named(name: str, settings: dict[str, Any], **words: str) -> tuple[str, Preset]:
    """The recipe ``name`` with its own name in its settings; the usual commands unless given."""
    usual = {
        "prepare": "imagenet-prep prepare --src raw",
        "command": f"trainer run --beton train.beton --preset {name}",
    }
    return name, Preset(RunConfig(preset=name, **settings), **(usual | words))
