"""Class lists, statistics and manifests come back as written; damage is one error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.files import write_json
from imagenet_prep.dataset.classes import Classes, load_classes, save_classes
from imagenet_prep.dataset.manifest import Manifest, load_manifest, save_manifest, source_digest
from imagenet_prep.dataset.names import manifest_beside, stats_beside
from imagenet_prep.dataset.statistics import Stats, load_stats, save_stats
from imagenet_prep.stats import moments as stats
from tests.kit.errors import fails


def some_stats(size_px: int = 8, count: int = 3) -> Stats:
    pixels = np.random.default_rng(5).integers(0, 256, (count, size_px, size_px, 3), np.uint8)
    return stats.finish(stats.moments_of(pixels), "feed")


def some_manifest(size_bytes: int) -> Manifest:
    return Manifest(
        samples=2,
        split="train",
        size_px=8,
        classes=("ant", "bee"),
        readable={"ant": "an ant"},
        formats={"jpeg": 2},
        page_size_bytes=1 << 21,
        bytes=size_bytes,
        digest="00",
        pages=("11",),
        stats_digest="22",
        source="33",
        settings={"shuffle_seed": 0},
        versions={"imagenet_prep": "0"},
        keys=("train/ant/a.JPEG", "train/bee/b.JPEG"),
    )


def test_classes_come_back_with_their_titles(tmp_path: Path) -> None:
    save_classes(tmp_path, Classes(("n01", "n02"), {"n02": "great grey owl"}))
    classes = load_classes(tmp_path)
    assert classes.names == ("n01", "n02")
    assert [classes.title(label) for label in range(len(classes))] == ["n01", "great grey owl"]


@pytest.mark.parametrize(
    "rows",
    [
        [{"label": 1, "class": "a", "name": "a"}],
        [{"label": 0, "class": "a"}],
        [{"label": 0, "class": "a", "name": "a"}] * 2,
        7,
    ],
)
def test_damaged_class_list_is_refused(tmp_path: Path, rows: Any) -> None:
    write_json(tmp_path / "classes.json", {"classes": rows})
    with fails("classes.damaged"):
        load_classes(tmp_path)


def test_statistics_come_back_exactly_and_with_the_same_bytes(tmp_path: Path) -> None:
    saved = some_stats()
    save_stats(tmp_path / "a.npz", saved)
    loaded = load_stats(tmp_path / "a.npz")
    save_stats(tmp_path / "b.npz", loaded)
    for field in dataclasses.fields(Stats):
        before, after = getattr(saved, field.name), getattr(loaded, field.name)
        assert np.array_equal(before, after), field.name
        assert np.asarray(before).dtype == np.asarray(after).dtype
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_statistics_open_in_plain_numpy_without_pickles(tmp_path: Path) -> None:
    save_stats(tmp_path / "stats.npz", some_stats())
    with np.load(tmp_path / "stats.npz", allow_pickle=False) as file:
        assert int(file["size"]) == 8
        assert int(file["count"]) == 3
        assert str(file["source"]) == "feed"
        assert file["sum"].dtype == np.uint64


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(**arrays: Any) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with np.load(path) as file:
            values = {name: file[name] for name in file.files}
        values.update(arrays)
        np.savez(path, **{name: value for name, value in values.items() if value is not None})

    return apply


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def claim_encryption(path: Path) -> None:
    """Sets bit 6 of the flags in the archive's directory."""
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1 << 6
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (claim_encryption, "not a usable statistics file"),
        (Path.unlink, "missing"),
        (make_folder, "is not a file"),
        (cut_in_half, "not a usable statistics file"),
        (lambda path: path.write_text("statistics"), "not a usable statistics file"),
        (change(covariance=None), "'covariance' is missing"),
        (change(format=np.int64(99)), "format 99"),
        (change(eigenvectors=np.zeros((3, 2))), r"eigenvectors has shape \(3, 2\)"),
        (change(eigenvalues=np.full(3, np.nan)), "eigenvalues is not finite"),
        (change(mean=np.zeros((8, 8, 3), np.float32)), "mean is not the sum"),
        (change(count=np.uint64(0)), "mean is not the sum"),
        (change(sum=np.array([{}], object)), "not a usable statistics file"),
    ],
)
def test_unusable_statistics_are_refused_with_one_error(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "stats.npz"
    save_stats(path, some_stats())
    damage(path)
    with pytest.raises(ToolError, match=reason) as caught:
        load_stats(path)
    assert caught.value.code in ("stats.missing", "stats.damaged")
    assert str(caught.value).startswith(f"{path}: ")
    assert "imagenet-prep stats" in str(caught.value)


def test_names_beside_a_beton() -> None:
    beton = Path("out/train.beton")
    assert manifest_beside(beton) == Path("out/train.beton.json")
    assert stats_beside(beton) == Path("out/train.stats.npz")
    assert stats_beside(Path("out/a-b-00003-of-00004.beton")) == Path("out/a-b.stats.npz")


def test_manifest_comes_back_equal(tmp_path: Path) -> None:
    beton = tmp_path / "train.beton"
    beton.write_bytes(b"12345")
    save_manifest(beton, some_manifest(5))
    assert load_manifest(beton) == some_manifest(5)


def test_beton_of_another_size_than_its_manifest_is_refused(tmp_path: Path) -> None:
    beton = tmp_path / "train.beton"
    beton.write_bytes(b"12")
    save_manifest(beton, some_manifest(5))
    with fails("beton.truncated", "has 2 bytes instead of the 5"):
        load_manifest(beton)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_name_that_is_no_beton_file_is_wrong_usage(tmp_path: Path, kind: str) -> None:
    beton = tmp_path / "train.beton"
    if kind == "folder":
        beton.mkdir()
    code = "beton.is_folder" if kind == "folder" else "beton.missing"
    with fails(code, usage=True):
        load_manifest(beton)


@pytest.mark.parametrize("damage", ["gone", "key", "extra", "format", "short", "value"])
def test_damaged_manifest_is_refused(tmp_path: Path, damage: str) -> None:
    beton = tmp_path / "train.beton"
    beton.write_bytes(b"12345")
    save_manifest(beton, some_manifest(5))
    path = manifest_beside(beton)
    value = json.loads(path.read_text())
    if damage == "key":
        del value["digest"]
    elif damage == "extra":
        value["more"] = 1
    elif damage == "format":
        value["format"] = 1
    elif damage == "short":
        value["keys"] = value["keys"][:1]
    elif damage == "value":
        value["classes"].reverse()
    path.write_text(json.dumps(value))
    if damage == "gone":
        path.unlink()
        with fails("beton.unknown"):
            load_manifest(beton)
        beton.write_bytes(b"\x02\x00345")
    with fails("manifest.missing" if damage == "gone" else "manifest.damaged"):
        load_manifest(beton)


def test_source_digest_is_of_paths_and_contents_in_any_order() -> None:
    pairs = [("train/a/1.JPEG", "aa"), ("train/b/2.JPEG", "bb")]
    digest = source_digest(pairs)
    assert digest == source_digest(reversed(pairs))
    assert digest != source_digest(pairs[:1])
    assert digest != source_digest([pairs[0], ("train/b/2.JPEG", "bc")])
    assert digest != source_digest([pairs[0], ("train/b/3.JPEG", "bb")])
