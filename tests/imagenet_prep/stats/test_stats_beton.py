"""Statistics of a beton are those of the crops that it was made of, to the byte."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagenet_prep.beton.build import build_beton
from imagenet_prep.core.errors import quiet
from imagenet_prep.core.files import file_digest
from imagenet_prep.crop.run import run_crop
from imagenet_prep.dataset.classes import Classes
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.dataset.manifest import Manifest, load_manifest, save_manifest
from imagenet_prep.dataset.names import manifest_beside
from imagenet_prep.stats import run as stats_stage
from tests.kit.errors import fails
from tests.kit.journal import list_crops

SIZE_PX = 48


@dataclasses.dataclass(frozen=True)
class Made:
    """A folder of crops with its statistics, one of them grey, and how to make betons of it."""

    cropped: Path
    stats: Path
    build: Callable[..., Path]


@pytest.fixture
def made(make_raw: Callable[..., Path], tmp_path: Path) -> Made:
    cropped = tmp_path / "cropped"
    settings = CropSettings(size=SIZE_PX)
    raw = make_raw(train=6, val=2)
    run_crop(raw, cropped, settings, jobs=1, max_failures=None, progress=quiet)
    grey = cropped / list_crops(cropped, "train")[3][0]
    Image.new("L", (SIZE_PX, SIZE_PX), 90).save(grey, "JPEG")
    file = tmp_path / "stats.npz"
    found = stats_stage.run_stats(cropped, file, jobs=1)

    def build(split: str = "train", **packing: Any) -> Path:
        out = tmp_path / f"{split}.beton"
        arguments: dict[str, Any] = {
            "stats": found,
            "stats_digest": file_digest(file),
            "classes": Classes(("ant", "bee"), {}),
            "crops": list_crops(cropped, split),
            "jobs": 1,
        }
        build_beton(cropped, split, out, **(arguments | packing))
        return out

    return Made(cropped, file, build)


@pytest.mark.parametrize("format_", ["jpeg", "raw", "mixed:0.5"])
def test_a_beton_gives_the_bytes_of_the_crops_statistics(
    made: Made, tmp_path: Path, format_: str
) -> None:
    beton = made.build(format=format_)
    found = stats_stage.run_stats(beton, tmp_path / "again.npz", jobs=1)
    assert found.count == 12
    assert (tmp_path / "again.npz").read_bytes() == made.stats.read_bytes()


def test_several_pages_and_two_workers_change_nothing(
    made_beton: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session's beton has its samples in two pages."""
    one = stats_stage.run_stats(made_beton.out, tmp_path / "one.npz", jobs=1)
    monkeypatch.setattr(stats_stage, "_GROUP_IMAGES", 1)
    stats_stage.run_stats(made_beton.out, tmp_path / "two.npz", jobs=2)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert np.array_equal(one.sum, made_beton.stats.sum)


def test_a_beton_has_its_own_split(made: Made, tmp_path: Path) -> None:
    beton = made.build(split="val")
    assert stats_stage.run_stats(beton, tmp_path / "val.npz", jobs=1).count == 4
    with fails("stats.split"):
        stats_stage.run_stats(beton, tmp_path / "val.npz", split="train", jobs=1)


def flip_pixel(beton: Path, manifest: Manifest) -> None:
    data = bytearray(beton.read_bytes())
    data[manifest.page_size_bytes + 900] ^= 1
    beton.write_bytes(data)


def cut(beton: Path, manifest: Manifest) -> None:
    beton.write_bytes(beton.read_bytes()[:-24])


def without_manifest(beton: Path, manifest: Manifest) -> None:
    manifest_beside(beton).unlink()


def with_fewer_pages(beton: Path, manifest: Manifest) -> None:
    save_manifest(beton, dataclasses.replace(manifest, pages=manifest.pages[:1]))


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (flip_pixel, "beton.damaged"),
        (cut, "beton.truncated"),
        (without_manifest, "manifest.missing"),
        (with_fewer_pages, "beton.damaged"),
    ],
)
@pytest.mark.parametrize("format_", ["jpeg", "raw"])
def test_a_damaged_beton_is_refused_and_nothing_is_written(
    made: Made,
    tmp_path: Path,
    damage: Callable[[Path, Manifest], None],
    code: str,
    format_: str,
) -> None:
    beton = made.build(format=format_)
    damage(beton, load_manifest(beton))
    with fails(code, "imagenet-prep build"):
        stats_stage.run_stats(beton, tmp_path / "x.npz", jobs=1)
    assert not (tmp_path / "x.npz").exists()
