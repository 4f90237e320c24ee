"""Every layout of raw data in a bucket: what it gives there is what it gives on a disk."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagenet_prep.sources.scan import scan
from imagenet_prep.storage.location import location_of
from tests.kit.errors import fails
from tests.kit.journal import failures
from tests.kit.sources import WNIDS, idx_pair, tar_bytes, train_tar, val_tar
from tests.kit.store import BUCKET, Store, crop, made


def same(store: Store, folder: Path, file: str = "", **options: Any) -> list[tuple[Any, ...]]:
    """What a layout finds in a folder, after a look that the bucket has the same."""
    url = store.put(folder, folder.name)
    there = scan(url / file if file else url, **options)
    here = scan(folder / file if file else folder, **options)
    assert there.classes == here.classes
    found = [(s.key, s.split, s.label, s.crop, s.place.read()) for s in there.sources]
    assert found == [(s.key, s.split, s.label, s.crop, s.place.read()) for s in here.sources]
    return found


def test_flat_names_and_tiny_imagenet(store: Store, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in ("cat.1.jpg", "cat.2.jpg", "dog.1.jpg"):
        (flat / name).write_bytes(name.encode())
    assert len(same(store, flat)) == 3
    tiny = tmp_path / "tiny"
    for name in ("train/n01/images/n01_0.JPEG", "train/n02/images/n02_0.JPEG", "val/images/v.JPEG"):
        (tiny / name).parent.mkdir(parents=True, exist_ok=True)
        (tiny / name).write_bytes(name.encode())
    (tiny / "val/val_annotations.txt").write_text("v.JPEG\tn02\t0\t0\t1\t1\n")
    (tiny / "words.txt").write_text("n01\tgoldfish\n")
    assert [row[2] for row in same(store, tiny)] == [0, 1, 1]


@pytest.mark.parametrize("packed", [False, True])
def test_arrays(store: Store, tmp_path: Path, packed: bool) -> None:
    idx_pair(tmp_path / "mnist", "train", [1, 0, 1], packed)
    idx_pair(tmp_path / "mnist", "t10k", [0], packed)
    assert len(same(store, tmp_path / "mnist")) == 4
    name = f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    assert len(same(store, tmp_path / "mnist", name)) == 3


def test_ilsvrc_archives_are_read_in_place(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "archives"
    folder.mkdir()
    images = {name: name.encode() * 4000 for name in ("1.JPEG", "2.JPEG")}
    val_tar(folder, [b"one", b"two" * 30_000, b"three"])
    a, b, c = WNIDS
    train_tar(folder, {a: images, b: {"3.JPEG": b"x"}, c: {"4.JPEG": b"y"}})
    assert len(same(store, folder)) == 7


def test_shards_are_read_in_place(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    for split, count in (("train", 3), ("val", 1)):
        (folder / split).mkdir(parents=True)
        for shard in range(count):
            members = [
                (f"{n:04}.{kind}", data)
                for n in range(20)
                for kind, data in (
                    ("cls", b"%d" % (n % 3)),
                    ("jpg", bytes([n]) * (n * n * 150)),
                    ("json", b"{}"),
                )
            ]
            (folder / f"{split}/{shard}.tar").write_bytes(tar_bytes(members))
    assert len(same(store, folder)) == 80
    url = store.put(folder)
    store.spoiler.reset()
    assert len(scan(url / "train" / "0.tar").sources) == 20
    asked = len(store.spoiler.gets(".tar"))
    assert 3 < asked < 30  # and neither all at once nor one for each of 60 members


def test_a_shard_that_is_cut_off_is_one_message(store: Store, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    whole = tar_bytes({"1.jpg": b"x" * 90_000, "1.cls": b"1"})
    (tmp_path / "raw/0.tar").write_bytes(whole[:60_000])
    with fails("archive.cut_off", "s3://images/raw/0.tar"):
        scan(store.put(tmp_path / "raw"))


def test_lists_name_images_beside_them_and_anywhere(
    store: Store, make_raw: Callable[..., Path], tmp_path: Path
) -> None:
    raw = make_raw(train=2, val=1)
    rows = [(p.relative_to(raw).as_posix(), p.parent.name) for p in sorted(raw.rglob("*.jpg"))]
    with (raw / "list.csv").open("w") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    assert len(same(store, raw, "list.csv")) == 6
    crop(raw / "list.csv", tmp_path / "local")
    crop(location_of(f"s3://{BUCKET}/raw/list.csv"), tmp_path / "there")
    assert made(tmp_path / "there") == made(tmp_path / "local")
    # A list on the disk of images in the bucket, one of which is not there.
    here = tmp_path / "list.tsv"
    urls = [(f"s3://{BUCKET}/raw/{path}", label) for path, label in [*rows, ("gone.jpg", "ant")]]
    here.write_text("".join(f"{path}\t{label}\n" for path, label in urls))
    report = crop(here, tmp_path / "mixed")
    assert (report.ok, report.failed) == (6, 1)
    assert failures(tmp_path / "mixed") == {
        urls[-1][0]: "cannot be read: No such file or directory"
    }
    assert (tmp_path / "mixed/train/ant/images/raw/train/ant/ant0.JPEG").is_file()
    assert crop(here, tmp_path / "mixed").tried == 1


def test_classes_may_be_listed_in_the_bucket(store: Store, make_raw: Callable[..., Path]) -> None:
    raw = make_raw(train=1, val=1)
    (raw / "classes.txt").write_text("bee\ta bee\n")
    url = store.put(raw)
    classes = scan(url, classes=url / "classes.txt").classes
    assert (classes.names, classes.title(0)) == (("bee",), "a bee")
