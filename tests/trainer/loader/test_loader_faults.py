"""Damaged, replaced and truncated files, threads that die, epochs that are left: no fault
unnoticed, nothing left behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.dataset.beton_tables import inspect_beton
from imagenet_prep.dataset.names import manifest_beside
from tests.kit.loading import TRAIN, Damaged, Sample, kept, pixels, train
from trainer.loader.loader import eval_loader, train_loader
from trainer.loader.order import epoch_order


def test_a_sound_beton_is_described(small_beton: Sample) -> None:
    info = inspect_beton(small_beton.path)
    assert (info.samples, info.side_px, info.label_max) == (25, 64, 2)
    assert info.labels.tolist() == small_beton.labels.tolist()
    assert info.kind[0] == ("image", "label")


def put(dtype: str, offset: int, value: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        item = np.array(value, dtype).tobytes()
        data[offset : offset + len(item)] = item

    return change


def table_too_long(data: bytearray) -> None:
    put("<u8", int.from_bytes(data[16:24], "little") + 16, 2**64 - 1)(data)


HEADER, FIELDS = 24, 2 * 1041
FAULTS: dict[str, tuple[Callable[[bytearray], Any], str]] = {
    "text": (lambda d: d.__setitem__(slice(None), b"a text file, not images\n" * 9), "begin"),
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
def test_a_file_that_is_not_a_whole_beton_is_refused(damaged: Damaged, name: str) -> None:
    change, reason = FAULTS[name]
    broken = damaged(change)
    with pytest.raises(ToolError, match=reason) as caught:
        train(broken)
    assert caught.value.code == "beton.damaged"
    assert str(caught.value).startswith(str(broken.path))


def test_what_is_missing_or_does_not_belong_together_is_refused(
    small_beton: Sample, full_beton: Sample, damaged: Damaged, tmp_path: Path
) -> None:
    copy = damaged(lambda data: None)
    manifest_beside(copy.path).unlink()
    for path, stats, code in (
        (tmp_path / "absent.beton", small_beton.stats, "beton.missing"),
        (tmp_path, small_beton.stats, "beton.is_folder"),
        (copy.path, small_beton.stats, "manifest.missing"),
        (small_beton.path, full_beton.stats, "stats.size_differs"),
    ):
        with pytest.raises(ToolError) as caught:
            train_loader(path, stats, **TRAIN)
        assert caught.value.code == code


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"crop_size": 65}, "crop_size"),
    ({"out_size": 0}, "out_size"),
    ({"batch_size": 0}, "batch_size"),
    ({"scale": (0.0, 1.0)}, "scale"),
    ({"scale": (0.5, 1.5)}, "scale"),
    ({"ratio": (1.2, 1.5)}, "ratio"),
    ({"view": "sideways"}, "view"),
    ({"view": "ten"}, "view"),
    ({"mean": "median"}, "mean"),
    ({"mean": (0.485, 0.456, 0.406)}, "mean"),
    ({"std": (58.0, 57.0)}, "std"),
    ({"lighting_mode": "loud"}, "lighting_mode"),
    ({"dtype": "int4"}, "dtype"),
    ({"layout": "rows"}, "layout"),
    ({"decode": "tpu"}, "decode"),
    ({"resident": "maybe"}, "resident"),
    ({"order": "random"}, "order"),
    ({"rank": 2, "ranks": 2}, "rank"),
    ({"ranks": 0}, "ranks"),
    ({"ranks": 26}, "too_many_ranks"),
    ({"indices": [1, 1]}, "indices"),
    ({"indices": [25]}, "indices"),
    ({"indices": [-1]}, "indices"),
    ({"indices": []}, "indices"),
    ({"batch_size": 26, "drop_last": True}, "drop_last"),
    ({"batches_ahead": 0}, "batches_ahead"),
    ({"lighting": -1.0}, "lighting"),
    ({"jobs": 0}, "jobs"),
    ({"device": "abacus"}, "device"),
    ({"device": "meta"}, "device"),
]


@pytest.mark.parametrize(("changes", "option"), WRONG)
def test_wrong_usage_names_the_option(
    small_beton: Sample, changes: dict[str, Any], option: str
) -> None:
    with pytest.raises(UsageError) as caught:
        train(small_beton, **changes)
    assert caught.value.code == f"loader.{option}"


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
    offset, size, *_ = inspect_beton(sample.path).extents[index].tolist()
    return offset + size // 2, offset + size


def flipped(sample: Sample, index: int, place: int) -> Callable[[bytearray], None]:
    """Turns all bits of byte ``place`` of a sample."""
    offset = int(inspect_beton(sample.path).extents[index, 0])
    return lambda data: data.__setitem__(offset + place, data[offset + place] ^ 0xFF)


def zeroed(start: int, end: int) -> Callable[[bytearray], None]:
    return lambda data: data.__setitem__(slice(start, end), bytes(end - start))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_damaged_sample_stops_the_epoch_with_its_key(
    small_beton: Sample, damaged: Damaged, jobs: int
) -> None:
    broken = damaged(zeroed(*half_of(small_beton, 7)))
    with train(broken, jobs=jobs) as batches:
        order = epoch_order(3, 0, 25).tolist()
        good = 0
        with pytest.raises(ToolError) as caught:
            for batch in batches:
                good += 1
                assert 7 not in batch.indices
    assert good == order.index(7) // 8
    assert caught.value.code == "loader.sample_damaged"
    assert f"{broken.path}: sample 7, {small_beton.manifest.keys[7]}" in str(caught.value)


def test_a_page_of_zeros_stops_the_epoch_with_its_first_key(
    small_beton: Sample, damaged: Damaged
) -> None:
    extents = inspect_beton(small_beton.path).extents
    broken = damaged(zeroed(int(extents[:, 0].min()), int(extents[:, :2].sum(axis=1).max())))
    batches = eval_loader(broken.path, broken.stats, crop_size=51, jobs=1)
    with pytest.raises(ToolError, match=f"sample 0, {small_beton.manifest.keys[0]}"):
        kept(batches)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_flipped_byte_in_a_jpegs_beginning_is_named(
    small_beton: Sample, damaged: Damaged, place: int
) -> None:
    broken = damaged(flipped(small_beton, 4, place))
    batches = eval_loader(broken.path, small_beton.stats, crop_size=51, jobs=1)
    with batches, pytest.raises(ToolError, match=f"sample 4, {small_beton.manifest.keys[4]}"):
        kept(batches)


def test_a_jpeg_of_another_size_is_not_taken_for_an_image(
    small_beton: Sample, damaged: Damaged
) -> None:
    offset, size, *_ = inspect_beton(small_beton.path).extents[3].tolist()

    def change(data: bytearray) -> None:
        frame = data.index(b"\xff\xc0", offset, offset + size)
        data[frame + 6] = 48

    with train(damaged(change)) as batches, pytest.raises(ToolError, match=r"sample 3, .*header"):
        kept(batches)


def test_a_flipped_byte_that_decodes_is_found_by_its_digest(
    small_beton: Sample, damaged: Damaged
) -> None:
    size = int(inspect_beton(small_beton.path).extents[4, 1])
    for place in range(size * 2 // 3, size):
        copy = damaged(flipped(small_beton, 4, place))
        with eval_loader(copy.path, copy.stats, crop_size=51, jobs=1) as batches:
            try:
                kept(batches)
            except ToolError:
                continue
        break
    else:
        pytest.fail("every flipped byte was noticed: this test shows nothing")
    with pytest.raises(ToolError) as caught:
        eval_loader(copy.path, copy.stats, crop_size=51, jobs=1, verify=True)
    assert caught.value.code == "beton.page_changed"
    with train(small_beton, verify=True) as batches:
        assert len(kept(batches)) == 4


def replaced(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes()[:-1] + b"?")  # the same contents would be no change
    other.replace(path)


def rewritten(path: Path) -> None:
    start = int(inspect_beton(path).extents[:, 0].min()) if path.stat().st_size > 6000 else 0
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(1000))


CHANGES: dict[str, Callable[[Path], Any]] = {
    "replaced": replaced,
    "rewritten": rewritten,
    "deleted": lambda path: path.unlink(missing_ok=True),
    "cut": lambda path: os.truncate(path, 5000),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_during_an_epoch_is_noticed(damaged: Damaged, change: str) -> None:
    copy = damaged(lambda data: None)
    with train(copy, batch_size=1, batches_ahead=1) as batches:
        found = 0
        with pytest.raises(ToolError) as caught:
            for _ in batches:
                found += 1
                CHANGES[change](copy.path)
    assert 0 < found < 25
    assert caught.value.code == "beton.changed"
    assert str(copy.path) in str(caught.value)


def test_a_file_that_changed_between_epochs_is_noticed(damaged: Damaged) -> None:
    copy = damaged(lambda data: None)
    with train(copy) as batches:
        kept(batches)
        for change, code in ((replaced, "beton.changed"), (Path.unlink, "beton.missing")):
            change(copy.path)
            with pytest.raises(ToolError) as caught:
                kept(batches)
            assert caught.value.code == code


def test_a_file_that_ends_before_a_sample_is_named(
    damaged: Damaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the change itself escaped notice: the read that comes too short does not.
    copy = damaged(lambda data: None)
    with train(copy, batch_size=1, batches_ahead=1) as batches:
        stamp = batches.info.stamps[0]
        monkeypatch.setattr("trainer.loader.beton_loader.stamp_of", lambda path: stamp)
        with pytest.raises(ToolError, match="the file ends before it"):
            for _ in batches:
                os.truncate(copy.path, 5000)


def test_an_exception_in_the_thread_is_raised_in_the_consumer(
    small_beton: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    with train(small_beton) as batches:
        calls = iter([None, None])
        monkeypatch.setattr(batches, "_check", lambda indices: next(calls))
        found = 0
        # A generator turns StopIteration into RuntimeError; FFCV would take it for the end.
        with pytest.raises(RuntimeError):
            for _ in batches:
                found += 1
        assert found == 2
        monkeypatch.undo()
        batches.set_epoch(0)
        assert len(kept(batches)) == 4


@pytest.fixture
def no_new_threads() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_closing_ends_the_epoch_under_way(small_beton: Sample, no_new_threads: None) -> None:
    batches = train(small_beton, batch_size=2)
    epoch = iter(batches)
    next(epoch)
    batches.close()
    with pytest.raises(ToolError, match="iteration"):
        next(epoch)


def test_another_epoch_ends_the_one_under_way(small_beton: Sample, no_new_threads: None) -> None:
    with train(small_beton, batch_size=2) as batches:
        first = iter(batches)
        next(first)
        assert len(kept(batches)) == 13
        with pytest.raises(ToolError, match="iteration"):
            next(first)


def test_the_callers_thread_counts_stay_as_they_were(small_beton: Sample) -> None:
    before = torch.get_num_threads()
    numba_before = numba.get_num_threads()
    try:
        torch.set_num_threads(3)
        with train(small_beton, jobs=1) as batches:
            for _ in batches:
                assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 3
        assert numba.get_num_threads() == numba_before
    finally:
        torch.set_num_threads(before)


def test_the_wait_for_data_is_measured_per_epoch(small_beton: Sample) -> None:
    batches = train(small_beton)
    assert batches.wait_s == 0
    kept(batches)
    assert batches.wait_s > 0
