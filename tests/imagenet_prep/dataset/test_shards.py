"""Shards: the same data set in several files, built, named, found again and refused."""

from __future__ import annotations

import dataclasses
import itertools
import resource
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_prep.beton import layout as beton_plan
from imagenet_prep.beton.format import PAGE_SIZE_BYTES, data_start_for, read_index
from imagenet_prep.beton.verify import check_betons
from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset import shards
from imagenet_prep.dataset.beton_tables import TABLE
from imagenet_prep.dataset.manifest import Manifest, load_manifest, pages_digest, save_manifest
from imagenet_prep.dataset.names import manifest_beside, stats_beside
from imagenet_prep.dataset.shards import Betons, find_betons
from tests.imagenet_prep.conftest import Made
from tests.kit.errors import fails


def contents(paths: Sequence[Path]) -> list[bytes]:
    """The stored bytes of every sample, file after file."""
    found = []
    for path in paths:
        data = path.read_bytes()
        for row in read_index(path).table:
            start = int(row["ptr"])
            found.append(data[start : start + int(row["size"])])
    return found


def labels(paths: Sequence[Path]) -> list[int]:
    return [label for path in paths for label in read_index(path).samples["label"].tolist()]


def shards_of(made: Made, folder: Path, count: int, **settings: Any) -> Betons:
    made.build(folder / "train.beton", shards=count, **settings)
    return find_betons(folder / "train-*.beton")


@pytest.mark.parametrize("settings", [{}, {"shuffle": None}, {"format": "mixed:0.5"}])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_shards_hold_what_one_beton_holds_in_the_same_order(
    made_beton: Made, tmp_path: Path, count: int, settings: dict[str, Any]
) -> None:
    whole = made_beton.build(tmp_path / "one" / "train.beton", **settings)
    betons = shards_of(made_beton, tmp_path / "many", count, **settings)
    one = [tmp_path / "one" / "train.beton"]
    assert [path.name for path in betons.paths] == [
        f"train-{i:05d}-of-{count:05d}.beton" for i in range(count)
    ]
    assert betons.manifest.keys == whole.keys
    assert contents(betons.paths) == contents(one)
    assert labels(betons.paths) == labels(one)
    sizes = [manifest.samples for manifest in betons.manifests]
    assert max(sizes) - min(sizes) <= 1
    assert (betons.manifest.samples, betons.manifest.source) == (whole.samples, whole.source)
    assert betons.manifest.formats == whole.formats
    assert not (tmp_path / "many" / "train.beton").exists()
    assert betons.stats.read_bytes() == stats_beside(one[0]).read_bytes()


def test_a_single_shard_is_to_the_byte_the_beton_without_shards(
    made_beton: Made, tmp_path: Path
) -> None:
    betons = shards_of(made_beton, tmp_path, 1)
    assert betons.paths[0].read_bytes() == made_beton.out.read_bytes()
    assert made_beton.manifest.set == ""
    assert betons.manifest.set == pages_digest([made_beton.manifest.digest])


def test_every_manifest_has_its_shard_number_and_the_set(made_beton: Made, tmp_path: Path) -> None:
    returned = made_beton.build(tmp_path / "train.beton", shards=4)
    manifests = [load_manifest(tmp_path / f"train-{i:05d}-of-00004.beton") for i in range(4)]
    assert [(m.shard, m.shards) for m in manifests] == [(i, 4) for i in range(4)]
    assert {m.set for m in manifests} == {pages_digest(m.digest for m in manifests)}
    assert returned == shards.together(manifests)
    assert returned.digest == returned.set


def test_the_bytes_of_shards_do_not_depend_on_the_jobs(made_beton: Made, tmp_path: Path) -> None:
    for jobs in (1, 3):
        made_beton.build(tmp_path / str(jobs) / "train.beton", shards=3, jobs=jobs)
    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert len(names) == 10
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_stock_ffcv_opens_each_shard(made_beton: Made, tmp_path: Path) -> None:
    from ffcv.reader import Reader

    betons = shards_of(made_beton, tmp_path, 3)
    for path, manifest in zip(betons.paths, betons.manifests, strict=True):
        reader = Reader(str(path))
        assert reader.num_samples == manifest.samples
        assert list(reader.handlers) == ["image", "label"]
        assert len(reader.alloc_table) == manifest.samples


def test_no_shard_is_larger_than_the_size_asked_for(made_beton: Made, tmp_path: Path) -> None:
    limit = PAGE_SIZE_BYTES * 2 + 110 * TABLE.itemsize
    made_beton.build(tmp_path / "train.beton", shard_size=limit)
    betons = find_betons(tmp_path / "train-*.beton")
    assert betons.manifest.keys == made_beton.manifest.keys
    assert max(path.stat().st_size for path in betons.paths) <= limit < made_beton.manifest.bytes
    made_beton.build(tmp_path / "roomy" / "train.beton", shard_size=1 << 40)
    assert len(find_betons(tmp_path / "roomy" / "train-*.beton").paths) == 1


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, PAGE_SIZE_BYTES), min_size=1, max_size=60),
    st.integers(data_start_for(1, PAGE_SIZE_BYTES) + PAGE_SIZE_BYTES + 24, 40 * PAGE_SIZE_BYTES),
)
def test_files_up_to_a_size_share_out_all_samples_evenly(sizes: list[int], limit: int) -> None:
    layouts = beton_plan._layouts_up_to(limit, np.array(sizes, np.uint64), PAGE_SIZE_BYTES)
    assert max(layout.bytes for layout in layouts) <= limit
    assert [int(n) for layout in layouts for n in layout.sizes] == sizes
    counts = [len(layout.sizes) for layout in layouts]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"shards": 111}, "build.shards"),
        ({"shard_size": PAGE_SIZE_BYTES}, "build.shard_size"),
        ({"shards": 0}, "build.shards"),
        ({"shards": 2, "shard_size": 1 << 30}, "build.shards"),
    ],
)
def test_shards_that_cannot_be_are_wrong_usage(
    made_beton: Made, tmp_path: Path, settings: dict[str, int], code: str
) -> None:
    with fails(code, usage=True):
        made_beton.build(tmp_path / "train.beton", **settings)
    assert list(tmp_path.iterdir()) == []


def test_several_names_in_any_order_are_one_set(made_beton: Made, tmp_path: Path) -> None:
    betons = shards_of(made_beton, tmp_path, 3)
    again = find_betons(*reversed(betons.paths))
    assert again.paths == betons.paths
    assert again.manifest == betons.manifest
    assert str(again) == str(tmp_path / "train-*.beton")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(
    made_beton: Made, tmp_path: Path
) -> None:
    odd = tmp_path / "tr[a-b]in.beton"
    made_beton.build(odd)
    assert find_betons(odd).paths == (odd,)


def test_each_sample_of_a_set_is_found_in_its_file(made_beton: Made, tmp_path: Path) -> None:
    betons = shards_of(made_beton, tmp_path, 3)
    places = [betons.place(index) for index in range(betons.manifest.samples)]
    expected = [(f, i) for f, m in enumerate(betons.manifests) for i in range(m.samples)]
    assert places == expected
    path, words = betons.sample(len(places) - 1)
    assert path == betons.paths[2]
    assert words == f"sample {betons.manifests[2].samples - 1}, {betons.manifest.keys[-1]}"


def drop(betons: Betons, tmp_path: Path, made: Made) -> None:
    betons.paths[1].unlink()


def drop_manifest(betons: Betons, tmp_path: Path, made: Made) -> None:
    manifest_beside(betons.paths[1]).unlink()


def cut(betons: Betons, tmp_path: Path, made: Made) -> None:
    betons.paths[1].write_bytes(betons.paths[1].read_bytes()[:-1])


def mix(betons: Betons, tmp_path: Path, made: Made) -> None:
    other = shards_of(made, tmp_path / "other", 3, shuffle=1)
    shutil.copy(other.paths[1], betons.paths[1])
    shutil.copy(manifest_beside(other.paths[1]), manifest_beside(betons.paths[1]))


def other_count(betons: Betons, tmp_path: Path, made: Made) -> None:
    other = shards_of(made, tmp_path / "other", 2)
    for path in (*other.paths, *map(manifest_beside, other.paths)):
        shutil.copy(path, betons.paths[0].parent)


def twice(betons: Betons, tmp_path: Path, made: Made) -> None:
    copy = betons.paths[1].with_name("train-copy.beton")
    shutil.copy(betons.paths[1], copy)
    shutil.copy(manifest_beside(betons.paths[1]), manifest_beside(copy))


def alone_among(betons: Betons, tmp_path: Path, made: Made) -> None:
    made.build(betons.paths[0].with_name("train-x.beton"))


def renumbered(betons: Betons, tmp_path: Path, made: Made) -> None:
    """The contents of two shards change places, manifests and all, under a set's own name."""
    for path, other in ((0, 1), (1, 0)):
        manifest = dataclasses.replace(betons.manifests[other], shard=path)
        save_manifest(betons.paths[other], manifest)


@pytest.mark.parametrize(
    ("damage", "code", "name"),
    [
        (drop, "shards.missing", "the first train-00001-of-00003.beton"),
        (drop_manifest, "manifest.missing", "train-00001-of-00003.beton.json: "),
        (cut, "beton.truncated", "train-00001-of-00003.beton: "),
        (mix, "shards.other_build", "train-00001-of-00003.beton: is shard 1 of 3"),
        (other_count, "shards.other_build", ""),
        (twice, "shards.twice", "is shard 1 of 3, and so is"),
        (alone_among, "shards.single_beton", "train-x.beton: "),
        (renumbered, "shards.damaged", "train-*.beton: "),
    ],
)
def test_what_is_no_whole_set_is_refused_with_one_error(
    made_beton: Made,
    tmp_path: Path,
    damage: Callable[[Betons, Path, Made], None],
    code: str,
    name: str,
) -> None:
    damage(shards_of(made_beton, tmp_path, 3), tmp_path, made_beton)
    with fails(code, name):
        find_betons(tmp_path / "train-*.beton")


def test_a_shard_by_its_own_name_is_a_part_and_no_set(made_beton: Made, tmp_path: Path) -> None:
    path = shards_of(made_beton, tmp_path, 3).paths[0]
    with fails("shards.missing", "2 of 3 shards are missing"):
        find_betons(path)
    assert find_betons(path, part=True).manifest.shards == 3


@pytest.mark.parametrize("name", ["none-*.beton", "none.beton", "*.json"])
def test_a_name_of_nothing_is_wrong_usage(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.json").touch()
    with fails("beton.missing", "imagenet-prep build", usage=True):
        find_betons(tmp_path / name)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("before", "now"), [(None, 2), (2, None), (2, 3), (3, 2)], ids=lambda n: f"{n}-shards"
)
def test_betons_of_another_build_are_refused_and_untouched(
    made_beton: Made, tmp_path: Path, before: int | None, now: int | None
) -> None:
    out = tmp_path / "train.beton"
    made_beton.build(out, shards=before)
    there = snapshot(tmp_path)
    with fails("beton.other_build", "choose another", usage=True):
        made_beton.build(out, shards=now)
    assert snapshot(tmp_path) == there


def test_shards_of_another_split_are_not_in_the_way(made_beton: Made, tmp_path: Path) -> None:
    made_beton.build(tmp_path / "train.beton", shards=2)
    made_beton.build(tmp_path / "val.beton", split="val", shards=3)
    made_beton.build(tmp_path / "train-more.beton", shards=2)
    assert len(shards.shards_in(tmp_path, "train")) == 2


def test_a_repeated_build_replaces_the_set(made_beton: Made, tmp_path: Path) -> None:
    first = shards_of(made_beton, tmp_path, 3, shuffle=1)
    second = shards_of(made_beton, tmp_path, 3)
    assert second.manifest.set != first.manifest.set
    assert second.manifest.keys == made_beton.manifest.keys


def test_a_build_that_fails_leaves_the_old_set_as_it_was(beton_copy: Made, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shards_of(beton_copy, folder, 3)
    there = snapshot(folder)
    (beton_copy.cropped / beton_copy.crops[7][0]).write_bytes(b"no JPEG")
    with pytest.raises(ToolError, match="imagenet-prep crop again"):
        beton_copy.build(folder / "train.beton", shards=3)
    assert snapshot(folder) == there


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_set_counts_only_when_its_last_manifest_is_there(
    made_beton: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    shards_of(made_beton, tmp_path, 3, shuffle=1)
    turns = itertools.count()
    real = save_manifest

    def interrupted(beton: Path, manifest: Manifest) -> None:
        if next(turns) == written:
            raise KeyboardInterrupt
        real(beton, manifest)

    with monkeypatch.context() as patch:
        patch.setattr("imagenet_prep.beton.build.save_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made_beton.build(tmp_path / "train.beton", shards=3)
    for path in tmp_path.glob("*.beton"):
        read_index(path)  # each file is whole
    with fails("manifest.missing"):
        find_betons(tmp_path / "train-*.beton")
    again = shards_of(made_beton, tmp_path, 3)
    assert again.manifest.keys == made_beton.manifest.keys
    assert check_betons(again, jobs=1).good


def test_more_shards_than_files_may_be_open_is_one_error(
    made_beton: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (60, 66))
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append(limits))
    with fails("shards.too_many_files", "has 3 shards where this process may open 66 files"):
        made_beton.build(tmp_path / "train.beton", shards=3)
    assert asked == []
    made_beton.build(tmp_path / "train.beton", shards=2)
    assert asked == [(66, 66)]


def test_a_good_set_is_good_and_damage_is_of_one_file(made_beton: Made, tmp_path: Path) -> None:
    betons = shards_of(made_beton, tmp_path, 3)
    told: list[tuple[str, int, int]] = []
    report = check_betons(betons, decode=True, jobs=1, progress=lambda *given: told.append(given))
    assert report.good
    assert (report.samples, report.decoded) == (110, 110)
    assert report.pages == sum(len(m.pages) for m in betons.manifests) == told[-1][1]
    assert {total for _, _, total in told} == {report.pages}
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    path = betons.paths[1]
    where = read_index(path).table[4]
    data = bytearray(path.read_bytes())
    data[int(where["ptr"]) + 9] ^= 1
    path.write_bytes(data)
    report = check_betons(betons, jobs=1)
    assert [fault.startswith(f"{path}: page ") for fault in report.faults] == [True]
    on_page = betons.manifests[1].keys[: betons.manifests[1].samples]
    assert {damaged.file for damaged in report.damaged} == {str(path)}
    assert [damaged.key for damaged in report.damaged] == list(on_page)


def test_a_sample_that_two_shards_hold_is_a_fault(made_beton: Made, tmp_path: Path) -> None:
    betons = shards_of(made_beton, tmp_path, 3)
    keys = (betons.manifests[1].keys[0], *betons.manifests[0].keys[1:])
    save_manifest(betons.paths[0], dataclasses.replace(betons.manifests[0], keys=keys))
    report = check_betons(find_betons(tmp_path / "train-*.beton"), jobs=1)
    assert list(report.faults) == [f"{tmp_path / 'train-*.beton'}: a sample is in it twice"]


def test_the_validation_set_is_one_file_or_shards_never_both(
    made_beton: Made, tmp_path: Path
) -> None:
    train = shards_of(made_beton, tmp_path, 2)
    assert shards.validation_beside(train) is None
    made_beton.build(tmp_path / "val.beton", split="val")
    alone = shards.validation_beside(train)
    assert alone is not None and alone.paths == (tmp_path / "val.beton",)
    assert shards.validation_beside(alone) is None
    (tmp_path / "val.beton").unlink()
    made_beton.build(tmp_path / "val.beton", split="val", shards=2)
    sharded = shards.validation_beside(train)
    assert sharded is not None and len(sharded.paths) == 2
    assert shards.validation_beside(sharded) is None
    (tmp_path / "val.beton").touch()
    with fails("beton.two_validation_sets", usage=True):
        shards.validation_beside(train)
