"""Evaluations: views averaged after the softmax, errors in percent, tables by class."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from imagenet_prep.core.errors import UsageError
from imagenet_prep.dataset.classes import Classes
from trainer.config.presets import preset
from trainer.device import Precision
from trainer.inference.evaluate import Evaluation, evaluation_batches, evaluation_of
from trainer.inference.judge import evaluate
from trainer.loader.loader import eval_loader
from trainer.network.alexnet import NETWORKS

if TYPE_CHECKING:
    from tests.trainer.conftest import Sample

FLOAT32 = Precision(torch.device("cpu"), "float32")


@dataclass
class Batch:
    """Images (or logits, for a network that lets them through) as a loader yields them."""

    images: Tensor
    labels: Tensor
    indices: Tensor


def batch(images: Tensor, labels: list[int], first: int = 0) -> Batch:
    places = torch.arange(first, first + len(labels))
    return Batch(images, torch.tensor(labels), places)


def judge(*data: Batch, classes: int) -> Evaluation:
    judged = evaluate(nn.Identity(), data, FLOAT32, lambda _: None)
    return evaluation_of(judged, classes)


def test_errors_and_confusion_are_counted_in_percent() -> None:
    # The identity predicts the largest input: class 0 always right, class 1 taken for 2.
    images = torch.eye(6)[[0, 0, 0, 2]] - 0.01 * torch.arange(6)
    images[3, 1] = -9.0
    found = judge(batch(images, [0, 0, 0, 1]), classes=6)
    assert (found.result.top1_error, found.result.top5_error, found.result.images) == (25, 25, 4)
    assert found.confusion[0, 0] == 3
    assert found.confusion[1, 2] == 1
    assert found.confusion.sum() == 4
    assert found.in_top5.tolist() == [3, 0, 0, 0, 0, 0]


def test_loss_is_the_mean_over_images_not_over_batches() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(19, 4), [i % 4 for i in range(19)]
    parts = judge(
        batch(logits[:16], labels[:16]), batch(logits[16:], labels[16:], 16), classes=4
    ).result
    expected = nn.functional.cross_entropy(logits, torch.tensor(labels))
    assert parts.loss == pytest.approx(float(expected), rel=1e-6)
    assert parts.images == 19


def test_views_are_averaged_after_the_softmax() -> None:
    # One view is sure of class 0, two are mildly for class 1: the mean logit and the mean
    # probability disagree.
    logits = torch.tensor([[[14.0, 0.0], [-3.0, 3.0], [-3.0, 3.0]]])
    flat = nn.Flatten()
    images = logits[..., None, None]
    judged = evaluate(flat, [batch(images, [1])], FLOAT32, lambda _: None)
    mean = logits[0].softmax(dim=1).mean(dim=0)
    assert logits[0].mean(dim=0).argmax() == 0
    assert int(judged.predicted[0]) == int(mean.argmax()) == 1
    assert float(judged.truth[0]) == pytest.approx(float(mean[1]), rel=1e-5)
    assert float(judged.losses[0]) == pytest.approx(-math.log(float(mean[1])), rel=1e-5)


def test_rows_by_class_name_what_a_class_is_taken_for() -> None:
    images = torch.eye(3)[[0, 0, 1, 2, 2]] * 5
    found = judge(batch(images, [0, 1, 1, 1, 1]), classes=3)
    rows = found.by_class(Classes(("a", "b", "c"), {"b": "bee"}))
    assert [row["images"] for row in rows] == [1, 4, 0]
    assert rows[1]["name"] == "bee"
    assert rows[1]["top1_error"] == 75.0
    assert (rows[1]["taken_for"], rows[1]["taken_for_images"]) == ("c", 2)
    assert rows[0]["taken_for"] is None
    assert rows[2]["top1_error"] is None
    json.dumps(rows)


@pytest.mark.parametrize(("views", "name"), [(1, "centre"), (5, "five"), (10, "ten")])
def test_evaluation_views_are_the_loaders(
    small_beton: Sample, tiny_network: str, views: int, name: str
) -> None:
    from dataclasses import replace

    config = replace(preset("small"), network=tiny_network, crop_size=56, jobs=1, device="cpu")
    spec = NETWORKS[tiny_network]
    ours = evaluation_batches(small_beton.path, small_beton.stats, spec, config, views=views)
    theirs = eval_loader(
        small_beton.path, small_beton.stats, batch_size=25, view=name, crop_size=56,
        out_size=spec.input_size, jobs=1,
    )  # fmt: skip
    with ours, theirs:
        first, second = next(iter(ours)).images, next(iter(theirs)).images
        assert first.shape[0] == min(25, config.batch_size // views)
        assert torch.equal(first, second[: first.shape[0]])


def test_views_that_there_are_not_are_named(small_beton: Sample, tiny_network: str) -> None:
    with pytest.raises(UsageError, match="1, 5 or 10"):
        evaluation_batches(
            small_beton.path, small_beton.stats, NETWORKS[tiny_network], preset("small"), views=3
        )


def test_ten_views_of_a_network_equal_its_ten_predictions(
    small_beton: Sample, tiny_network: str, tmp_path: Path
) -> None:
    from trainer.network.alexnet import build, network_spec

    model = build(network_spec(tiny_network, classes=3), 0).eval()
    torch.nn.init.normal_(model.classifier[-1].weight, std=0.1)  # type: ignore[arg-type]
    options = {"batch_size": 25, "crop_size": 56, "out_size": 67, "jobs": 1}
    with eval_loader(small_beton.path, small_beton.stats, view="ten", **options) as batches:  # type: ignore[arg-type]
        judged = evaluate(model, batches, FLOAT32, lambda _: None)
        images = next(iter(batches)).images.clone()
    with torch.inference_mode():
        each = torch.stack([model(images[:, view]).softmax(dim=1) for view in range(10)])
    mean = each.mean(dim=0)
    truth = mean[torch.arange(25), judged.labels]
    assert torch.allclose(judged.truth, truth, atol=1e-5)
    first, second = mean.topk(2, dim=1).values.unbind(1)
    clear = first - second > 1e-4  # near a tie rounding decides
    assert clear.sum() > 10
    assert torch.equal(judged.predicted[clear], mean.argmax(dim=1)[clear])
    assert judged.indices.tolist() == list(range(25))
