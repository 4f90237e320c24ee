"""The loader: the same pixels every time, all samples once, no fault unnoticed, no thread left."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from imagenet_prep.artifacts import Stats, ToolError, UsageError, manifest_beside
from trainer import engine, loader
from trainer.draws import colour_basis, draws, numpy_sample
from trainer.loader import Batch, BetonLoader, eval_loader, inspect_beton, train_loader

Sample = Any
Damaged = Callable[[Callable[[bytearray], Any]], Sample]
TRAIN: dict[str, Any] = {"batch_size": 8, "crop_size": 51, "seed": 3, "jobs": 1}


def train(sample: Sample, **changes: Any) -> BetonLoader:
    return train_loader(sample.path, sample.stats, **(TRAIN | changes))


def kept(batches: BetonLoader) -> list[Batch]:
    """The epoch's batches, cloned: the loader's own are valid until the next one."""
    return [Batch(b.images.clone(), b.labels.clone(), b.indices.clone()) for b in batches]


def pixels(batches: list[Batch]) -> NDArray[np.float32]:
    """(N, S, S, 3) of all batches in the samples' file order."""
    images = torch.cat([b.images for b in batches]).permute(0, 2, 3, 1)
    order = torch.argsort(torch.cat([b.indices for b in batches]))
    return np.asarray(images[order])


def expected(sample: Sample, batches: BetonLoader, epoch: int) -> NDArray[np.float64]:
    """What the plain definition gives, in file order."""
    views = batches._decoder.views
    stats: Stats = sample.stats
    basis = colour_basis(stats.eigenvectors, stats.eigenstdev, views.lighting)
    drawn = draws(views, epoch, np.arange(len(sample.pictures)), stats.size_px)
    pictures = enumerate(sample.pictures)
    return np.stack([numpy_sample(p, stats.mean, basis, views, drawn, i) for i, p in pictures])


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("resampled", [{}, {"out_size": 40, "scale_min": 0.3}])
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


@pytest.mark.parametrize("resampled", [{}, {"out_size": 40, "scale_min": 0.3}])
def test_the_device_pipeline_gives_the_same_batches(
    small_beton: Sample, monkeypatch: pytest.MonkeyPatch, resampled: dict[str, Any]
) -> None:
    monkeypatch.setattr(loader, "_on_host", lambda device: False)
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
@pytest.mark.parametrize("resampled", [{}, {"out_size": 40, "scale_min": 0.3}])
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


def test_a_sound_beton_is_described(small_beton: Sample) -> None:
    info = inspect_beton(small_beton.path)
    assert (info.samples, info.side_px, info.label_max) == (25, 64, 2)
    assert info.labels.tolist() == small_beton.labels.tolist()
    assert info.fields == ("image", "label")


def put(dtype: str, offset: int, value: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        item = np.array(value, dtype).tobytes()
        data[offset : offset + len(item)] = item

    return change


def table_too_long(data: bytearray) -> None:
    put("<u8", int.from_bytes(data[16:24], "little") + 16, 2**64 - 1)(data)


HEADER, FIELDS = 24, 2 * 1041
FAULTS: dict[str, tuple[Callable[[bytearray], Any], str]] = {
    "text": (lambda d: d.__setitem__(slice(None), b"a text file, not pictures\n" * 9), "begin"),
    "empty": (lambda d: d.clear(), "header"),
    "header": (lambda d: d.__delitem__(slice(30, None)), "list of fields"),
    "half": (lambda d: d.__delitem__(slice(len(d) // 2, None)), "cut short"),
    "tail": (lambda d: d.__delitem__(slice(-5, None)), "cut short"),
    "version": (put("<u2", 0, 9), "begin"),
    "samples": (put("<u8", 8, 2**60), "table of samples"),
    "none": (put("<u8", 8, 0), "no samples"),
    "table": (put("<u8", 16, 2**63), "cut short"),
    "field": (put("<u1", HEADER, 77), "unknown"),
    "offset": (put("<u8", HEADER + FIELDS + 5, 2**64 - 9), "place of sample 0"),
    "size": (table_too_long, "not within the file"),
    "width": (put("<u2", HEADER + FIELDS + 1, 63), "squares"),
    "label": (put("<i8", HEADER + FIELDS + 16, -1), "negative label"),
    "mode": (put("<u1", HEADER + FIELDS, 9), "place of sample 0"),
    "raw": (put("<u1", HEADER + FIELDS, 1), "place of sample 0"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_is_not_a_whole_beton_gets_one_sentence(damaged: Damaged, name: str) -> None:
    change, reason = FAULTS[name]
    broken = damaged(change)
    with pytest.raises(ToolError, match=reason) as caught:
        train(broken)
    text = str(caught.value)
    assert text.startswith(str(broken.path))
    assert "\n" not in text
    assert "imagenet-prep build" in text


def test_a_missing_file_a_folder_and_a_missing_manifest_get_their_sentences(
    small_beton: Sample, damaged: Damaged, tmp_path: Path
) -> None:
    absent = dataclasses.replace(small_beton, path=tmp_path / "absent.beton")
    with pytest.raises(UsageError, match="no such file"):
        train(absent)
    with pytest.raises(UsageError, match="is a folder"):
        train(dataclasses.replace(small_beton, path=tmp_path))
    copy = damaged(lambda data: None)
    manifest_beside(copy.path).unlink()
    with pytest.raises(ToolError, match="manifest"):
        train(copy)


def test_statistics_of_other_pictures_are_refused(small_beton: Sample, full_beton: Sample) -> None:
    with pytest.raises(ToolError, match="256 px"):
        train_loader(small_beton.path, full_beton.stats, **TRAIN)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"crop_size": 65}, "crop_size is 65"),
    ({"out_size": 0}, "out_size is 0"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"scale_min": 0.0}, "scale_min is 0"),
    ({"scale_min": 1.5}, "scale_min is 1.5"),
    ({"lighting": -1.0}, "lighting is -1"),
    ({"jobs": 0}, "jobs is 0"),
    ({"device": "abacus"}, "unknown"),
    ({"device": "meta"}, "cpu and cuda only"),
]


@pytest.mark.parametrize(("changes", "reason"), WRONG)
def test_wrong_usage_gets_one_sentence(
    small_beton: Sample, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        train(small_beton, **changes)


def test_cuda_without_a_device_is_wrong_usage(
    small_beton: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no usable CUDA device"):
        train(small_beton, device="cuda")


def test_more_jobs_than_cores_are_as_many_as_there_are(small_beton: Sample) -> None:
    with train(small_beton, jobs=10_000) as many, train(small_beton, jobs=None) as own:
        np.testing.assert_array_equal(pixels(kept(many)), pixels(kept(own)))


def half_of(sample: Sample, index: int) -> tuple[int, int]:
    """(start, end) in the file of the second half of a sample's bytes."""
    offset, size, _ = inspect_beton(sample.path).extents[index].tolist()
    return offset + size // 2, offset + size


def zeroed(start: int, end: int) -> Callable[[bytearray], None]:
    return lambda data: data.__setitem__(slice(start, end), bytes(end - start))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_damaged_sample_stops_the_epoch_with_its_key(
    small_beton: Sample, damaged: Damaged, jobs: int
) -> None:
    broken = damaged(zeroed(*half_of(small_beton, 7)))
    with train(broken, jobs=jobs) as batches:
        order = batches._loader.traversal_order.sample_order(0).tolist()
        good = 0
        with pytest.raises(ToolError) as caught:
            for batch in batches:
                good += 1
                assert 7 not in batch.indices
    assert good == order.index(7) // 8
    text = str(caught.value)
    assert str(broken.path) in text
    assert "sample 7" in text
    assert small_beton.manifest.keys[7] in text


def test_a_page_of_zeros_stops_the_epoch_with_the_first_key_in_it(
    small_beton: Sample, damaged: Damaged
) -> None:
    extents = inspect_beton(small_beton.path).extents
    broken = damaged(zeroed(int(extents[:, 0].min()), int(extents[:, :2].sum(axis=1).max())))
    batches = eval_loader(broken.path, broken.stats, crop_size=51, jobs=1)
    with pytest.raises(ToolError, match="sample 0, ") as caught:
        kept(batches)
    assert small_beton.manifest.keys[0] in str(caught.value)


def test_a_jpeg_of_another_size_is_not_taken_for_a_picture(
    small_beton: Sample, damaged: Damaged
) -> None:
    offset, size, _ = inspect_beton(small_beton.path).extents[3].tolist()

    def change(data: bytearray) -> None:
        frame = data.index(b"\xff\xc0", offset, offset + size)
        data[frame + 6] = 48

    with train(damaged(change)) as batches, pytest.raises(ToolError, match=r"sample 3, .*header"):
        kept(batches)


def test_a_file_that_was_replaced_between_epochs_is_noticed(damaged: Damaged) -> None:
    copy = damaged(lambda data: None)
    with train(copy) as batches:
        kept(batches)
        other = copy.path.with_suffix(".new")
        other.write_bytes(copy.path.read_bytes())
        other.replace(copy.path)
        with pytest.raises(ToolError, match="was replaced"):
            kept(batches)
        copy.path.unlink()
        with pytest.raises(ToolError, match="was replaced"):
            kept(batches)


def test_an_exception_in_the_thread_is_raised_in_the_consumer(
    small_beton: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    with train(small_beton) as batches:
        calls = iter([None, None])
        monkeypatch.setattr(batches._decoder, "fault", lambda count: next(calls))
        found = 0
        # A generator turns StopIteration into RuntimeError; FFCV would take it for the end.
        with pytest.raises(RuntimeError):
            for _ in batches:
                found += 1
        assert found == 2
        monkeypatch.undo()
        batches.set_epoch(0)
        assert len(kept(batches)) == 4


def test_a_thread_that_dies_without_a_word_is_noticed(
    small_beton: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    with train(small_beton) as batches:
        monkeypatch.setattr(engine.Epoch, "run", lambda self: None)
        with pytest.raises(RuntimeError, match="ended"):
            next(iter(batches))


@pytest.fixture
def no_new_threads() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_leaving_epochs_early_leaves_no_thread(small_beton: Sample, no_new_threads: None) -> None:
    with train(small_beton, batch_size=2) as batches:
        for round_ in range(50):
            for number, _ in enumerate(batches):
                if number == round_ % 5:
                    break
            assert batches._live is None


def test_an_interrupted_epoch_leaves_no_thread(small_beton: Sample, no_new_threads: None) -> None:
    batches = train(small_beton, batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        for _ in batches:
            raise KeyboardInterrupt
    assert batches._live is None


def test_closing_ends_the_epoch_under_way(small_beton: Sample, no_new_threads: None) -> None:
    batches = train(small_beton, batch_size=2)
    epoch = iter(batches)
    next(epoch)
    batches.close()
    with pytest.raises(RuntimeError, match="ended"):
        next(epoch)


def test_another_epoch_ends_the_one_under_way(small_beton: Sample, no_new_threads: None) -> None:
    with train(small_beton, batch_size=2) as batches:
        first = iter(batches)
        next(first)
        assert len(kept(batches)) == 13
        with pytest.raises(RuntimeError, match="ended"):
            next(first)


def test_the_callers_thread_counts_stay_as_they_were(small_beton: Sample) -> None:
    before = torch.get_num_threads()
    numba_before = engine.numba.get_num_threads()
    try:
        torch.set_num_threads(3)
        with train(small_beton, jobs=1) as batches:
            for _ in batches:
                assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 3
        assert engine.numba.get_num_threads() == numba_before
    finally:
        torch.set_num_threads(before)


def test_the_wait_for_data_is_measured_per_epoch(small_beton: Sample) -> None:
    batches = train(small_beton)
    assert batches.wait_s == 0
    kept(batches)
    assert batches.wait_s > 0


def test_a_stock_loader_in_the_same_process_does_no_harm(small_beton: Sample) -> None:
    with engine.no_deprecations(), engine.same_threads():
        stock = engine.ffcv.Loader(str(small_beton.path), 25, num_workers=1, drop_last=False)
        images, _ = next(iter(stock))
    np.testing.assert_array_equal(images, small_beton.pictures)
    with train(small_beton, jobs=2) as batches:
        np.testing.assert_allclose(
            pixels(kept(batches)), expected(small_beton, batches, 0), atol=1e-3, rtol=0
        )
