"""The recipes: name -> settings, with the command, the time and the result to expect.

Figures of other people are named with their source and were not repeated here; figures of
ours say on which machine. "Not run here" means exactly that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.config import ConfigError, RunConfig


@dataclass(frozen=True)
class Preset:
    """A recipe: its settings, a line that says what it is for, and the whole text."""

    config: RunConfig
    summary: str
    command: str
    time: str
    result: str
    notes: str = ""


_SGD_2012: dict[str, Any] = {
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
_SMALL: dict[str, Any] = {
    "network": "small",
    "batch_size": 32,
    "lr": 4e-4,
    "average": 0.98,
    "scale_min": 0.35,
    "lighting": 0.0,
}
_NOT_RUN = "Not run here."


def _preset(name: str, settings: dict[str, Any], **words: str) -> tuple[str, Preset]:
    command = f"trainer run --beton train.beton --preset {name}"
    return name, Preset(RunConfig(preset=name, **settings), **({"command": command} | words))


PRESETS: dict[str, Preset] = dict(
    [
        _preset(
            "small",
            _SMALL | {"epochs": 16},
            summary="hundreds to tens of thousands of pictures, on a CPU",
            time="6.5 to 8 minutes for 1,000 pictures on two cores with AMX",
            result="Imagenette at 100 pictures a class: 63.8, 63.4 and 63.6 % top-1 accuracy "
            "for three seeds, centre view (chance: 10 %); tools/records/imagenette-small.jsonl",
            notes="The paper's layers with batch normalisation in LRN's place at 131 px.",
        ),
        _preset(
            "demo",
            _SMALL | {"epochs": 6, "warmup_epochs": 1.0, "scale_min": 0.7},
            summary="the procedural sample (imagenet-prep sample) in minutes",
            time="5 minutes on two cores",
            result="95 % top-1 accuracy on the sample's ten classes, centre view",
            notes="A short `small`.",
        ),
        _preset(
            "paper",
            _SGD_2012
            | {"network": "paper", "epochs": 90, "schedule": "plateau", "plateau_patience": 5},
            summary="the paper as written, in one tower: LRN, three drops at plateaus",
            time="unknown; the paper took five to six days on two GTX 580. " + _NOT_RUN,
            result="ImageNet validation error 40.7 % top-1, 18.2 % top-5 with ten views "
            "(Krizhevsky, Sutskever, Hinton 2012, one network). " + _NOT_RUN,
            notes="Needs about a million pictures: on a thousand it stays at chance.",
        ),
        _preset(
            "original-2012",
            _SGD_2012
            | {
                "network": "original-2012",
                "epochs": 91,
                "schedule": "drops",
                "drops": (25, 51, 79),
                "bias_rate": 2.0,
                "lighting_epochs": 67,
                "mean": "centre",
                "freeze": ("features.0",),
                "freeze_epoch": 72,
            },
            summary="what the 2012 code did, run #145: drops at 25, 51 and 79, late phase",
            time="unknown. " + _NOT_RUN,
            result="ImageNet validation error 40.66 % top-1, 18.21 % top-5, ten views, "
            "logged by the 2012 code (computerhistory/AlexNet-Source-Code). " + _NOT_RUN,
            notes="Biases learn twice as fast and do not decay; colour noise ends at epoch 67, "
            "the first layer stops at 72; the centre of the mean image is subtracted wherever "
            "the crop is.",
        ),
        _preset(
            "tutorial-imagenet",
            _SGD_2012
            | {
                "network": "paper",
                "epochs": 100,
                "batch_size": 256,
                "schedule": "step",
                "drop_epochs": 30,
                "checkpoint_every": 1000,
            },
            summary="a 2025 reimplementation of ImageNet training: batch 256, step 30",
            time="about 11 minutes an epoch on an RTX 3090, 25 hours in all (its author's "
            "figures). " + _NOT_RUN,
            result="ImageNet validation error 39.93 % top-1, 17.73 % top-5, five views "
            "(danipari/alexnet). " + _NOT_RUN,
            notes="Its epoch log is drawn faintly in report.html where there are 1,000 classes. "
            "Settings that it does not publish are the paper's.",
        ),
        _preset(
            "torchvision",
            _SGD_2012
            | {
                "network": "torchvision",
                "epochs": 90,
                "batch_size": 256,
                "weight_decay": 1e-4,
                "decay_biases": True,
                "schedule": "step",
                "drop_epochs": 30,
                "crop_size": 224,
                "scale_min": 0.08,
                "lighting": 0.0,
                "mean": "channel",
                "scaled": True,
                "checkpoint_every": 1000,
            },
            summary="torchvision's network and its reference recipe",
            time="unknown. " + _NOT_RUN,
            result="ImageNet validation error 43.48 % top-1, 20.93 % top-5, centre view "
            "(torchvision's published weights). " + _NOT_RUN,
            notes="Scaled pictures: its learning rate is for unit variance, not for 0-255.",
        ),
        _preset(
            "fast",
            _SGD_2012
            | {
                "network": "small",
                "epochs": 40,
                "batch_size": 1024,
                "lr": 0.08,
                "weight_decay": 5e-5,
                "schedule": "linear",
                "warmup_epochs": 2.0,
                "label_smoothing": 0.1,
                "scale_min": 0.25,
                "lighting": 0.0,
                "average": 0.999,
                "order": "pages",
                "checkpoint_every": 500,
            },
            summary="our own, for ImageNet: few seconds to an error, not faithful to anyone",
            time="unknown. " + _NOT_RUN,
            result="Meant to reach the paper's 40.7 % top-1 error; whether it does is open. "
            + _NOT_RUN,
            notes="Batch normalisation, 131 px (a third of the arithmetic), large batches with "
            "warm-up, the averaged weights are kept. Raw betons save the decoding.",
        ),
        _preset(
            "tiny-imagenet",
            _SMALL
            | {
                "epochs": 30,
                "batch_size": 128,
                "lr": 1e-3,
                "average": 0.998,
                "checkpoint_every": 500,
            },
            summary="Tiny ImageNet: 200 classes, 100,000 pictures of 64 px",
            time="unknown. " + _NOT_RUN,
            result="To beat: 31.75 % top-1, 58.76 % top-5 accuracy after 30 epochs "
            "(aandyw/StuffFromScratch, another recipe). " + _NOT_RUN,
            notes="imagenet-prep enlarges the pictures to 256 px.",
        ),
        _preset(
            "fashion-mnist",
            _SMALL
            | {
                "epochs": 10,
                "batch_size": 128,
                "lr": 1e-3,
                "scale_min": 0.7,
                "warmup_epochs": 1.0,
                "average": 0.99,
            },
            summary="FashionMNIST: ten classes of grey pictures of 28 px",
            time="unknown for the whole set. " + _NOT_RUN,
            result="To beat: 90.47 % top-1 accuracy after 10 epochs, 91.35 % best (derekzhouai); "
            "92.19 % (wzyjsha-00). " + _NOT_RUN,
            notes="The tutorials' network is --network small-input (47 million parameters); this "
            "preset takes `small`, which needs a tenth of its arithmetic.",
        ),
        _preset(
            "cat-fish",
            _SMALL | {"epochs": 20, "batch_size": 16, "average": 0.95},
            summary="two classes of some hundred pictures, such as cats against fish",
            time="unknown. " + _NOT_RUN,
            result="To beat: 70 to 73 % top-1 accuracy, most runs stuck at the majority class "
            "for 20 epochs (a 2025 blog; another recipe). " + _NOT_RUN,
            notes="Batch normalisation is what keeps it from the majority class.",
        ),
        _preset(
            "cats-dogs",
            _SMALL | {"epochs": 24, "batch_size": 64, "lr": 6e-4, "average": 0.995},
            summary="the Kaggle set of cats and dogs, 25,000 pictures, or a part of it",
            time="unknown. " + _NOT_RUN,
            result="To beat: 92.55 % top-1 accuracy on the whole set, with batch normalisation "
            "(meng1994412); 52 % after ten short epochs without (a 2020 blog). " + _NOT_RUN,
        ),
    ]
)  # fmt: skip
"""Name -> recipe, the default first."""


def preset(name: str) -> RunConfig:
    """The named recipe's settings; ConfigError if there is none of that name."""
    return find(name).config


def find(name: str) -> Preset:
    """The named recipe with its text; ConfigError if there is none of that name."""
    if name not in PRESETS:
        raise ConfigError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
