"""The speed ladder: which rungs there are, who runs beside whom, the arithmetic, the picture,
and that every rung's network and feed train."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import jpeg_bytes, smooth_pixels
from tools.bench import ladder as bench_ladder
from tools.bench import ladder_rungs
from tools.bench.contenders_step import tutorial_network
from tools.bench.harness import Lap
from tools.bench.ladder_chart import draw
from tools.bench.ladder_plan import (
    COMPILED,
    IMAGENET_SAMPLES,
    NAIVE,
    TRAINER,
    Measured,
    duration,
    groups,
    lines,
    measure,
    rungs,
)


def lap(rate: float, count: int = 100) -> Lap:
    """A lap of ``count`` pictures at ``rate`` pictures per second."""
    return Lap(count / rate, None, count, 0.0, ())


def figures() -> list[Measured]:
    """Two rungs, the second twelve times as fast."""
    laps = {NAIVE: [lap(1.0), lap(2.0), lap(4.0)], TRAINER: [lap(24.0)]}
    return measure(rungs("bfloat16"), laps)


def test_the_ladder_changes_one_thing_at_a_time() -> None:
    ladder = rungs("bfloat16")
    assert [rung.name for rung in ladder] == [
        "naive loop", "cropped once", "workers", "beton", "our pipeline", "our LRN",
        "half precision, channels-last", "compiled", "trainer run",
    ]  # fmt: skip
    for below, rung in itertools.pairwise(ladder[:-1]):
        fed, built = below.feed != rung.feed, dict(below.network) != dict(rung.network)
        assert fed != built, rung.name
        assert dict(below.network).items() <= dict(rung.network).items()
    assert len({rung.change for rung in ladder}) == len(ladder)


def test_without_half_precision_in_hardware_channels_last_has_a_rung_alone() -> None:
    ladder = rungs("float32")
    assert len(ladder) == len(rungs("float16"))
    assert ladder[6].name == "channels-last"
    assert {rung.network.get("precision", "float32") for rung in ladder} == {"float32"}


@pytest.mark.parametrize("at_once", [2, 3, 4, 9, 20])
def test_every_two_rungs_that_follow_one_another_run_in_one_race(at_once: int) -> None:
    ladder = rungs("bfloat16")
    parts = groups(ladder, at_once)
    together = [pair for part in parts for pair in itertools.pairwise(part)]
    assert together == list(itertools.pairwise(ladder))
    assert all(2 <= len(part) <= at_once for part in parts)


def test_one_rung_is_a_group_and_nothing_is_compared_with_itself() -> None:
    assert groups(rungs("float32")[:1]) == [list(rungs("float32")[:1])]
    with pytest.raises(ValueError, match="two rungs"):
        groups(rungs("float32"), 1)


def test_seconds_for_imagenet_are_of_the_median_lap_with_the_spread_beside_them() -> None:
    first, last = figures()
    assert first.seconds == IMAGENET_SAMPLES / 2
    assert (first.least_s, first.most_s) == (IMAGENET_SAMPLES / 4, IMAGENET_SAMPLES)
    assert (first.pictures, first.laps, first.times) == (300, 3, 1.0)
    assert last.times == pytest.approx(12.0)


def test_a_rung_that_did_not_run_is_left_out() -> None:
    assert [one.name for one in measure(rungs("float32"), {TRAINER: [lap(1.0)]})] == [TRAINER]
    assert measure(rungs("float32"), {}) == []


@pytest.mark.parametrize(
    ("seconds", "words"), [(158_400, "44 h"), (648, "10.8 min"), (59.96, "60 s"), (7200, "2 h")]
)
def test_durations_are_in_the_unit_that_people_use(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_table_has_a_line_per_rung_with_the_pictures_that_it_rests_on() -> None:
    head, first, last = lines(figures())
    assert "s for ImageNet" in head
    assert first.startswith("naive loop   ")
    assert "640,584" in first
    assert " 300 " in first
    assert " 12.00 " in last


def test_the_row_from_first_to_last_wants_both_of_them() -> None:
    (row,) = bench_ladder.whole(figures(), 6.0)
    assert (row.what, row.at_least) == ("naive loop to trainer run", 6.0)
    assert row.ratio == pytest.approx(12.0)
    assert bench_ladder.whole(figures()[:1], 6.0) == []
    assert bench_ladder.whole(figures()[::-1], 6.0) == []


def test_the_picture_is_the_same_for_the_same_figures() -> None:
    data = draw(figures(), "two cores")
    assert data == draw(figures(), "two cores")
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 5


def test_what_a_smoke_test_leaves_out_runs_in_other_rungs() -> None:
    from tools.bench.harness import options

    given = options("", ["--smoke"])
    left = {r.name for r in rungs("float32") if bench_ladder.skipped(r, given) is not None}
    assert left == {COMPILED, *bench_ladder.COVERED}
    kept = [r for r in rungs("float32") if r.name not in left]
    assert {"originals", "workers", "ffcv", "ours"} < {r.feed for r in kept}
    assert not any(bench_ladder.skipped(r, options("", [])) for r in rungs("float32"))


PLACE = ladder_rungs.Place(batch=2, threads=1, device="cpu", small=True)


def files(folder: Path, count: int) -> ladder_rungs.Data:
    """That many pictures of different sizes."""
    paths = []
    for number in range(count):
        paths.append(folder / f"{number}.jpg")
        paths[-1].write_bytes(jpeg_bytes(smooth_pixels(260 + 20 * number, 300, number)))
    return ladder_rungs.Data([str(path) for path in paths], [n % 2 for n in range(count)])


def test_the_naive_feed_gives_every_picture_at_the_networks_size(tmp_path: Path) -> None:
    epoch = ladder_rungs.FEEDS["originals"](files(tmp_path, 3), PLACE)
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
    pictures = torch.randn(1, 3, 227, 227)
    with torch.inference_mode():
        assert torch.allclose(library(pictures), ours(pictures), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("later", [False, True])
def test_a_step_learns_its_batch_with_the_changes_and_without(later: bool) -> None:
    step = ladder_rungs.Network(our_lrn=later, channels_last=later).steps(PLACE)
    images, labels = torch.randn(2, 3, 227, 227), torch.tensor([1, 2])
    losses = [step(images, labels) for _ in range(4)]
    assert losses[-1] < losses[0]
