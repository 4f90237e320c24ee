"""RunConfig: every choice of a run as one frozen value, and its validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from imagenet_prep.core.errors import UsageError

SCHEDULES = ("constant", "linear", "cosine", "step", "drops", "plateau")
OPTIMIZERS = ("sgd", "adam", "adamw", "lars")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
COMPILES = ("auto", "on", "off")
MEANS = ("image", "centre", "channel", "none")
LIGHTING_MODES = ("deviation", "variance", "image", "off")
ORDERS = ("shuffle", "pages", "sequential")
GRADIENTS = ("float32", "bfloat16")


class ConfigError(UsageError):
    """A setting that cannot be."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run.

    Learning: ``lr`` is the peak learning rate for pixels of 0-255 levels, for a step of
    ``lr_per`` pictures (0: of however many): see ``schedule.peak_rate``; ``warmup_epochs`` rise
    to it linearly; ``trust`` is LARS's coefficient; ``schedule`` is one of SCHEDULES: ``step``
    divides by ten every ``drop_epochs``, ``drops`` at the epochs in ``drops``, ``plateau`` when
    the validation error has not fallen for ``plateau_patience`` epochs, three times at most.
    Biases learn ``bias_rate`` times as fast and do not decay unless ``decay_biases``.
    ``accumulate`` batches make one step. ``clip_norm`` 0 switches clipping off; ``average`` is
    the decay of the running average of the weights that is evaluated and kept (0: the weights
    themselves). ``freeze`` names layers (``features.0``) that stop learning from epoch
    ``freeze_epoch`` on; ``patience`` above 0 ends the run when the validation error has not
    fallen for that many epochs.

    Pictures: ``channels`` is 3, or 1 for a network that sees them in grey. ``crop_size`` is the
    random crop's side in pixels; ``scale_min`` below 1 draws instead crops of that share of the
    picture's area or more, with sides in ratio 3:4 to 4:3, as other models' recipes do; crops
    are resampled to the network's input size where that differs. ``lighting`` is the standard
    deviation of the colour noise in units of the data set's own along each direction
    (``lighting_mode``: see ``draws.Views``); it is off from epoch ``lighting_epochs`` on (0:
    never off). ``mean`` is what is subtracted: the mean image, its centre, its average per
    channel or nothing; with ``scaled`` the difference is divided by the channels' standard
    deviations. ``order`` is how an epoch goes through the beton.

    ``compile`` trains through a compiled network (``auto``: on CUDA). ``gradients`` is the type
    in which several processes exchange them.

    ``checkpoint_every`` steps make a checkpoint inside an epoch (0: at its end only).
    """

    preset: str = "small"
    network: str = "small"
    channels: int = 3
    epochs: int = 24
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 3e-4
    lr_per: int = 0
    momentum: float = 0.9
    trust: float = 1e-3
    weight_decay: float = 0.05
    schedule: str = "linear"
    warmup_epochs: float = 2.0
    drop_epochs: int = 30
    drops: tuple[int, ...] = ()
    plateau_patience: int = 5
    bias_rate: float = 1.0
    decay_biases: bool = False
    accumulate: int = 1
    freeze: tuple[str, ...] = ()
    freeze_epoch: int = 0
    patience: int = 0
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    average: float = 0.0
    crop_size: int = 227
    scale_min: float = 1.0
    mirror: bool = True
    lighting: float = 0.1
    lighting_mode: str = "deviation"
    lighting_epochs: int = 0
    mean: str = "image"
    scaled: bool = False
    order: str = "shuffle"
    checkpoint_every: int = 0
    seed: int = 0
    gradients: str = "float32"
    device: str = "auto"
    precision: str = "auto"
    compile: str = "auto"
    jobs: int | None = None


_ONLY_WITH: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "drop_epochs": ("schedule", ("step",), "--schedule step"),
    "drops": ("schedule", ("drops",), "--schedule drops"),
    "plateau_patience": ("schedule", ("plateau",), "--schedule plateau"),
    "momentum": ("optimizer", ("sgd", "lars"), "--optimizer sgd or lars"),
    "trust": ("optimizer", ("lars",), "--optimizer lars"),
}
"""Setting -> (the setting it depends on, the values with which it does something, in words)."""


def with_options(config: RunConfig, options: Mapping[str, Any]) -> RunConfig:
    """``config`` with every option that is not None, validated.

    A run with other ``epochs`` warms up for a quarter of them at most, unless that is said
    too. ConfigError also for an option that would change nothing beside the others.
    """
    given = {name: value for name, value in options.items() if value is not None}
    config = replace(config, **given)
    if "epochs" in given and "warmup_epochs" not in given:
        config = replace(config, warmup_epochs=min(config.warmup_epochs, config.epochs / 4))
    validate(config)
    for name, (other, values, words) in _ONLY_WITH.items():
        if name in given and getattr(config, other) not in values:
            raise ConfigError(
                f"--{name.replace('_', '-')} does nothing with {other} {getattr(config, other)}; "
                f"add {words}, or leave it out"
            )
    if "freeze_epoch" in given and not config.freeze:
        raise ConfigError("--freeze-epoch does nothing without --freeze LAYER; add one")
    if "lighting_epochs" in given and config.lighting == 0:
        raise ConfigError("--lighting-epochs does nothing with lighting 0; add --lighting 0.1")
    return config


def validate(config: RunConfig) -> None:
    """ConfigError naming the first setting that cannot be."""
    positive = (
        *("epochs", "batch_size", "lr", "crop_size", "scale_min", "drop_epochs"),
        *("plateau_patience", "accumulate", "bias_rate", "trust"),
    )
    for name in positive:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name} is {getattr(config, name)}; it must be above 0")
    for name in (
        *("weight_decay", "warmup_epochs", "clip_norm", "lighting"),
        *("lighting_epochs", "freeze_epoch", "patience", "checkpoint_every", "lr_per"),
    ):
        if not getattr(config, name) >= 0:
            raise ConfigError(f"{name} is {getattr(config, name)}; it must be at least 0")
    for name in ("momentum", "average", "label_smoothing"):
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}; it must be from 0 to below 1")
    _check_together(config)
    if config.channels not in (1, 3):
        raise ConfigError(f"channels is {config.channels}; it is 1 (grey) or 3 (colour)")
    if config.scale_min > 1:
        raise ConfigError(f"scale_min is {config.scale_min}; it is a share, at most 1")
    for name, allowed in (
        ("optimizer", OPTIMIZERS),
        ("schedule", SCHEDULES),
        ("precision", PRECISIONS),
        ("device", DEVICES),
        ("compile", COMPILES),
        ("mean", MEANS),
        ("lighting_mode", LIGHTING_MODES),
        ("order", ORDERS),
        ("gradients", GRADIENTS),
    ):
        if getattr(config, name) not in allowed:
            raise ConfigError(
                f"{name} is {getattr(config, name)!r}; it is one of {', '.join(allowed)}"
            )


def _check_together(config: RunConfig) -> None:
    """ConfigError where two settings exclude each other."""
    if config.warmup_epochs > config.epochs:
        raise ConfigError(
            f"the warm-up of {config.warmup_epochs:g} epochs is longer than the run's "
            f"{config.epochs}; use a shorter --warmup-epochs"
        )
    if config.schedule == "drops" and not config.drops:
        raise ConfigError("schedule drops needs the epochs; add for example --drops 25,51,79")
    if list(config.drops) != sorted(config.drops) or min(config.drops, default=1) < 1:
        raise ConfigError(f"drops is {config.drops}; epochs above 0, in order")
    if config.scaled and config.mean == "none":
        raise ConfigError("scaled pictures need a mean to be around; use --mean channel or image")


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The config as JSON values."""
    return asdict(config)


def from_dict(values: Mapping[str, Any], *, older: bool = False) -> RunConfig:
    """A config from :func:`as_dict`; ConfigError for unknown or missing names.

    With ``older`` what is missing is as it is by default: to use a network, not to go on.
    """
    names = {field.name for field in fields(RunConfig)}
    if older:
        values = {**as_dict(RunConfig()), **values}
    strange = set(values) ^ names
    if strange:
        raise ConfigError(
            "the stored configuration has other settings than this version: "
            + ", ".join(sorted(strange))
        )
    lists = {name: tuple(values[name]) for name in ("drops", "freeze")}
    return RunConfig(**{**values, **lists})
