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
    ("options", "code", "flag"),
    [
        ({"epochs": 0}, "config.range", "--epochs"),
        ({"lr": float("nan")}, "config.range", "--lr"),
        ({"label_smoothing": 1.0}, "config.range", "--label-smoothing"),
        ({"scale_min": 1.5}, "config.range", "--scale-min"),
        ({"checkpoint_every": -1}, "config.range", "--checkpoint-every"),
        ({"schedule": "zigzag"}, "config.choice", "zigzag"),
        ({"decode": "tpu"}, "config.choice", "--decode"),
        ({"resident": "yes"}, "config.choice", "--resident"),
        ({"momentum": 0.5}, "config.no_effect", "--optimizer sgd"),
        ({"drops": (3, 5)}, "config.no_effect", "--schedule drops"),
        ({"freeze_epoch": 3}, "config.no_effect", "--freeze;"),
        ({"lighting": 0.0, "lighting_epochs": 3}, "config.no_effect", "--lighting;"),
        ({"alternate": True, "mirror": False}, "config.no_effect", "--mirror;"),
        ({"schedule": "drops"}, "config.no_drops", "--drops 25,51,79"),
        ({"schedule": "drops", "drops": (9, 5)}, "config.drops", "--drops"),
        ({"warmup_epochs": 99.0}, "config.warmup_too_long", "--warmup-epochs"),
        ({"mean": "grey"}, "config.numbers", "three numbers"),
        ({"std": "1,2"}, "config.numbers", "three numbers"),
        ({"std": "1,0,2"}, "config.std", "above 0"),
        ({"scaled": True, "mean": "none"}, "config.scaled_without_mean", "--scaled"),
    ],
)
def test_invalid_settings_are_named(options: dict[str, Any], code: str, flag: str) -> None:
    with pytest.raises(configs.ConfigError) as refused:
        configs.with_options(presets.preset("small"), options)
    assert refused.value.code == code
    assert flag in refused.value.message


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="small"):
        presets.preset("huge")


def test_a_config_survives_json() -> None:
    config = presets.preset("paper")
    assert configs.from_dict(json.loads(json.dumps(configs.as_dict(config)))) == config


def test_an_older_config_gets_defaults_a_newer_one_is_refused() -> None:
    stored = configs.as_dict(configs.RunConfig(epochs=3))
    del stored["label_smoothing"]
    stored |= {"compile": "on", "lr_per": 0}  # of a version that had them
    assert configs.from_dict(stored) == configs.RunConfig(epochs=3)
    with pytest.raises(configs.ConfigError) as refused:
        configs.from_dict(stored | {"sharpness": 1})
    assert refused.value.code == "config.unknown_setting"
    assert "sharpness" in refused.value.message
    with pytest.raises(configs.ConfigError, match="lr_per"):
        configs.from_dict(stored | {"lr_per": 256})


def test_only_settings_that_change_the_result_are_differences() -> None:
    here = configs.RunConfig(jobs=3, checkpoint_every=7, device="cpu", lr=0.1)
    assert list(configs.differences(configs.RunConfig(), here)) == ["lr 0.0003 there and 0.1 here"]


def test_fashions_tutorial_sees_levels_of_0_to_1() -> None:
    config = presets.preset("tutorial-fashion-mnist")
    assert (config.mean, config.scaled, config.lighting, config.channels) == ("none", False, 0.0, 1)
    assert NETWORKS[config.network].input_scale * 255 == 1.0
    assert NETWORKS[config.network].dropout_after
