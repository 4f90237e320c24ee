"""The loader: the same pixels every time, all samples once, wherever an epoch is taken up."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest
import torch

from imagenet_prep.core.errors import ToolError, UsageError
from tests.kit.loading import TRAIN, Sample, expected, kept, pixels, train
from trainer.loader import backends
from trainer.loader.loader import eval_loader, train_loader
from trainer.views.views import LAYOUTS

OPTIONS: list[dict[str, Any]] = [
    {},
    {"mean": "centre", "scaled": True, "lighting_mode": "image"},
    {"out_size": 40, "view": "resized", "scale": (0.3, 1.0)},
]


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("resampled", OPTIONS)
def test_training_batches_equal_the_plain_definition(
    small_beton: Sample, jobs: int, resampled: dict[str, Any]
) -> None:
    with train(small_beton, jobs=jobs, **resampled) as batches:
        batches.set_epoch(4)
        got = pixels(kept(batches))
        np.testing.assert_allclose(got, expected(small_beton, batches, 4), atol=1e-3, rtol=0)


def test_evaluation_is_the_centre_crop_minus_mean_in_file_order(full_beton: Sample) -> None:
    with eval_loader(full_beton.path, full_beton.stats, batch_size=4, jobs=1) as batches:
        found = kept(batches)
    assert [b.indices.tolist() for b in found] == [[0, 1, 2, 3], [4, 5]]
    want = (full_beton.images.astype(np.float32) - full_beton.stats.mean)[:, 14:241, 14:241]
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


@pytest.mark.parametrize("view", ["random", "resized"])
def test_another_side_gives_the_bits_of_a_loader_made_so(small_beton: Sample, view: str) -> None:
    with (
        train(small_beton, jobs=2, view=view) as grown,
        train(small_beton, view=view, out_size=40) as made,
    ):
        whole = kept(grown)
        grown.set_epoch(1)
        taken = len(next(iter(grown)).indices)
        grown.lighting = made.lighting = 0.5
        grown.out_size = 40
        position = grown.state_dict()
        assert (position["epoch"], position["position"]) == (1, taken)
        for epoch in (1, 2):
            for batches in (grown, made):
                batches.set_epoch(epoch)
            for mine, other in zip(kept(grown), kept(made), strict=True):
                assert mine.images.shape[2:] == (40, 40)
                assert torch.equal(mine.images, other.images)
                assert torch.equal(mine.indices, other.indices)
        grown.out_size = 51
        grown.lighting = 0.1
        grown.set_epoch(0)
        for mine, other in zip(kept(grown), whole, strict=True):
            assert torch.equal(mine.images, other.images)
        with pytest.raises(UsageError, match="out_size is 0"):
            grown.out_size = 0
        assert grown.out_size == 51


def test_one_thread_and_two_give_the_same_bits(small_beton: Sample) -> None:
    with train(small_beton) as one, train(small_beton, jobs=2) as two:
        for _ in range(2):
            for a, b in zip(kept(one), kept(two), strict=True):
                assert torch.equal(a.images, b.images)
                assert torch.equal(a.indices, b.indices)


def test_each_sample_comes_once_and_the_last_batch_is_kept(small_beton: Sample) -> None:
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
        want = small_beton.images.astype(np.float32) - small_beton.stats.mean
        np.testing.assert_allclose(pixels(kept(batches)), want, atol=1e-3, rtol=0)


def test_a_batch_is_valid_until_the_next_one_is_taken(small_beton: Sample) -> None:
    with train(small_beton, batch_size=2) as batches:
        want = kept(batches)
        batches.set_epoch(0)
        for mine, before in zip(batches, want, strict=True):
            # The loader's thread is given all the time it needs to run ahead.
            live: Any = batches._live
            if int(mine.indices[0]) == int(want[0].indices[0]):
                while not live.ready.full():
                    threading.Event().wait(0.001)
            assert torch.equal(mine.images, before.images)


@pytest.mark.parametrize("resampled", OPTIONS)
def test_the_device_pipeline_gives_the_same_batches(
    small_beton: Sample, monkeypatch: pytest.MonkeyPatch, resampled: dict[str, Any]
) -> None:
    monkeypatch.setattr(backends, "on_host", lambda device: False)
    with train(small_beton, **resampled) as batches:
        batches.set_epoch(1)
        found = kept(batches)
        want = expected(small_beton, batches, 1)
    np.testing.assert_allclose(pixels(found), want, atol=1e-3, rtol=0)
    for batch in found:
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.tolist() == small_beton.labels[batch.indices.numpy()].tolist()


@pytest.mark.parametrize("view", ["five", "ten"])
@pytest.mark.parametrize("device_half", [False, True])
def test_all_views_of_an_image_are_in_one_row(
    small_beton: Sample, view: str, device_half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device_half:
        monkeypatch.setattr(backends, "on_host", lambda device: False)
    with eval_loader(small_beton.path, batch_size=8, view=view, crop_size=51, jobs=2) as batches:
        found = kept(batches)
        want = expected(small_beton, batches, 0)
    assert found[0].images.shape == (8, int(want.shape[1]), 3, 51, 51)
    np.testing.assert_allclose(pixels(found), want, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("device_half", [False, True])
def test_dtypes_and_layouts_hold_the_same_pixels(
    small_beton: Sample, dtype: str, layout: str, device_half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device_half:
        monkeypatch.setattr(backends, "on_host", lambda device: False)
    with train(small_beton, dtype=dtype, layout=layout) as batches:
        found = kept(batches)
        want = torch.from_numpy(expected(small_beton, batches, 0)).movedim(-1, 1)
    images = found[0].images
    assert images.dtype == getattr(torch, dtype)
    first = layout == "channels_first"
    assert images.is_contiguous(
        memory_format=torch.contiguous_format if first else torch.channels_last
    )
    got = torch.cat([b.images for b in found])[torch.argsort(torch.cat([b.indices for b in found]))]
    if layout == "space_to_depth":
        assert got.shape == (25, 48, 13, 13)
        # (12 dy + 3 dx + c) of (y, x) is channel c of pixel (4 y + dy, 4 x + dx).
        blocks = got.reshape(25, 4, 4, 3, 13, 13).permute(0, 3, 4, 1, 5, 2)
        got = blocks.reshape(25, 3, 52, 52)
        assert not got[:, :, 51].any()
        got = got[:, :, :51, :51]
    close = {"uint8": 0.0, "float32": 0.0, "bfloat16": 2**-8, "float16": 2**-11}[dtype]
    assert torch.allclose(got.double(), want, rtol=close, atol=1e-3)


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


def test_a_batch_unpacks_and_the_loader_has_a_data_set(small_beton: Sample) -> None:
    with train(small_beton) as batches:
        images, labels = next(iter(batches))
        assert images.shape == (8, 3, 51, 51)
        assert labels.shape == (8,)
        assert len(batches.dataset) == 25
        assert batches.dataset.classes == ("ant", "bee", "cat")


@pytest.mark.parametrize("order", ["shuffle", "pages"])
def test_a_subset_has_the_pixels_and_the_order_of_the_whole(
    small_beton: Sample, order: str
) -> None:
    chosen = [20, 3, 4, 11, 9]
    with train(small_beton, order=order) as batches:
        whole = kept(batches)
    with train(small_beton, order=order, indices=chosen, batch_size=2) as batches:
        assert (len(batches), batches.samples, len(batches.dataset)) == (3, 5, 5)
        part = kept(batches)
        state = batches.state_dict()
    everything = torch.cat([b.indices for b in whole])
    at = torch.isin(everything, torch.tensor(chosen))
    assert torch.equal(torch.cat([b.indices for b in part]), everything[at])
    assert torch.equal(
        torch.cat([b.images for b in part]), torch.cat([b.images for b in whole])[at]
    )
    other = train(small_beton, order=order, indices=[1, 2, 3, 4, 5])
    with pytest.raises(ToolError) as caught:
        other.load_state_dict(state)
    assert caught.value.code == "loader.other_position"


@pytest.mark.parametrize("ranks", [1, 2])
def test_drop_last_leaves_out_what_makes_no_full_batch(small_beton: Sample, ranks: int) -> None:
    parts = []
    for rank in range(ranks):
        with train(small_beton, batch_size=4, drop_last=True, rank=rank, ranks=ranks) as batches:
            parts.append(kept(batches))
            assert len(batches) == len(parts[-1])
            state = batches.state_dict()
            batches.load_state_dict(state)
            assert batches.state_dict()["epoch"] == 1
    sizes = {len(b.indices) for part in parts for b in part}
    assert sizes == {4}
    assert sum(map(len, parts)) == 24 // (4 * ranks) * ranks


def test_mean_and_std_can_be_numbers(small_beton: Sample) -> None:
    numbers = {"mean": (124.0, 117.0, 104.0), "std": (58.0, 57.0, 57.5)}
    with eval_loader(small_beton.path, crop_size=64, jobs=1, **numbers) as batches:  # type: ignore[arg-type]
        got = pixels(kept(batches))
    want = (small_beton.images - np.array(numbers["mean"])) / np.array(numbers["std"])
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


def test_copied_batches_outlive_the_next_ones(small_beton: Sample) -> None:
    with train(small_beton, batch_size=2) as batches:
        want = kept(batches)
    with train(small_beton, batch_size=2, copy=True) as batches:
        for mine, before in zip(list(batches), want, strict=True):
            assert torch.equal(mine.images, before.images)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_loader_is_not_copied(small_beton: Sample, way: Any) -> None:
    with train(small_beton) as batches, pytest.raises(UsageError) as caught:
        way(batches)
    assert caught.value.code == "loader.copied"
