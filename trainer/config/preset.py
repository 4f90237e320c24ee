"""A preset: settings with what they are for and what to expect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.config.run_config import RunConfig


@dataclass(frozen=True)
class Preset:
    """Settings, a line about their purpose, and details.

    ``prepare`` and ``command`` are commands; ``result`` is the expected result with its source,
    ``notes`` the choices and their reasons.
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
"""The optimiser of the paper (Krizhevsky, Sutskever, Hinton 2012, section 5)."""


def named(name: str, settings: dict[str, Any], **words: str) -> tuple[str, Preset]:
    """The preset ``name`` with its name in its settings, and default commands."""
    usual = {
        "prepare": "imagenet-prep prepare --src raw",
        "command": f"trainer run --beton train.beton --preset {name}",
    }
    return name, Preset(RunConfig(preset=name, **settings), **(usual | words))
