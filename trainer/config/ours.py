"""Our own presets."""

from __future__ import annotations

from typing import Any

from trainer.config.preset import NOT_RUN, SGD_2012, named

# fmt: off
_SMALL: dict[str, Any] = {
        "network": "small", "batch_size": 32, "lr": 4e-4, "average": 0.98, "scale_min": 0.35,
        "lighting": 0.0,
    }
_COMPACT = _SMALL | {"network": "compact"}
_THUMBNAIL = _SMALL | {"network": "thumbnail", "crop_size": 67}
_BETTER = _SMALL | {"network": "best-compact", "scale_min": 0.25, "alternate": True}
_BEST = SGD_2012 | {
        "network": "best", "epochs": 40, "batch_size": 1024, "lr": 0.08, "weight_decay": 5e-5,
        "schedule": "linear", "warmup_epochs": 2.0, "label_smoothing": 0.1, "scale_min": 0.25,
        "alternate": True, "lighting": 0.0, "average": 0.999, "order": "pages",
        "checkpoint_every": 500,
    }
_FASHION = _SMALL | {
        "network": "miniature", "crop_size": 115, "channels": 1, "epochs": 10, "batch_size":
        64, "lr": 1e-3, "scale_min": 1.0, "warmup_epochs": 0.5, "average": 0.995,
    }

OURS = (
    named(
        "small",
        _SMALL | {"epochs": 16},
        summary="hundreds to tens of thousands of images, on a CPU",
        time="3 minutes for 1,000 images on one core with AVX512-BF16; 6.5 to 8 on two without",
        result="Imagenette, 100 images a class: 62.8, 63.0 and 65.2 % top-1 accuracy for three "
        "seeds, centre view (chance: 10 %); tools/records/imagenette-small.jsonl",
        notes="The paper's layers with batch normalisation instead of LRN, at 131 px.",
    ),
    named(
        "demo",
        _SMALL | {"epochs": 6, "warmup_epochs": 1.0, "scale_min": 0.7},
        summary="the procedural sample (imagenet-prep sample) in minutes",
        time="5 minutes on two cores",
        result="about 95 % top-1 accuracy on the sample's ten classes, centre view; not recorded",
        notes="A short `small`.",
    ),
    named(
        "best",
        _BEST,
        summary="ImageNet with a low error in little time; our own settings",
        prepare="imagenet-prep prepare --src archives",
        time="unknown. " + NOT_RUN,
        result="Goal: the paper's 40.7 % top-1 error. " + NOT_RUN,
        notes="The paper's layer sizes at 131 px (a third of the arithmetic), batch normalisation "
        "after the ReLU and dropout of 0.2 (published on ImageNet at 128 px, top-1 accuracy: 47.4 "
        "to 47.8 % before the ReLU, 49.3 to 49.9 % after it, 52.7 % with that dropout too; "
        "ducha-aiki/caffenet-benchmark), evaluation at 147 px, large batches with warm-up, linear "
        "decay to zero, averaged weights, alternating flips. --format raw (262 GB) saves the "
        "decoding.",
    ),
    named(
        "imagenette",
        _BETTER | {"epochs": 40, "batch_size": 64, "lr": 1e-3, "average": 0.998},
        summary="ten classes of ImageNet, 9,469 images",
        prepare="imagenet-prep prepare --src imagenette2",
        time="42 minutes a seed on one core with bfloat16 that others used too: no quiet timing",
        result="85.12 % top-1 accuracy on all 3,925 validation images, centre view, mean of two "
        "seeds, 84.89 and 85.35; tools/records/recipe-imagenette.jsonl. "
        "The best published AlexNet has 79 % (lazy-toad, 320 px).",
        notes="A rehearsal for ImageNet on a CPU: the changes of `best`, with torchvision's "
        "widths and dense layers of 1024 (57 % of the arithmetic of `small`). Random area crops "
        "against overfitting; AdamW, label smoothing and averaged weights for few epochs.",
    ),
    named(
        "tiny-imagenet",
        _THUMBNAIL | {"epochs": 30, "batch_size": 128, "lr": 1e-3, "average": 0.998},
        summary="Tiny ImageNet: 200 classes, 100,000 images of 64 px",
        prepare="imagenet-prep prepare --src tiny-imagenet-200 --size 72",
        time="23 minutes for 10,000 images on one core without bfloat16",
        result="First twenty classes: 53.3 % top-1, 84.3 % top-5 accuracy, one seed; "
        "tools/records/recipe-tiny-imagenet.jsonl. All 200: not run here. Published: 31.75 % "
        "top-1, 58.76 % top-5 after 30 epochs (aandyw/StuffFromScratch, preset "
        "tutorial-tiny-imagenet).",
        notes="67 px instead of 227: the images have 64, and the paper's network has 27 times the "
        "arithmetic of `thumbnail`. Otherwise as `imagenette`, without the changes of `best`.",
    ),
    named(
        "fashion-mnist",
        _FASHION,
        summary="FashionMNIST: ten classes of greyscale images of 28 px",
        prepare="imagenet-prep prepare --src fashion-mnist --size 120",
        time="19 minutes a seed on one core with bfloat16 that others used too: no quiet timing",
        result="92.73 % top-1 accuracy, three seeds, 92.60 to 92.81, 60,000 + 10,000 images, "
        "centre view; tools/records/recipe-fashion-mnist.jsonl. Published: 90.47 % after 10 "
        "epochs, 91.35 % best (derekzhouai, preset tutorial-fashion-mnist); 92.19 % (wzyjsha-00).",
        notes="115 px instead of 224, so that a step of 4 px in the first layer is one original "
        "pixel (67 px: 90.56 % after six epochs); few filters, batch normalisation, AdamW with "
        "warm-up; random crops out of 120 px and flips.",
    ),
    named(
        "cat-fish",
        _COMPACT | {"epochs": 12, "lr": 5e-4},
        summary="two classes of some hundred images, such as cats and fish",
        prepare="imagenet-prep prepare --src raw",
        time="10 to 21 minutes on one busy core without bfloat16, about 7 on an idle one",
        result="96.05 % top-1 accuracy, 95.8 to 96.3 for five seeds, 1,963 + 1,387 images, centre "
        "view; tools/records/recipe-cat-fish.jsonl. Published: 70 to 73 %, most runs predict one "
        "class for 20 epochs (preset tutorial-cat-fish).",
        notes="Batch normalisation, warm-up and a last layer of zeros against the plateau of that "
        "tutorial; random area crops because there are few images.",
    ),
    named(
        "cats-dogs",
        _BETTER | {"network": "best-compact-195", "epochs": 50, "lr": 6e-4, "average": 0.995},
        summary="Kaggle's cats and dogs, 25,000 images, or a part of them",
        prepare="imagenet-prep prepare --src raw",
        time="20 minutes a seed on one core with bfloat16 that others used too: no quiet timing",
        result="88.87 % top-1 accuracy from 2,000 images on 2,000 others, centre view, three "
        "seeds, 88.80 to 88.90; tools/records/recipe-cats-dogs.jsonl. 86.85 % with images of "
        "131 px. Published: 52 to 56 % (preset tutorial-cats-dogs).",
        notes="An epoch is all images, not a few steps. The changes of `best`, images of 195 px, "
        "and 50 epochs because there are few images; otherwise as `cat-fish`.",
    ),
    named(
        "finetune",
        _THUMBNAIL | {"epochs": 12, "lr": 1e-3, "average": 0.95},
        summary="few images, from weights that were trained on others (--weights)",
        prepare="imagenet-prep prepare --src raw --size 72",
        command="trainer run --beton train.beton --preset finetune --weights "
        "runs/tiny-imagenet/best.pt",
        time="some ten seconds of one idle core for 200 images",
        result="Cats and dogs, 200 + 100 images, weights trained on 1,000 images of Imagenette: "
        "68, 70 and 64 % top-1 accuracy for three seeds; from random weights 68, 66 and 69 %: "
        "weights from so few images do not help. tools/records/finetune-cats-dogs.json",
        notes="The network of `tiny-imagenet`, 67 px. The last layer is initialised anew for the "
        "classes of the new set. Also useful: --freeze features, --lr-backbone 0.1.",
    ),
)
# fmt: on
