"""A stock FFCV reads what is built, in every form, and gives back the crops."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imagenet_prep.beton import build as beton
from imagenet_prep.beton import format as beton_format
from imagenet_prep.beton.options import is_jpeg
from imagenet_prep.beton.pages import pixels_of
from imagenet_prep.beton.verify import check_beton
from imagenet_prep.dataset.manifest import Manifest
from imagenet_prep.dataset.names import manifest_beside, stats_beside
from tests.conftest import smooth_pixels
from tests.imagenet_prep.conftest import pil_pixels
from tests.kit.stock_ffcv import ffcv_batches

if TYPE_CHECKING:
    from tests.imagenet_prep.conftest import Made

SIZE_PX = 96
RAW_BYTES = 3 * SIZE_PX**2
FORMATS = ("jpeg", "raw", "mixed:0.3")


@pytest.fixture(scope="module")
def in_format(
    made_beton: Made, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Manifest]]:
    """The same crops in each format -> the beton and its manifest."""
    folder = tmp_path_factory.mktemp("formats")
    found = {"jpeg": (made_beton.out, made_beton.manifest)}
    for number, name in enumerate(FORMATS[1:]):
        out = folder / str(number) / "train.beton"
        found[name] = (out, made_beton.build(out, format=name))
    return found


InFormat = dict[str, tuple[Path, Manifest]]


def direct(path: Path) -> NDArray[np.uint8]:
    """A crop's pixels by FFCV's own function."""
    from ffcv.libffcv import imdecode

    pixels = np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8)
    encoded = np.frombuffer(path.read_bytes(), np.uint8)
    imdecode(encoded, pixels, SIZE_PX, SIZE_PX, SIZE_PX, SIZE_PX)
    return pixels


@pytest.mark.parametrize("format", FORMATS)
def test_manifest_and_rows_say_how_each_sample_is_stored(
    made_beton: Made, in_format: InFormat, format: str
) -> None:
    path, manifest = in_format[format]
    index = beton_format.read_index(path)
    share = {"jpeg": 1.0, "raw": 0.0, "mixed:0.3": 0.3}[format]
    jpeg = np.array([is_jpeg(key, share) for key in manifest.keys])
    assert (index.samples["image"]["mode"] == np.where(jpeg, 0, 1)).all()
    assert (index.table["size"][~jpeg] == RAW_BYTES).all()
    counts = {"jpeg": int(jpeg.sum()), "raw": int((~jpeg).sum())}
    assert manifest.formats == {name: count for name, count in counts.items() if count}
    assert manifest.settings["format"] == format
    assert manifest.keys == made_beton.manifest.keys
    assert manifest.source == made_beton.stats.source
    assert check_beton(path, decode=True, jobs=1).good


@pytest.mark.parametrize("format", FORMATS)
def test_checked_samples_are_the_crops_as_pil_decodes_them(
    made_beton: Made, in_format: InFormat, format: str
) -> None:
    path, manifest = in_format[format]
    labels = dict(made_beton.crops)
    samples = beton.read_samples(path, 1000)
    assert len(samples) == 110
    for key, (pixels, label) in zip(manifest.keys, samples, strict=True):
        assert label == labels[key]
        assert np.array_equal(pixels, pil_pixels(made_beton.cropped / key))


@pytest.mark.parametrize("format", FORMATS)
def test_two_workers_write_the_same_bytes(
    made_beton: Made, in_format: InFormat, format: str, tmp_path: Path
) -> None:
    out = tmp_path / "train.beton"
    made_beton.build(out, format=format, jobs=2)
    for path in (out, manifest_beside(out), stats_beside(out)):
        assert path.read_bytes() == (in_format[format][0].parent / path.name).read_bytes()


@pytest.mark.parametrize("format", FORMATS)
def test_stock_ffcv_reader_opens_it(in_format: InFormat, format: str) -> None:
    from ffcv.reader import Reader

    path, manifest = in_format[format]
    reader = Reader(str(path))
    index = beton_format.read_index(path)
    assert reader.num_samples == 110
    assert reader.page_size == manifest.page_size_bytes
    assert reader.field_names == ["image", "label"]
    assert reader.metadata.tobytes() == index.samples.tobytes()
    assert reader.alloc_table.tobytes() == index.table.tobytes()


@pytest.mark.parametrize(
    ("format", "os_cache"), [("jpeg", True), ("jpeg", False), ("raw", True), ("mixed:0.3", False)]
)
def test_stock_ffcv_loader_gives_pixels_and_labels_of_the_crops(
    made_beton: Made, in_format: InFormat, format: str, os_cache: bool
) -> None:
    path, manifest = in_format[format]
    images, labels = ffcv_batches(path, os_cache=os_cache)
    assert len(images) == 110
    stated = dict(made_beton.crops)
    assert labels.tolist() == [stated[key] for key in manifest.keys]
    modes = beton_format.read_index(path).samples["image"]["mode"]
    for key, image, mode in zip(manifest.keys, images, modes, strict=True):
        crop = made_beton.cropped / key
        if mode == beton_format.MODE_RAW:
            assert np.array_equal(image, pil_pixels(crop))
            continue
        assert np.array_equal(image, direct(crop))
        # FFCV takes libjpeg's fast transform, PIL the accurate one: over real crops of
        # quality 90 that is about one level, most of it a darkening by 0.8.
        assert np.abs(image.astype(np.int16) - pil_pixels(crop)).mean() < 1.5


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size_px", [33, 256])
def test_raw_pixels_are_those_of_pil_to_the_bit(
    mode: str, size_px: int, options: dict[str, Any]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn it": crops are as they are
    pixels = smooth_pixels(size_px, size_px, size_px)
    for quality in (50, 90, 98):
        buffer = io.BytesIO()
        image = Image.fromarray(pixels).convert(mode)
        image.save(buffer, "JPEG", quality=quality, exif=exif, **options)
        found = pixels_of(buffer.getvalue(), size_px)
        with Image.open(buffer) as decoded:
            assert np.array_equal(found, np.asarray(decoded.convert("RGB")))


def test_raw_pixels_of_real_crops_are_those_of_pil(shared_data: Path) -> None:
    images = sorted((shared_data / "imagenet-sample").rglob("*.JPEG"))[:12]
    assert images
    for path in images:
        with Image.open(path) as image:
            buffer = io.BytesIO()
            image.convert("RGB").resize((256, 256)).save(buffer, "JPEG", quality=90)
        with Image.open(buffer) as decoded:
            assert np.array_equal(pixels_of(buffer.getvalue(), 256), np.asarray(decoded))
