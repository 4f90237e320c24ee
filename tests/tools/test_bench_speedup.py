"""The speedup: which variants there are, who runs beside whom, the arithmetic, the image,
and that every variant's network and feed train."""

from __future__ import annotations

import dataclasses
import io
import itertools
from pathlib import Path

import pytest
import torch
from PIL import Image

from imagenet_prep.dataset.names import stats_beside
from tests.conftest import jpeg_bytes, smooth_pixels
from tests.trainer.conftest import Sample, make_beton
from tools.bench import speedup, speedup_variants
from tools.bench.contenders_step import tutorial_network
from tools.bench.harness import Lap, option_parser, options_of
from tools.bench.speedup_chart import draw
from tools.bench.speedup_plan import (
    IMAGENET_SAMPLES,
    NAIVE,
    TRAINER,
    TUTORIAL,
    Measured,
    groups,
    measure,
    variants,
)


def lap(rate: float, count: int = 100) -> Lap:
    """A lap of ``count`` images at ``rate`` images per second."""
    return Lap(count / rate, None, count, 0.0, ())


def figures() -> list[Measured]:
    """Two variants, the second twelve times as fast."""
    laps = {NAIVE: [lap(1.0), lap(2.0), lap(4.0)], TRAINER: [lap(24.0)]}
    return measure(variants("bfloat16"), laps)


def test_each_variant_changes_one_thing() -> None:
    series = variants("bfloat16")
    assert [variant.name for variant in series] == [
        "naive loop", "cropped once", "workers", "beton", "our loader", "decoding on the GPU",
        "our LRN", "half precision, channels-last", "compiled", "blocks", "trainer run",
    ]  # fmt: skip
    for below, variant in itertools.pairwise(series[:-2]):
        fed, built = below.feed != variant.feed, dict(below.network) != dict(variant.network)
        # "last" is "decoded" on a GPU, and "ours" on a CPU.
        assert (fed and variant.feed != "last") != built, variant.name
        assert dict(below.network).items() <= dict(variant.network).items()
    assert len({variant.change for variant in series}) == len(series)


def test_variants_of_a_gpu_are_left_out_with_a_reason_on_a_cpu() -> None:
    given = options_of(option_parser(""), option_parser("").parse_args([]))
    reasons = {one.name: speedup.skipped(one, given, "cpu") for one in variants("bfloat16")}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    assert left_out == dict.fromkeys(("decoding on the GPU", "blocks"), "needs a CUDA device")
    assert not any(speedup.skipped(one, given, "cuda") for one in variants("bfloat16"))


def test_the_chart_has_the_published_hours_and_is_repeatable() -> None:
    data = draw(figures(), "a machine", TUTORIAL)
    assert data == draw(figures(), "a machine", TUTORIAL)
    assert data != draw(figures(), "a machine", TUTORIAL[:2])
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"


@pytest.mark.parametrize("at_once", [2, 3, 4, 9, 20])
def test_neighbouring_variants_run_in_one_race(at_once: int) -> None:
    series = variants("bfloat16")
    parts = groups(series, at_once)
    together = [pair for part in parts for pair in itertools.pairwise(part)]
    assert together == list(itertools.pairwise(series))
    assert all(2 <= len(part) <= at_once for part in parts)


def test_seconds_for_imagenet_are_of_the_median_lap_with_spread() -> None:
    first, last = figures()
    assert first.seconds == IMAGENET_SAMPLES / 2
    assert (first.least_s, first.most_s) == (IMAGENET_SAMPLES / 4, IMAGENET_SAMPLES)
    assert (first.images, first.laps, first.times) == (300, 3, 1.0)
    assert last.times == pytest.approx(12.0)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Five images of 256 px."""
    return make_beton(tmp_path_factory.mktemp("sample"), 5, 256)


PLACE = speedup_variants.Place(batch=2, threads=1, device="cpu", small=True)


def files(folder: Path, count: int) -> speedup_variants.Data:
    """That many images of different sizes."""
    paths = []
    for number in range(count):
        paths.append(folder / f"{number}.jpg")
        paths[-1].write_bytes(jpeg_bytes(smooth_pixels(260 + 20 * number, 300, number)))
    return speedup_variants.Data([str(path) for path in paths], [n % 2 for n in range(count)])


def test_the_naive_feed_gives_every_image_at_the_networks_size(tmp_path: Path) -> None:
    epoch = speedup_variants.FEEDS["originals"](files(tmp_path, 3), PLACE)
    for _ in range(2):
        batches = list(epoch())
        assert [tuple(images.shape) for images, _ in batches] == [
            (2, 3, 227, 227),
            (1, 3, 227, 227),
        ]
        assert sorted(n for _, labels in batches for n in labels.tolist()) == [0, 0, 1]


def test_our_lrn_changes_the_time_and_not_the_tutorials_result() -> None:
    from trainer.network.lrn import LocalResponseNorm

    torch.manual_seed(0)
    library = tutorial_network(True).eval()
    ours = tutorial_network(True, LocalResponseNorm).eval()
    ours.load_state_dict(library.state_dict(), strict=False)
    images = torch.randn(1, 3, 227, 227)
    with torch.inference_mode():
        assert torch.allclose(library(images), ours(images), rtol=1e-4, atol=1e-5)


def test_our_feeds_give_every_image_and_the_trainer_takes_them(sample: Sample) -> None:
    data = speedup_variants.Data(beton=str(sample.path), stats=str(stats_beside(sample.path)))
    for feed in ("ours", "last"):
        labels = [n for _, batch in speedup_variants.FEEDS[feed](data, PLACE)() for n in batch]
        assert len(labels) == 5
    network = dict(variants("float32")[-1].network)
    shared = dataclasses.asdict(PLACE)
    made = speedup_variants.variant("trainer", network, dataclasses.asdict(data), shared)
    assert made.lap()["count"] == 5


@pytest.mark.parametrize("later", [False, True])
def test_a_step_learns_its_batch_with_the_changes_and_without(later: bool) -> None:
    torch.manual_seed(0)
    step = speedup_variants.Network(our_lrn=later, channels_last=later).steps(PLACE)
    images, labels = torch.randn(2, 3, 227, 227), torch.tensor([1, 2])
    losses = [step(images, labels) for _ in range(4)]
    assert losses[-1] < losses[0]
