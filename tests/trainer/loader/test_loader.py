"""The loader: the same pixels every time, all samples once, wherever an epoch is taken up."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from imagenet_prep.core.errors import ToolError
from tests.kit.loading import TRAIN, Sample, expected, kept, pixels, train
from trainer.loader import pipelines
from trainer.loader.loader import Batch, eval_loader, train_loader

OPTIONS: list[dict[str, Any]] = [
    {},
    {"mean": "centre", "scaled": True, "lighting_mode": "image"},
    {"out_size": 40, "view": "resized", "scale": (0.3, 1.0)},
]


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    "resampled",
    [
        {},
        {"mean": "centre", "scaled": True, "lighting_mode": "image"},
        {"out_size": 40, "view": "resized", "scale": (0.3, 1.0)},
    ],
)
def test_training_batches_equal_the_plain_definition(
    small_beton: Sample, jobs: int, resampled: dict[str, Any]
) -> None:
    with train(small_beton, jobs=jobs, **resampled) as batches:
        batches.set_epoch(4)
        got = pixels(kept(batches))
        np.testing.assert_allclose(got, expected(small_beton, batches, 4), atol=1e-3, rtol=0)


def test_evaluation_is_the_centre_crop_minus_the_mean_in_file_order(full_beton: Sample) -> None:
    with eval_loader(full_beton.path, full_beton.stats, batch_size=4, jobs=1) as batches:
        found = kept(batches)
    assert [b.indices.tolist() for b in found] == [[0, 1, 2, 3], [4, 5]]
    want = (full_beton.pictures.astype(np.float32) - full_beton.stats.mean)[:, 14:241, 14:241]
    np.testing.assert_allclose(pixels(found), want, atol=1e-3, rtol=0)
    assert torch.cat([b.labels for b in found]).tolist() == full_beton.labels.tolist()


def test_batches_are_float32_and_channels_last(small_beton: Sample) -> None:
    with train(small_beton) as batches:
        for batch in batches:
            size = len(batch.indices)
            assert batch.images.shape == (size, 3, 51, 51)
            assert batch.images.dtype == torch.float32
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert batch.labels.dtype == batch.indices.dtype == torch.int64
            assert batch.labels.tolist() == small_beton.labels[batch.indices.numpy()].tolist()


def test_one_thread_and_two_give_the_same_bits(small_beton: Sample) -> None:
    with train(small_beton) as one, train(small_beton, jobs=2) as two:
        for _ in range(2):
            for a, b in zip(kept(one), kept(two), strict=True):
                assert torch.equal(a.images, b.images)
                assert torch.equal(a.indices, b.indices)


def test_every_sample_comes_once_per_epoch_and_the_last_batch_is_kept(small_beton: Sample) -> None:
    with train(small_beton) as batches:
        found = kept(batches)
        assert len(batches) == len(found) == 4
        assert batches.samples == 25
    assert [len(b.indices) for b in found] == [8, 8, 8, 1]
    assert sorted(torch.cat([b.indices for b in found]).tolist()) == list(range(25))


def test_a_set_smaller_than_a_batch_is_one_batch(small_beton: Sample) -> None:
    with train(small_beton, batch_size=128) as batches:
        assert [len(b.indices) for b in batches] == [25]


def test_epochs_and_seeds_differ_in_order_and_pixels(small_beton: Sample) -> None:
    with train(small_beton) as batches, train(small_beton, seed=4) as others:
        first, second, other = kept(batches), kept(batches), kept(others)
    for again in (second, other):
        assert first[0].indices.tolist() != again[0].indices.tolist()
        assert not np.array_equal(pixels(first), pixels(again))


def test_a_resumed_run_sees_what_the_unbroken_one_saw(small_beton: Sample) -> None:
    with train(small_beton) as unbroken:
        seen = [kept(unbroken) for _ in range(3)]
    with train(small_beton) as resumed:
        resumed.set_epoch(2)
        for a, b in zip(seen[2], kept(resumed), strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.indices, b.indices)


def test_no_mirror_and_no_lighting_leave_the_crop_alone(small_beton: Sample) -> None:
    with train(small_beton, mirror=False, lighting=0.0, crop_size=64) as batches:
        want = small_beton.pictures.astype(np.float32) - small_beton.stats.mean
        np.testing.assert_allclose(pixels(kept(batches)), want, atol=1e-3, rtol=0)


def test_a_batch_is_valid_until_the_next_one_is_taken(small_beton: Sample) -> None:
    with train(small_beton, batch_size=2) as batches:
        want = kept(batches)
        batches.set_epoch(0)
        for mine, before in zip(batches, want, strict=True):
            # The loader's thread is given all the time it needs to run ahead.
            live: Any = batches._live
            if int(mine.indices[0]) == int(want[0].indices[0]):
                while not live.output_queue.full():
                    threading.Event().wait(0.001)
            assert torch.equal(mine.images, before.images)


@pytest.mark.parametrize(
    "resampled",
    [
        {},
        {"mean": "centre", "scaled": True, "lighting_mode": "image"},
        {"out_size": 40, "view": "resized", "scale": (0.3, 1.0)},
    ],
)
def test_the_device_pipeline_gives_the_same_batches(
    small_beton: Sample, monkeypatch: pytest.MonkeyPatch, resampled: dict[str, Any]
) -> None:
    monkeypatch.setattr(pipelines, "on_host", lambda device: False)
    with train(small_beton, **resampled) as batches:
        batches.set_epoch(1)
        found = kept(batches)
        want = expected(small_beton, batches, 1)
    np.testing.assert_allclose(pixels(found), want, atol=1e-3, rtol=0)
    for batch in found:
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.tolist() == small_beton.labels[batch.indices.numpy()].tolist()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "resampled",
    [
        {},
        {"mean": "centre", "scaled": True, "lighting_mode": "image"},
        {"out_size": 40, "view": "resized", "scale": (0.3, 1.0)},
    ],
)
def test_on_cuda_the_batches_are_the_same(small_beton: Sample, resampled: dict[str, Any]) -> None:
    with train(small_beton, device="cuda", **resampled) as batches:
        batches.set_epoch(1)
        moved = []
        for batch in batches:
            assert batch.images.is_cuda
            assert batch.labels.is_cuda
            moved.append(Batch(batch.images.cpu(), batch.labels.cpu(), batch.indices))
        want = expected(small_beton, batches, 1)
    np.testing.assert_allclose(pixels(moved), want, atol=1e-3, rtol=0)


@pytest.mark.parametrize("view", ["five", "ten"])
@pytest.mark.parametrize("device_half", [False, True])
def test_all_views_of_a_picture_are_in_one_row(
    small_beton: Sample, view: str, device_half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device_half:
        monkeypatch.setattr(pipelines, "on_host", lambda device: False)
    with eval_loader(small_beton.path, batch_size=8, view=view, crop_size=51, jobs=2) as batches:
        found = kept(batches)
        want = expected(small_beton, batches, 0)
    assert found[0].images.shape == (8, int(want.shape[1]), 3, 51, 51)
    np.testing.assert_allclose(pixels(found), want, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", ["uint8", "bfloat16", "float16"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_dtypes_and_layouts_hold_the_same_pixels(
    small_beton: Sample, dtype: str, channels_last: bool
) -> None:
    with train(small_beton, dtype=dtype, channels_last=channels_last) as batches:
        found = kept(batches)
        want = torch.from_numpy(expected(small_beton, batches, 0))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert found[0].images.dtype == getattr(torch, dtype)
    assert found[0].images.is_contiguous(memory_format=layout)
    got = torch.cat([b.images for b in found])[torch.argsort(torch.cat([b.indices for b in found]))]
    close = {"uint8": 0.0, "bfloat16": 2**-8, "float16": 2**-11}[dtype]
    assert torch.allclose(got.movedim(1, -1).double(), want, rtol=close, atol=1e-3)


def test_statistics_beside_the_beton_are_found(small_beton: Sample) -> None:
    with train_loader(small_beton.path, **TRAIN) as own, train(small_beton) as given:
        np.testing.assert_array_equal(pixels(kept(own)), pixels(kept(given)))


def test_lighting_can_end_between_epochs(small_beton: Sample) -> None:
    with train(small_beton) as batches, train(small_beton, lighting_mode="off") as plain:
        assert batches.lighting == 0.1
        assert not np.array_equal(pixels(kept(batches)), pixels(kept(plain)))
        batches.lighting = 0.0
        np.testing.assert_array_equal(pixels(kept(batches)), pixels(kept(plain)))


@pytest.mark.parametrize("order", ["shuffle", "pages", "sequential"])
@pytest.mark.parametrize("after", range(5))
def test_an_epoch_goes_on_after_any_batch_with_the_same_pixels(
    small_beton: Sample, order: str, after: int
) -> None:
    with train(small_beton, order=order) as unbroken:
        unbroken.set_epoch(2)
        seen = kept(unbroken)
    with train(small_beton, order=order, jobs=2) as first:
        first.set_epoch(2)
        epoch = iter(first)
        for _ in range(after):
            next(epoch, None)
        state = first.state_dict()
    with train(small_beton, order=order) as second:
        second.load_state_dict(state)
        rest = kept(second)
    whole = seen[after:]
    if after == 4:  # that was the last: the next epoch begins
        assert state["position"] == 25
        assert second.state_dict()["epoch"] == 3
        return
    assert [b.indices.tolist() for b in rest] == [b.indices.tolist() for b in whole]
    assert all(torch.equal(a.images, b.images) for a, b in zip(rest, whole, strict=True))


def test_an_epoch_goes_on_with_another_batch_size(small_beton: Sample) -> None:
    with train(small_beton) as whole:
        order = torch.cat([b.indices for b in kept(whole)])
        whole.set_epoch(0)
        next(iter(whole))
        state = whole.state_dict()
    with train(small_beton, batch_size=5) as other:
        other.load_state_dict(state)
        assert torch.equal(torch.cat([b.indices for b in kept(other)]), order[8:])


@pytest.mark.parametrize("name", ["seed", "order", "beton"])
def test_a_position_in_another_loader_is_refused(small_beton: Sample, name: str) -> None:
    with train(small_beton) as batches:
        state = batches.state_dict() | {name: "other"}
        with pytest.raises(ToolError, match=name):
            batches.load_state_dict(state)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_see_together_what_one_process_sees(small_beton: Sample, ranks: int) -> None:
    each = 4
    with train(small_beton, batch_size=each * ranks) as one:
        want = kept(one)
    parts = []
    for rank in range(ranks):
        with train(small_beton, batch_size=each, rank=rank, ranks=ranks) as part:
            parts.append(kept(part))
            assert len(part) == len(parts[-1])
    everything = sorted(int(i) for part in parts for batch in part for i in batch.indices)
    assert everything == list(range(25))
    # 25 = 3 · 8 + 1 = 2 · 12 + 1: one is too few for all ranks, so two steps are shared out.
    whole = 25 // (each * ranks) - 1
    assert [len(batch.indices) for batch in parts[0]][:whole] == [each] * whole
    assert {len(part[-1].indices) for part in parts} <= {2, 3, 4}
    for step in range(whole):
        together = torch.cat([part[step].images for part in parts])
        assert torch.equal(together, want[step].images)
