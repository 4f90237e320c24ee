"""RunConfig: every choice of a run as one frozen value, its presets and its validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from imagenet_prep.artifacts import UsageError

SCHEDULES = ("constant", "linear", "cosine", "step", "drops", "plateau")
OPTIMIZERS = ("sgd", "adam", "adamw", "lars")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")


class ConfigError(UsageError):
    """A setting that cannot be."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run.

    Learning: ``lr`` is the peak learning rate for pixels of 0-255 levels; ``warmup_epochs``
    rise to it linearly; ``schedule`` is one of SCHEDULES: ``step`` divides by ten every
    ``drop_epochs``, ``drops`` at the epochs in ``drops``, ``plateau`` when the validation
    error has not fallen for ``plateau_patience`` epochs, three times at most. Biases learn
    ``bias_rate`` times as fast and do not decay unless ``decay_biases``. ``accumulate``
    batches make one step. ``clip_norm`` 0 switches clipping off; ``average`` is the decay
    of the running average of the weights that is evaluated and kept (0: the weights
    themselves). ``freeze`` names layers (``features.0``) that stop learning from epoch
    ``freeze_epoch`` on; ``patience`` above 0 ends the run when the validation error has
    not fallen for that many epochs.

    Pictures: ``crop_size`` is the random crop's side in pixels; ``scale_min`` below 1 draws
    instead crops of that share of the picture's area or more, with sides in ratio 3:4 to
    4:3, as other models' recipes do; crops are resampled to the network's input size where
    that differs. ``lighting`` is the standard deviation of the colour noise in units of the
    data set's own along each direction; it is off from epoch ``lighting_epochs`` on (0:
    never off).
    """

    preset: str = "small"
    network: str = "small"
    epochs: int = 24
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 3e-4
    momentum: float = 0.9
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
    lighting_epochs: int = 0
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    jobs: int | None = None


PRESETS: dict[str, RunConfig] = {}
"""Name -> recipe; the text in ``PRESET_NOTES`` says what to expect of each."""

PRESET_NOTES: dict[str, str] = {}


def _preset(name: str, note: str, **changes: Any) -> None:
    PRESETS[name] = RunConfig(preset=name, **changes)
    PRESET_NOTES[name] = note


_preset(
    "small",
    "hundreds to tens of thousands of pictures, on a CPU: batch-normalised AlexNet at 131 px",
    network="small",
    epochs=16,
    batch_size=32,
    lr=4e-4,
    average=0.98,
    scale_min=0.35,
    lighting=0.0,
)
_preset(
    "demo",
    "the procedural sample in a few minutes; a short `small`",
    network="small",
    epochs=6,
    batch_size=32,
    lr=4e-4,
    warmup_epochs=1.0,
    average=0.98,
    scale_min=0.7,
    lighting=0.0,
)
_preset(
    "paper",
    "the paper's recipe as far as one tower goes: SGD 0.01, momentum 0.9, batch 128, LRN, "
    "colour noise; for 1.2 million pictures (it does not leave chance on 1,000)",
    network="paper",
    epochs=90,
    batch_size=128,
    optimizer="sgd",
    lr=0.01,
    weight_decay=5e-4,
    schedule="step",
    warmup_epochs=0.0,
    label_smoothing=0.0,
    clip_norm=0.0,
)


def preset(name: str) -> RunConfig:
    """The named recipe; ConfigError if there is none of that name."""
    if name not in PRESETS:
        raise ConfigError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def with_options(config: RunConfig, options: Mapping[str, Any]) -> RunConfig:
    """``config`` with every option that is not None, validated."""
    config = replace(config, **{k: v for k, v in options.items() if v is not None})
    validate(config)
    return config


def validate(config: RunConfig) -> None:
    """ConfigError naming the first setting that cannot be."""
    positive = (
        *("epochs", "batch_size", "lr", "crop_size", "scale_min", "drop_epochs"),
        *("plateau_patience", "accumulate", "bias_rate"),
    )
    for name in positive:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name} is {getattr(config, name)}; it must be above 0")
    for name in (
        *("weight_decay", "warmup_epochs", "clip_norm", "lighting"),
        *("lighting_epochs", "freeze_epoch", "patience"),
    ):
        if not getattr(config, name) >= 0:
            raise ConfigError(f"{name} is {getattr(config, name)}; it must be at least 0")
    for name in ("momentum", "average", "label_smoothing"):
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}; it must be from 0 to below 1")
    if config.scale_min > 1:
        raise ConfigError(f"scale_min is {config.scale_min}; it is a share, at most 1")
    for name, allowed in (
        ("optimizer", OPTIMIZERS),
        ("schedule", SCHEDULES),
        ("precision", PRECISIONS),
        ("device", DEVICES),
    ):
        if getattr(config, name) not in allowed:
            raise ConfigError(
                f"{name} is {getattr(config, name)!r}; it is one of {', '.join(allowed)}"
            )


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The config as JSON values."""
    return asdict(config)


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """A config from :func:`as_dict`; ConfigError for unknown or missing names."""
    names = {field.name for field in fields(RunConfig)}
    strange = set(values) ^ names
    if strange:
        raise ConfigError(
            f"the stored configuration has other settings than this version: {sorted(strange)}"
        )
    lists = {name: tuple(values[name]) for name in ("drops", "freeze")}
    return RunConfig(**{**values, **lists})
