"""Presets and validation of the run's settings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imagenet_prep.core.errors import UsageError
from trainer.config import presets
from trainer.config import run_config as configs
from trainer.network.alexnet import NETWORKS


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_presets_are_valid_and_name_real_networks(name: str) -> None:
    config = presets.preset(name)
    configs.validate(config)
    assert config.preset == name
    assert config.network in NETWORKS
    words = presets.find(name)
    assert words.summary and words.time and words.result
    assert f"--preset {name}" in words.command


def test_options_override_the_preset_and_none_does_not() -> None:
    config = configs.with_options(presets.preset("small"), {"epochs": 3, "lr": None})
    assert (config.epochs, config.lr) == (3, presets.preset("small").lr)


def test_a_shorter_run_has_a_shorter_warm_up_unless_it_is_given() -> None:
    small = presets.preset("small")
    assert configs.with_options(small, {"epochs": 2}).warmup_epochs == 0.5
    assert configs.with_options(small, {"epochs": 40}).warmup_epochs == small.warmup_epochs
    assert configs.with_options(small, {"epochs": 2, "warmup_epochs": 1.5}).warmup_epochs == 1.5


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"epochs": 0}, "epochs"),
        ({"lr": float("nan")}, "lr"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"scale_min": 1.5}, "scale_min"),
        ({"schedule": "zigzag"}, "zigzag"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"momentum": 0.5}, "--momentum does nothing with optimizer adamw"),
        ({"drops": (3, 5)}, "--drops does nothing with schedule linear; add --schedule drops"),
        ({"schedule": "drops"}, "needs the epochs"),
        ({"schedule": "drops", "drops": (9, 5)}, "in order"),
        ({"freeze_epoch": 3}, "--freeze"),
        ({"lighting_epochs": 3}, "--lighting"),
        ({"warmup_epochs": 99.0}, "longer than the run"),
        ({"scaled": True, "mean": "none"}, "around"),
        ({"checkpoint_every": -1}, "checkpoint_every"),
    ],
)
def test_impossible_settings_are_named(options: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        configs.with_options(presets.preset("small"), options)


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="small"):
        presets.preset("huge")


def test_a_config_survives_json() -> None:
    config = presets.preset("paper")
    assert configs.from_dict(json.loads(json.dumps(configs.as_dict(config)))) == config


def test_a_config_of_another_version_is_refused() -> None:
    values = configs.as_dict(presets.preset("paper")) | {"sharpness": 11}
    with pytest.raises(UsageError, match="sharpness"):
        configs.from_dict(values)


def test_a_network_of_an_earlier_version_lacks_settings_that_are_new() -> None:
    stored = configs.as_dict(configs.RunConfig(epochs=3))
    del stored["label_smoothing"]
    with pytest.raises(configs.ConfigError, match="label_smoothing"):
        configs.from_dict(stored)
    assert configs.from_dict(stored, older=True) == configs.RunConfig(epochs=3)
    with pytest.raises(configs.ConfigError, match="strange"):
        configs.from_dict(stored | {"strange": 1}, older=True)


def test_fashion_s_tutorial_sees_levels_of_0_to_1_as_its_author_does() -> None:
    config = presets.preset("tutorial-fashion-mnist")
    assert (config.mean, config.scaled, config.lighting, config.channels) == ("none", False, 0.0, 1)
    assert NETWORKS[config.network].input_scale * 255 == 1.0
    assert NETWORKS[config.network].dropout_after
