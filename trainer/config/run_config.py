"""RunConfig: every setting of a run as one frozen value.

A setting is declared once, as a field: its type, default, help, heading, range and choices. The
command line's option, ``config.json``, validation and the comparison on ``--resume`` follow from
it. A new setting needs its field here and the code that uses it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from imagenet_prep.core.errors import UsageError

RECIPE, LEARNING, SCHEDULE = "The recipe", "Learning", "Schedule"
IMAGES, INTERRUPTIONS, MACHINE = "Images", "Interruptions", "The machine"

MEANS = ("image", "centre", "channel", "none")
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Those of torchvision's weights, 255 times (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225)."""


class ConfigError(UsageError):
    """A setting with an invalid value."""


@dataclass(frozen=True)
class Setting:
    """The declaration of a field of RunConfig.

    ``low``/``above`` and ``high``/``below`` are inclusive/exclusive bounds. ``needs`` names
    another setting and the values with which this one has an effect (none: any true value).
    ``free``: may differ between a run and its continuation, because it changes no result.
    Without a ``heading`` the setting has no option of its own under ``trainer run``.
    """

    name: str
    type: str
    default: Any
    help: str
    heading: str = ""
    choices: tuple[Any, ...] = ()
    low: float | None = None
    above: float | None = None
    high: float | None = None
    below: float | None = None
    needs: tuple[str, tuple[Any, ...]] | None = None
    free: bool = False
    negative: str = ""
    metavar: str = ""

    @property
    def flag(self) -> str:
        """``drop_epochs`` -> ``--drop-epochs``."""
        return "--" + self.name.replace("_", "-")

    def check(self, value: Any) -> None:
        """ConfigError unless ``value`` is within the choices and bounds."""
        for one in (value if isinstance(value, tuple) else [value]) if self.choices else ():
            if one not in self.choices:
                allowed = ", ".join(map(str, self.choices))
                raise ConfigError(
                    "config.choice", f"{self.flag}: invalid value {one!r}; choose from {allowed}"
                )
        if value is None:
            return
        for bound, words, holds in (
            (self.low, "at least", operator.ge),
            (self.above, "above", operator.gt),
            (self.high, "at most", operator.le),
            (self.below, "below", operator.lt),
        ):
            if bound is not None and not holds(value, bound):
                raise ConfigError("config.range", f"{self.flag} {value}: must be {words} {bound:g}")


def setting(default: Any, heading: str, help: str, **details: Any) -> Any:
    """A field of RunConfig; ``details`` are those of :class:`Setting`."""
    return field(default=default, metadata={"heading": heading, "help": help, **details})


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run, and how it is computed."""

    preset: str = setting("small", "", "Preset that the settings started from.")
    network: str = setting("small", RECIPE, "Network; `trainer summary` lists them.")
    weights: str = setting(
        "",
        RECIPE,
        "Weights to start from: a checkpoint, a state dict (.pth, .safetensors), or torchvision.",
        metavar="FILE",
    )
    channels: int = setting(3, RECIPE, "Colour channels: 3, or 1 for greyscale.", choices=(1, 3))
    epochs: int = setting(24, RECIPE, "Number of passes over the training set.", low=1)
    batch_size: int = setting(64, RECIPE, "Images in a batch, on each process.", low=1)
    accumulate: int = setting(1, RECIPE, "Batches in an optimiser step.", low=1)
    seed: int = setting(0, RECIPE, "Random seed.", low=0, high=2**31 - 1)
    optimizer: str = setting("adamw", LEARNING, "Optimiser.", choices=("sgd", "adam", "adamw"))
    lr: float = setting(3e-4, LEARNING, "Peak learning rate, for pixels of 0-255.", above=0)
    momentum: float = setting(
        0.9, LEARNING, "Momentum.", low=0, below=1, needs=("optimizer", ("sgd",))
    )
    weight_decay: float = setting(0.05, LEARNING, "Weight decay.", low=0)
    bias_rate: float = setting(1.0, LEARNING, "Learning rate of biases, as a factor.", above=0)
    decay_biases: bool = setting(
        False, LEARNING, "Weight decay of biases.", negative="--no-decay-biases"
    )
    label_smoothing: float = setting(
        0.1, LEARNING, "Target probability shared by the other classes.", low=0, below=1
    )
    clip_norm: float = setting(1.0, LEARNING, "Maximum gradient norm; 0: no clipping.", low=0)
    average: float = setting(
        0.0, LEARNING, "Decay of the running average of weights; 0: no average.", low=0, below=1
    )
    lr_backbone: float = setting(
        1.0, LEARNING, "Learning rate of all layers but the last, as a factor.", above=0
    )
    schedule: str = setting(
        "linear",
        SCHEDULE,
        "Learning-rate schedule.",
        choices=("constant", "linear", "cosine", "step", "drops", "plateau"),
    )
    warmup_epochs: float = setting(2.0, SCHEDULE, "Epochs of linear warm-up.", low=0)
    drop_epochs: int = setting(
        30, SCHEDULE, "Epochs between divisions by ten.", low=1, needs=("schedule", ("step",))
    )
    drops: tuple[int, ...] = setting(
        (), SCHEDULE, "Epochs of divisions by ten, e.g. 25,51,79.", needs=("schedule", ("drops",))
    )
    plateau_patience: int = setting(
        5,
        SCHEDULE,
        "Epochs without a lower validation error before a division by ten (three at most).",
        low=1,
        needs=("schedule", ("plateau",)),
    )
    freeze: tuple[str, ...] = setting(
        (), SCHEDULE, "Layer that does not learn, e.g. features.0; repeatable.", metavar="LAYER"
    )
    freeze_epoch: int = setting(
        0, SCHEDULE, "First epoch (from 0) in which --freeze applies.", low=0, needs=("freeze", ())
    )
    patience: int = setting(
        0, SCHEDULE, "Epochs without a lower validation error before the end; 0: no limit.", low=0
    )
    crop_size: int = setting(227, IMAGES, "Side of the random crops in pixels.", low=1)
    start_size: int = setting(
        0,
        IMAGES,
        "Side in pixels of the training images in the first epoch, as the network gets them; grows "
        "to the network's own; 0: no growth.",
        low=0,
    )
    scale_min: float = setting(
        1.0,
        IMAGES,
        "Smallest crop as a fraction of the image area; 1: crops of --crop-size.",
        above=0,
        high=1,
    )
    mirror: bool = setting(True, IMAGES, "Random horizontal flips.", negative="--no-mirror")
    alternate: bool = setting(
        False,
        IMAGES,
        "Flips in pairs of epochs: the second one flips what the first one did not.",
        negative="--no-alternate",
        needs=("mirror", ()),
    )
    lighting: float = setting(
        0.1, IMAGES, "Colour noise, in standard deviations of the set's colours.", low=0
    )
    lighting_mode: str = setting(
        "deviation",
        IMAGES,
        "Unit of the colour noise.",
        choices=("deviation", "variance", "image", "off"),
    )
    lighting_epochs: int = setting(
        0, IMAGES, "Epochs with colour noise; 0: all.", low=0, needs=("lighting", ())
    )
    mean: str = setting(
        "image",
        IMAGES,
        "Mean to subtract: image (the mean image), centre (its centre), channel, none, imagenet, "
        "or three numbers such as 123.7,116.3,103.5.",
    )
    std: str = setting(
        "", IMAGES, "Standard deviations to divide by: three numbers such as 58.4,57.1,57.4."
    )
    scaled: bool = setting(
        False,
        IMAGES,
        "Division by the channels' standard deviations (with --mean imagenet by ImageNet's).",
        negative="--not-scaled",
    )
    order: str = setting(
        "shuffle",
        IMAGES,
        "Order of samples; pages: for beton files larger than memory.",
        choices=("shuffle", "pages", "sequential"),
    )
    checkpoint_every: int = setting(
        0,
        INTERRUPTIONS,
        "Steps between checkpoints inside an epoch; 0: by time only.",
        low=0,
        metavar="STEPS",
        free=True,
    )
    checkpoint_minutes: float = setting(
        10.0,
        INTERRUPTIONS,
        "Minutes between checkpoints inside an epoch; 0: none.",
        low=0,
        free=True,
    )
    keep: int = setting(
        0, INTERRUPTIONS, "Number of last epochs whose checkpoints are kept.", low=0, free=True
    )
    keep_every: int = setting(
        0, INTERRUPTIONS, "Epochs between checkpoints that are kept; 0: none.", low=0, free=True
    )
    log: tuple[str, ...] = setting(
        (),
        INTERRUPTIONS,
        "Experiment tracker besides TensorBoard: wandb or mlflow; repeatable.",
        choices=("wandb", "mlflow"),
        free=True,
    )
    device: str = setting(
        "auto",
        MACHINE,
        "Device; auto: CUDA if present.",
        choices=("auto", "cpu", "cuda"),
        free=True,
    )
    precision: str = setting(
        "auto",
        MACHINE,
        "Number format; auto: half precision if the hardware supports it.",
        choices=("auto", "float32", "bfloat16", "float16"),
        free=True,
    )
    jobs: int | None = setting(
        None, MACHINE, "Decoding threads; by default one per CPU.", low=1, free=True
    )
    decode: str = setting(
        "auto",
        MACHINE,
        "Where JPEGs are decoded with a CUDA device; auto: on the device if it can decode all.",
        choices=("auto", "gpu", "cpu"),
        free=True,
    )
    resident: str = setting(
        "auto",
        MACHINE,
        "Compressed training images kept on the CUDA device; auto: if they fit into half of its "
        "free memory.",
        choices=("auto", "on", "off"),
        free=True,
    )

    @property
    def pixel_mean(self) -> str | tuple[float, ...]:
        """What the loader subtracts: a name, or three levels of 0-255."""
        if self.mean == "imagenet":
            return IMAGENET_MEAN
        return self.mean if self.mean in MEANS else numbers(self.mean)

    @property
    def pixel_std(self) -> tuple[float, ...] | None:
        """What the loader divides by, in levels; None: nothing, or the set's own (``scaled``)."""
        if self.std:
            return numbers(self.std)
        return IMAGENET_STD if self.scaled and self.mean == "imagenet" else None


def numbers(text: str) -> tuple[float, ...]:
    """``123.7,116.3,103.5`` -> the three numbers; ConfigError for anything else."""
    try:
        first, second, third = map(float, text.split(","))
    except ValueError:
        raise ConfigError(
            "config.numbers",
            f"--mean, --std: {text!r} is neither {', '.join(MEANS)}, imagenet nor three numbers",
        ) from None
    return first, second, third


SETTINGS: dict[str, Setting] = {
    item.name: Setting(item.name, str(item.type), item.default, **item.metadata)
    for item in fields(RunConfig)
}
"""Name of a setting -> its declaration, in the order of the help."""

_REMOVED: dict[str, tuple[Any, ...]] = {
    "lr_per": (0,),
    "trust": (1e-3,),
    "gradients": ("float32",),
    "compile": ("auto", "on", "off"),
}
"""Settings of earlier versions -> the values that had no effect, or have none now."""


def with_options(config: RunConfig, options: Mapping[str, Any]) -> RunConfig:
    """``config`` with every option that is not None, validated.

    With other ``epochs`` and no ``warmup_epochs`` the warm-up is a quarter of the epochs at
    most. ConfigError for an invalid value, and for an option that has no effect.
    """
    given = {name: value for name, value in options.items() if value is not None}
    config = replace(config, **given)
    if "epochs" in given and "warmup_epochs" not in given:
        config = replace(config, warmup_epochs=min(config.warmup_epochs, config.epochs / 4))
    validate(config)
    for name in given:
        needs = SETTINGS[name].needs
        if needs is None:
            continue
        other, values = SETTINGS[needs[0]], needs[1]
        value = getattr(config, other.name)
        if value not in values if values else not value:
            add = f"{other.flag} {' or '.join(map(str, values))}".rstrip()
            raise ConfigError(
                "config.no_effect",
                f"{SETTINGS[name].flag} has no effect without {add}; add that, or remove it",
            )
    return config


def validate(config: RunConfig) -> None:
    """ConfigError that names the first invalid setting."""
    for name, declared in SETTINGS.items():
        declared.check(getattr(config, name))
    if config.warmup_epochs > config.epochs:
        raise ConfigError(
            "config.warmup_too_long",
            f"--warmup-epochs {config.warmup_epochs:g} is longer than the run of "
            f"{config.epochs} epochs; use fewer",
        )
    if config.schedule == "drops" and not config.drops:
        raise ConfigError(
            "config.no_drops", "--schedule drops needs epochs; add for example --drops 25,51,79"
        )
    if list(config.drops) != sorted(config.drops) or min(config.drops, default=1) < 1:
        raise ConfigError(
            "config.drops", f"--drops: {config.drops} are not ascending epochs from 1 on"
        )
    if config.pixel_mean and any(not deviation > 0 for deviation in config.pixel_std or ()):
        raise ConfigError("config.std", f"--std {config.std}: must be above 0")
    if config.scaled and config.mean == "none":
        raise ConfigError(
            "config.scaled_without_mean", "--scaled needs a mean; use --mean channel or image"
        )


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The config as JSON values."""
    return asdict(config)


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """A config from :func:`as_dict`, also of an older version: missing settings take their
    default. ConfigError for unknown ones."""
    values = {
        name: value
        for name, value in values.items()
        if name not in _REMOVED or value not in _REMOVED[name]
    }
    unknown = sorted(set(values) - set(SETTINGS))
    if unknown:
        raise ConfigError(
            "config.unknown_setting",
            f"the stored configuration has settings unknown to this version: {', '.join(unknown)}",
        )
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return RunConfig(**known)


def differences(stored: RunConfig, here: RunConfig) -> Iterator[str]:
    """The settings that decide the result and differ, in words."""
    for name, declared in SETTINGS.items():
        theirs, ours = getattr(stored, name), getattr(here, name)
        if theirs != ours and not declared.free:
            yield f"{name} {_shown(theirs)} there and {_shown(ours)} here"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return str(value)
