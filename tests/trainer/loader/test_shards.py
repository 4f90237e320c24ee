"""Shards through the loader: one data set, the same bits as from one file, faults by name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imagenet_prep.beton import build as beton
from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.files import file_digest
from imagenet_prep.dataset import beton_tables
from imagenet_prep.dataset.beton_tables import inspect_beton, inspect_betons
from imagenet_prep.dataset.shards import Betons, find_betons
from tests.kit.loading import TRAIN, Sample, kept, open_betons, pixels
from tests.trainer.conftest import CLASSES
from trainer.loader.loader import Batch, BetonLoader, eval_loader, train_loader
from trainer.report.gallery import read_images


def build(sample: Sample, folder: Path, *, split: str = "train", **packing: Any) -> Betons:
    """The crops of ``sample`` again, as a set of betons in ``folder``."""
    stats = sample.path.parent / "stats.npz"
    beton.build_beton(
        sample.path.parent / "cropped", split, folder / f"{split}.beton", stats=sample.stats,
        stats_digest=file_digest(stats), classes=CLASSES, jobs=1,
        crops=list(zip(sample.manifest.keys, sample.labels.tolist(), strict=True)), **packing,
    )  # fmt: skip
    return find_betons(folder / (f"{split}-*.beton" if "shards" in packing else f"{split}.beton"))


@pytest.fixture(scope="session")
def sharded(small_beton: Sample, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Betons]:
    """The small beton in so many shards, or as one file (0), in a format; built once each."""
    made: dict[tuple[int, str], Betons] = {}

    def get(count: int, format: str = "jpeg") -> Betons:
        if (count, format) not in made:
            folder = tmp_path_factory.mktemp("sharded")
            packing: dict[str, Any] = {"format": format} | ({"shards": count} if count else {})
            made[count, format] = build(small_beton, folder, **packing)
        return made[count, format]

    return get


@pytest.fixture
def four(small_beton: Sample, tmp_path: Path) -> Betons:
    """The small beton in four shards of a test's own: 6, 6, 6 and 7 samples."""
    return build(small_beton, tmp_path, shards=4)


def epoch(betons: Betons | Path, number: int = 0, **changes: Any) -> list[Batch]:
    with train_loader(betons, **(TRAIN | changes)) as batches:
        batches.set_epoch(number)
        return kept(batches)


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.indices.tolist() == other.indices.tolist()
        assert one.labels.tolist() == other.labels.tolist()
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("order", ["shuffle", "sequential"])
@pytest.mark.parametrize("format", ["jpeg", "mixed:0.5"])
@pytest.mark.parametrize("count", [1, 2, 5, 25])
def test_epochs_are_the_same_bits_for_any_number_of_shards(
    sharded: Callable[..., Betons], count: int, format: str, order: str
) -> None:
    for number in (0, 3):
        expected = epoch(sharded(0, format), number, order=order)
        assert_same(epoch(sharded(count, format), number, order=order), expected)


def test_two_threads_read_shards_as_one_does(sharded: Callable[..., Betons]) -> None:
    assert_same(epoch(sharded(5), jobs=2), epoch(sharded(0)))


def test_evaluation_of_shards_is_that_of_one_file(sharded: Callable[..., Betons]) -> None:
    found = []
    for betons in (sharded(0), sharded(5)):
        with eval_loader(betons, batch_size=8, crop_size=51, view="five", jobs=1) as batches:
            found.append(kept(batches))
    assert_same(found[1], found[0])


def test_page_order_gives_each_sample_once_with_the_same_pixels(
    sharded: Callable[..., Betons],
) -> None:
    found = epoch(sharded(5), order="pages", pages_at_once=2)
    indices = torch.cat([batch.indices for batch in found]).tolist()
    assert sorted(indices) == list(range(25))
    # Shards are read one page after the other: two of five at a time, of five samples each.
    groups = [{index // 5 for index in indices[at : at + 10]} for at in (0, 10, 20)]
    assert [len(group) for group in groups] == [2, 2, 1]
    np.testing.assert_array_equal(pixels(found), pixels(epoch(sharded(0))))


@pytest.mark.parametrize("order", ["shuffle", "pages"])
def test_an_epoch_over_shards_goes_on_where_it_was_left(
    sharded: Callable[..., Betons], order: str
) -> None:
    expected = epoch(sharded(5), 2, order=order)
    with train_loader(sharded(5), **TRAIN, order=order) as batches:
        batches.set_epoch(2)
        begun = iter(batches)
        next(begun), next(begun)
        state = batches.state_dict()
    with train_loader(sharded(5), **TRAIN, order=order) as batches:
        batches.load_state_dict(state)
        assert_same(kept(batches), expected[2:])


def test_a_position_in_another_set_is_refused(sharded: Callable[..., Betons]) -> None:
    with train_loader(sharded(2), **TRAIN) as batches:
        state = batches.state_dict()
    with train_loader(sharded(5), **TRAIN) as batches, pytest.raises(ToolError, match="beton"):
        batches.load_state_dict(state)


def test_ranks_share_out_the_samples_of_all_shards(sharded: Callable[..., Betons]) -> None:
    everything: list[Batch] = []
    for rank in (0, 1):
        part = epoch(sharded(5), batch_size=4, rank=rank, ranks=2)
        assert_same(part, epoch(sharded(0), batch_size=4, rank=rank, ranks=2))
        everything += part
    np.testing.assert_array_equal(pixels(everything), pixels(epoch(sharded(0))))


def test_tables_of_shards_are_one_after_the_other(sharded: Callable[..., Betons]) -> None:
    one, many = inspect_betons(sharded(0).paths), inspect_betons(sharded(5).paths)
    np.testing.assert_array_equal(many.labels, one.labels)
    np.testing.assert_array_equal(many.extents[:, 1:3], one.extents[:, 1:3])
    assert many.extents[:, 3].tolist() == [i // 5 for i in range(25)]
    pages = many.pages()
    assert pages.tolist() == sorted(pages.tolist())
    assert len(set(pages.tolist())) == 5


def test_files_of_other_kinds_are_no_set(small_beton: Sample, full_beton: Sample) -> None:
    with pytest.raises(ToolError) as caught:
        inspect_betons([small_beton.path, full_beton.path])
    assert caught.value.code == "beton.shard_differs"


def test_images_of_a_set_are_read_from_their_files(
    small_beton: Sample, sharded: Callable[..., Betons]
) -> None:
    places = [24, 0, 13]
    found = read_images(sharded(5, "raw"), places)
    expected = read_images(small_beton.path, places)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_each_page_is_announced_in_its_own_file(
    sharded: Callable[..., Betons], monkeypatch: pytest.MonkeyPatch
) -> None:
    betons = sharded(5)
    told: list[tuple[str, int, int]] = []

    def announced(file: int, at: int, size: int, what: int) -> None:
        told.append((str(Path(f"/proc/self/fd/{file}").readlink()), at, size))

    if not Path("/proc/self/fd").exists() or not hasattr(os, "posix_fadvise"):
        pytest.skip("the system has no such announcements, or does not show descriptors")
    monkeypatch.setattr(os, "posix_fadvise", announced)
    epoch(betons, order="pages", pages_at_once=1)
    assert {name for name, _, _ in told} == {str(path.resolve()) for path in betons.paths}
    for path in betons.paths:
        extents = inspect_beton(path).extents
        parts = [(at, at + size) for name, at, size in told if name == str(path.resolve())]
        assert min(at for at, _ in parts) <= extents[:, 0].min()
        assert max(end for _, end in parts) >= extents[:, :2].sum(axis=1).max()


def damage(path: Path, place: int) -> None:
    """The bytes of a sample of a file become zeros, its times as they were."""
    offset, size, *_ = inspect_beton(path).extents[place].tolist()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))


def test_an_undecodable_sample_is_named_with_shard_and_source(four: Betons) -> None:
    path = four.paths[2]
    damage(path, 4)
    with pytest.raises(ToolError) as caught:
        epoch(four)
    assert caught.value.code == "loader.sample_damaged"
    assert str(caught.value).startswith(f"{path}: sample 4, {four.manifests[2].keys[4]}, ")


def test_verification_reads_every_shard(four: Betons) -> None:
    path = four.paths[3]
    data = bytearray(path.read_bytes())
    epoch(four, verify=True)
    offset, size, *_ = inspect_beton(path).extents[2].tolist()
    data[offset + size - 1] ^= 1  # after the image's end: no decoder minds
    path.write_bytes(data)
    with pytest.raises(ToolError) as caught:
        epoch(four, verify=True)
    assert caught.value.code == "beton.page_changed"
    assert str(caught.value).startswith(f"{path}: page 1 ")


def vanish(path: Path) -> None:
    path.unlink(missing_ok=True)


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"?")


def replaced(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes()[:-1] + b"?")  # the same contents would be no change
    other.replace(path)


@pytest.mark.parametrize("change", [vanish, rewrite, replaced])
def test_a_shard_that_changes_or_vanishes_in_an_epoch_is_named(
    four: Betons, change: Callable[[Path], None]
) -> None:
    found = 0
    with (
        train_loader(four, **(TRAIN | {"batch_size": 1}), batches_ahead=1, order="sequential") as b,
        pytest.raises(ToolError, match=re.escape(f"{four.paths[3]}: ")),
    ):
        for _ in b:
            found += 1
            change(four.paths[3])
    assert found == 18  # what the other shards hold is sound


@pytest.mark.parametrize("change", [vanish, rewrite])
def test_a_shard_that_changes_between_epochs_is_named(
    four: Betons, change: Callable[[Path], None]
) -> None:
    with train_loader(four, **TRAIN) as batches:
        kept(batches)
        change(four.paths[1])
        with pytest.raises(ToolError, match=re.escape(f"{four.paths[1]}: ")):
            kept(batches)


def test_all_files_are_closed_when_the_epoch_ends(four: Betons) -> None:
    folder = four.paths[0].parent
    with train_loader(four, **TRAIN) as batches:
        kept(batches)
        before = open_betons(folder)
        begun = iter(batches)
        next(begun)
        assert open_betons(folder) == before + 4
        batches.close()
        assert open_betons(folder) == before
        four.paths[2].unlink()
        with pytest.raises(ToolError, match="no longer exists"):
            next(iter(batches))
        assert open_betons(folder) == before


def test_a_batch_asks_only_for_the_files_that_it_was_made_of(
    four: Betons, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path | int] = []

    def stamp_of(path: Path | int) -> tuple[int, ...]:
        asked.append(path)
        return beton_tables.stamp_of(path)

    monkeypatch.setattr("trainer.loader.beton_loader.stamp_of", stamp_of)
    changes: dict[str, Any] = {"batch_size": 6, "order": "sequential"}
    loader: BetonLoader
    with train_loader(four, **(TRAIN | changes)) as loader:
        kept(loader)
    paths = [path for path in asked if isinstance(path, Path)]
    assert paths == [*four.paths, four.paths[3]]
