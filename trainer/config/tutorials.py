"""The settings of five published AlexNet tutorials, to compare with ours.

Unpublished settings are the defaults of the tutorial's library. Differences that remain: pixels are
0-255, so "scaled" ones are divided by the set's own standard deviation, not by ImageNet's; images
are resampled once, when they are prepared, and not in every epoch.
"""

from __future__ import annotations

from typing import Any

from trainer.config.preset import NOT_RUN, SGD_2012, named

# A plain loop: whole images, always the same; no schedule, no warm-up.
# fmt: off
_PLAIN: dict[str, Any] = {
        "schedule": "constant", "warmup_epochs": 0.0, "label_smoothing": 0.0, "clip_norm":
        0.0, "weight_decay": 0.0, "mirror": False, "lighting": 0.0, "mean": "channel",
        "scaled": True,
    }

TUTORIALS = (
    named(
        "tutorial-cat-fish",
        _PLAIN | {
        "network": "torchvision", "epochs": 20, "batch_size": 64, "optimizer": "adam", "lr":
        1e-3, "crop_size": 227,
    },
        summary="a 2025 blog: cats against fish with torchvision's network and Adam 1e-3",
        prepare="imagenet-prep prepare --src raw --fit squash --size 227",
        time="not published",
        result="70 to 73 % top-1 accuracy; most runs predict one class for 20 epochs, one "
        "always (published). Here: 89.9 % after six epochs of 1,963 + 1,387 images, one "
        "seed; 90.5 and 85.0 % after twenty of 600 + 200, two seeds, half wrong after the first "
        "epoch and learning from the second on. The plateau shows with cats and dogs "
        "(tutorial-cats-dogs); "
        "tools/records/recipe-cat-fish.jsonl.",
        notes="227 px squashed, then resampled to the network's 224. Suspected of "
        "the plateau: Adam with 1e-3 on a network without normalisation.",
    ),
    named(
        "tutorial-tiny-imagenet",
        _PLAIN | SGD_2012 | {
        "network": "tutorial-tiny-imagenet", "epochs": 30, "schedule": "step", "drop_epochs":
        7, "crop_size": 227, "mirror": True, "decay_biases": True,
    },
        summary="a 2024 blog: Tiny ImageNet enlarged to 227 px, LRN, SGD, step 7",
        prepare="imagenet-prep prepare --src tiny-imagenet-200 --fit squash --size 227",
        time="not published",
        result="31.75 % top-1, 58.76 % top-5 accuracy after 30 epochs (aandyw/StuffFromScratch). "
        "Here, of its first twenty classes (10,000 + 1,000 images), after two epochs, 40 minutes "
        "of one core: 5.0 %, which is chance; the loss has not moved after 158 steps. "
        "tools/records/recipe-tiny-imagenet.jsonl.",
        notes="Initialised as PyTorch does; LRN's alpha is twice the paper's, because PyTorch "
        "divides it by the window. Its author held out a tenth of the training images and had "
        "1,000 outputs; here all are trained on, with one output for each class.",
    ),
    named(
        "tutorial-imagenet",
        SGD_2012 | {
        "network": "tutorial-imagenet", "epochs": 100, "batch_size": 256, "schedule": "step",
        "drop_epochs": 30, "lighting_mode": "image", "decay_biases": True, "checkpoint_every":
        1000,
    },
        summary="a 2025 reimplementation of ImageNet training: batch 256, step 30",
        prepare="imagenet-prep prepare --src archives --fit squash",
        time="about 11 minutes an epoch on an RTX 3090, 25 hours in all (published). " + NOT_RUN,
        result="ImageNet validation error 39.93 % top-1, 17.73 % top-5, five views "
        "(danipari/alexnet). Here on Imagenette, 9,469 + 500 images: 34.6 % top-1 accuracy after "
        "two epochs, 35 minutes of one core, one seed; tools/records/recipe-imagenette.jsonl.",
        notes="Colour noise along each image's own directions, as its code has it, but not "
        "clipped to 0-255; dense biases begin at zero; its five views average logits, ours "
        "probabilities. Its epoch "
        "log is drawn faintly in report.html where there are 1,000 classes. Settings that it "
        "does not publish are the paper's.",
    ),
    named(
        "tutorial-fashion-mnist",
        _PLAIN | {
            "network": "tutorial-fashion-mnist", "mean": "none", "scaled": False, "channels": 1,
            "epochs": 10, "batch_size": 128, "optimizer": "sgd", "momentum": 0.0, "lr": 0.1,
            "crop_size": 224,
        },
        summary="FashionMNIST enlarged from 28 to 224 px, one channel, SGD 0.1",
        prepare="imagenet-prep prepare --src fashion-mnist --size 224",
        time="not published",
        result="90.47 % top-1 accuracy after 10 epochs, 91.35 % best (derekzhouai). Here, of "
        "3,000 + 3,000 images: 33.0 % at best of five epochs, 32 minutes of one busy core, one "
        "seed (one epoch of all would take an hour and a half); "
        "tools/records/recipe-fashion-mnist.jsonl.",
        notes="Levels of 0-1, nothing subtracted; PyTorch's first weights; dropout after the dense "
        "layers. 46,764,746 parameters for images of 784 pixels.",
    ),
    named(
        "tutorial-cats-dogs",
        _PLAIN | {
            "network": "tutorial-cats-dogs", "epochs": 10, "batch_size": 32, "optimizer": "adam",
            "lr": 1e-3, "crop_size": 227, "patience": 5,
        },
        summary="a 2020 blog: cats and dogs at 227 px, best checkpoint, early stopping",
        prepare="imagenet-prep prepare --src raw --fit squash --size 227",
        time="not published",
        result="52 to 56 % top-1 accuracy after ten short epochs (published). Here, of "
        "2,000 + 2,000 images: 55.65 % at best, after the fifth of ten epochs, and one class for "
        "every image in the last four; an hour of one busy core, one seed. "
        "tools/records/recipe-cats-dogs.jsonl.",
        notes="One tower without LRN, Adam 1e-3; unpublished settings (first weights, "
        "dropout, patience) are PyTorch's and the paper's. Its ten epochs were of a few steps "
        "each; here an epoch is all images.",
    ),
)
# fmt: on
