"""Presets and validation of the run's settings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imagenet_prep.artifacts import UsageError
from trainer import config as configs
from trainer.model import NETWORKS


@pytest.mark.parametrize("name", sorted(configs.PRESETS))
def test_presets_are_valid_and_name_real_networks(name: str) -> None:
    config = configs.preset(name)
    configs.validate(config)
    assert config.preset == name
    assert config.network in NETWORKS
    assert configs.PRESET_NOTES[name]


def test_options_override_the_preset_and_none_does_not() -> None:
    config = configs.with_options(configs.preset("small"), {"epochs": 3, "lr": None})
    assert (config.epochs, config.lr) == (3, configs.preset("small").lr)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"epochs": 0}, "epochs"),
        ({"lr": float("nan")}, "lr"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"scale_min": 1.5}, "scale_min"),
        ({"schedule": "zigzag"}, "zigzag"),
        ({"clip_norm": -1.0}, "clip_norm"),
    ],
)
def test_impossible_settings_are_named(options: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        configs.with_options(configs.preset("small"), options)


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="small"):
        configs.preset("huge")


def test_a_config_survives_json() -> None:
    config = configs.preset("paper")
    assert configs.from_dict(json.loads(json.dumps(configs.as_dict(config)))) == config


def test_a_config_of_another_version_is_refused() -> None:
    values = configs.as_dict(configs.preset("paper")) | {"sharpness": 11}
    with pytest.raises(UsageError, match="sharpness"):
        configs.from_dict(values)
