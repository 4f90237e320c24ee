"""Recipes of the paper, of its original code and of torchvision."""

from __future__ import annotations

from trainer.config.preset import NOT_RUN, SGD_2012, named

# fmt: off
PUBLISHED = (
    named(
        "paper",
        SGD_2012 | {"network": "paper", "epochs": 90, "schedule": "plateau", "plateau_patience": 5},
        summary="the paper as written, in one tower: LRN, three drops at plateaus",
        time="unknown; the paper took five to six days on two GTX 580. " + NOT_RUN,
        result="ImageNet validation error 40.7 % top-1, 18.2 % top-5 with ten views "
        "(Krizhevsky, Sutskever, Hinton 2012, one network). " + NOT_RUN,
        notes="Needs about a million images: on a thousand it stays at chance.",
    ),
    named(
        "original-2012",
        SGD_2012 | {
            "network": "original-2012", "epochs": 91, "schedule": "drops", "drops": (25, 51, 79),
            "bias_rate": 2.0, "lighting_epochs": 67, "mean": "centre", "freeze": ("features.0",),
            "freeze_epoch": 72,
        },
        summary="what the 2012 code did, run #145: drops at 25, 51 and 79, late phase",
        time="unknown. " + NOT_RUN,
        result="ImageNet validation error 40.66 % top-1, 18.21 % top-5, ten views, "
        "logged by the 2012 code (computerhistory/AlexNet-Source-Code). " + NOT_RUN,
        notes="Biases learn twice as fast and do not decay; colour noise ends at epoch 67, "
        "the first layer stops at 72; the centre of the mean image is subtracted wherever "
        "the crop is. Not done here: the code divides its training images by 1.1.",
    ),
    named(
        "torchvision",
        SGD_2012 | {
            "network": "torchvision", "epochs": 90, "batch_size": 256, "weight_decay": 1e-4,
            "decay_biases": True, "schedule": "step", "drop_epochs": 30, "crop_size": 224,
            "scale_min": 0.08, "lighting": 0.0, "mean": "imagenet", "scaled": True,
            "checkpoint_every": 1000,
        },
        summary="torchvision's network and its reference recipe",
        time="unknown. " + NOT_RUN,
        result="ImageNet validation error 43.48 % top-1, 20.93 % top-5, centre view "
        "(torchvision's published weights). " + NOT_RUN,
        notes="Scaled images: its learning rate is for unit variance, not for 0-255.",
    ),
)
# fmt: on
