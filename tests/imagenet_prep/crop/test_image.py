"""Any image's bytes -> its crop: geometry, modes, orientation, and reasons."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, WebPImagePlugin, features
from PIL._util import DeferredError
from PIL.JpegImagePlugin import JpegImageFile, get_sampling
from PIL.PngImagePlugin import PngImageFile

from imagenet_prep.crop import decode
from imagenet_prep.crop import image as crop
from imagenet_prep.crop.decode import ImageError
from imagenet_prep.crop.image import crop_box, crop_image, crop_pixels
from imagenet_prep.dataset.crop_settings import CropSettings

SAMPLING_420 = 2


def smooth(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width]
    planes = [128 + 100 * np.sin((x * (c + 1) + y * (3 - c)) / 17 + seed + c) for c in range(3)]
    return np.stack(planes, -1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def definition(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """torchvision's Resize and CenterCrop of a PIL image, written out."""
    width, height = image.size
    short = min(width, height)
    target = (
        size if width == short else int(size * width / short),
        size if height == short else int(size * height / short),
    )
    left, top = round((target[0] - size) / 2), round((target[1] - size) / 2)
    resized = image.resize(target, Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 512))
def test_a_box_is_square_centred_and_inside(width: int, height: int, size: int) -> None:
    box = crop_box(width, height, size)
    assert box.left >= 0 and box.top >= 0
    assert box.right <= width * (1 + 1e-9) and box.bottom <= height * (1 + 1e-9)
    short = min(width, height)
    sides = sorted([box.right - box.left, box.bottom - box.top])
    assert sides[0] <= short + 1e-6 and sides[1] >= short - 1e-6
    # Off the centre by no more than the rounding of a pixel of the crop.
    assert abs(box.left + box.right - width) <= 2.01 * short / size
    assert abs(box.top + box.bottom - height) <= 2.01 * short / size


def test_a_box_equals_known_values() -> None:
    assert crop_box(500, 375, 256) == pytest.approx((42 * 500 / 341, 0, 298 * 500 / 341, 375))
    assert crop_box(256, 256, 256) == (0, 0, 256, 256)


@pytest.mark.parametrize(("height", "width"), [(70, 113), (301, 200), (64, 64), (10, 33), (900, 7)])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF"])  # a TIFF is turned by Pillow itself
def test_pixels_are_those_of_the_definition(
    form: str, height: int, width: int, orientation: int
) -> None:
    image = Image.fromarray(smooth(height, width))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, form, exif=exif)
    with Image.open(io.BytesIO(encoded(image, "PNG", exif=exif))) as stored:
        upright = ImageOps.exif_transpose(stored)
    expected = definition(upright, 64)
    assert crop_pixels(data, CropSettings(64)).shape == (64, 64, 3)
    assert difference(crop_pixels(data, CropSettings(64)), expected) < 0.5


def test_a_large_jpeg_is_decoded_smaller_with_the_same_pixels() -> None:
    data = encoded(Image.fromarray(smooth(1300, 1700)), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        expected = definition(image.convert("RGB"), 64)
    assert difference(crop_pixels(data, CropSettings(64)), expected) < 0.5


def test_real_photographs_have_the_pixels_of_the_definition(shared_data: Path) -> None:
    files = sorted((shared_data / "imagenet-sample" / "train").rglob("*.JPEG"))[::20]
    assert files
    for file in files:
        data = file.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        assert difference(crop_pixels(data, CropSettings(256)), definition(upright, 256)) <= 1.0, (
            file.name
        )


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "PNG"), ("1", "PNG"), ("P", "GIF"), ("P", "PNG"), ("CMYK", "JPEG"), ("RGB", "WEBP")],
)
def test_every_mode_becomes_rgb_the_right_way_up(mode: str, kind: str) -> None:
    image = Image.fromarray(np.full((40, 60, 3), (250, 250, 250), np.uint8))
    pixels = crop_pixels(encoded(image.convert(mode), kind), CropSettings(32))
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    assert pixels.mean() > 235


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_shows_white(mode: str) -> None:
    black = Image.new(mode, (30, 30), (0,) * len(mode))
    assert crop_pixels(encoded(black, "PNG"), CropSettings(16)).min() == 255


def test_a_transparent_palette_entry_shows_white() -> None:
    image = Image.new("P", (30, 30), 3)
    image.putpalette([0, 0, 0] * 256)
    assert crop_pixels(encoded(image, "PNG", transparency=3), CropSettings(16)).min() == 255


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (np.full((20, 20), 32896, np.uint16), "PNG", 128),
        (np.full((20, 20), 512, np.uint16), "TIFF", 128),
        (np.full((20, 20), 0.5, np.float32), "TIFF", 128),
        (np.full((20, 20), 100.0, np.float32), "TIFF", 100),
        (np.full((20, 20), 70, np.int32), "TIFF", 70),
        (np.full((20, 20), np.nan, np.float32), "TIFF", 0),
    ],
)
def test_deep_grey_is_scaled_to_eight_bits(
    values: NDArray[np.uint16], kind: str, expected: int
) -> None:
    pixels = crop_pixels(encoded(Image.fromarray(values), kind), CropSettings(8))
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_deep_grey_beyond_every_known_range_is_stretched() -> None:
    values = np.linspace(-5e6, 5e6, 64 * 64).reshape(64, 64).astype(np.float32)
    pixels = crop_pixels(encoded(Image.fromarray(values), "TIFF"), CropSettings(64))
    assert pixels.min() == 0 and pixels.max() == 255


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert tuple(crop_pixels(data, CropSettings(8))[4, 4]) == (255, 0, 0)


def test_avif_is_read() -> None:
    pytest.importorskip("pillow_avif")
    data = encoded(Image.new("RGB", (40, 30), (200, 60, 60)), "AVIF")
    assert (
        difference(crop_pixels(data, CropSettings(8)), np.full((8, 8, 3), (200, 60, 60), np.uint8))
        < 6
    )


def test_the_crop_is_baseline_jpeg_without_metadata() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    data = encoded(
        Image.fromarray(smooth(90, 120)), "JPEG", exif=exif, comment="a remark", progressive=True
    )
    cropped = crop_image(data, CropSettings(size=48, quality=90))
    assert (cropped.width, cropped.height, cropped.mode) == (120, 90, "RGB")
    assert b"a remark" not in cropped.jpeg and b"a description" not in cropped.jpeg
    with Image.open(io.BytesIO(cropped.jpeg)) as image:
        assert image.size == (48, 48) and image.mode == "RGB"
        assert "progressive" not in image.info and "exif" not in image.info
        assert isinstance(image, JpegImageFile) and get_sampling(image) == SAMPLING_420
    assert difference(decoded(cropped.jpeg), crop_pixels(data, CropSettings(48))) < 4


JPEG = encoded(Image.fromarray(smooth(64, 64)), "JPEG")
PNG = encoded(Image.fromarray(smooth(64, 64)), "PNG")


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (b"", "image.empty", "empty file"),
        (b"hello, this is text", "image.unknown_format", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "image.unknown_format", "not an image of a known format"),
        (JPEG[: len(JPEG) // 2], "image.truncated", "truncated JPEG"),
        (PNG[: len(PNG) // 2], "image.truncated", "truncated PNG"),
        (JPEG[:3], "image.damaged", "damaged JPEG"),
        (b"\xff\xd8 no marker", "image.damaged", "damaged JPEG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "image.unsupported", "HEIC is not supported"),
        (b"\xff\x0a" + bytes(20), "image.unsupported", "JPEG XL is not supported"),
        (b"GIF89a" + bytes(20), "image.damaged", "damaged GIF"),
    ],
)
def test_what_is_no_image_has_a_code_and_a_short_reason(
    data: bytes, code: str, reason: str
) -> None:
    with pytest.raises(ImageError) as caught:
        crop_pixels(data, CropSettings(16))
    assert (caught.value.code, str(caught.value)) == (code, reason)


def code_of(data: bytes) -> str:
    """The code of the failure; empty where there is none."""
    try:
        crop_pixels(data, CropSettings(16))
    except ImageError as error:
        return error.code
    return ""


def test_what_this_pillow_lacks_is_not_taken_for_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(smooth(40, 40))
    lab = encoded(Image.merge("LAB", image.split()), "TIFF")
    webp = encoded(image, "WEBP")
    with monkeypatch.context() as patch:
        missing = DeferredError(ImportError("The _imagingcms C module is not installed"))
        patch.setattr(ImageCms, "core", missing)
        assert code_of(lab) == "image.unsupported_here"
        patch.setattr(WebPImagePlugin, "SUPPORTED", False)
        assert code_of(webp) == "image.unsupported_here"
    assert code_of(webp) == ""


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow has no JPEG 2000")
def test_jpeg_2000_is_read_and_its_absence_is_not_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(smooth(40, 40)), "JPEG2000")
    assert code_of(data) == ""
    assert code_of(data[: len(data) // 2]) == "image.damaged"
    monkeypatch.delattr("PIL.Image.core.jpeg2k_decoder")
    assert code_of(data) == "image.unsupported_here"


def test_any_exception_of_a_decoder_is_that_images_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    for raised, code in (
        (AssertionError("a bug of Pillow"), "image.damaged"),
        (MemoryError(), "image.no_memory"),
        (RecursionError(), "image.damaged"),
    ):

        def load(*_: object, raised: Exception = raised) -> None:
            raise raised

        with monkeypatch.context() as patch:
            patch.setattr(PngImageFile, "load", load)
            assert code_of(PNG) == code


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_large_deep_image_takes_at_most_1_5_gb() -> None:
    script = r"""
import struct, sys, zlib
from imagenet_prep.crop.image import crop_image
from imagenet_prep.dataset.crop_settings import CropSettings
def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
side, packer = 13_000, zlib.compressobj(1)
row = bytes([0, *(n % 251 for n in range(2 * side))])
data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
header = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
png = b"\x89PNG\r\n\x1a\n" + b"".join(
    map(chunk, (b"IHDR", b"IDAT", b"IEND"), (header, data, b"")))
assert crop_image(png, CropSettings(64)).width == side
# Not getrusage: that begins with what the parent had when it forked.
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    assert int(done.stdout) * 1024 < 1.5e9


def test_bands_do_not_change_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(6)
    deep = Image.fromarray(chance.integers(0, 65536, (90, 70), np.uint16))
    clear = Image.fromarray(chance.integers(0, 256, (90, 70, 4), np.uint8), "RGBA")
    floats = Image.fromarray(chance.normal(size=(90, 70)).astype(np.float32))
    files = [encoded(deep, "PNG"), encoded(clear, "PNG"), encoded(floats, "TIFF")]
    whole = [crop_pixels(data, CropSettings(48)) for data in files]
    monkeypatch.setattr(decode, "_BAND_PIXELS", 200)
    for data, pixels in zip(files, whole, strict=True):
        assert np.array_equal(crop_pixels(data, CropSettings(48)), pixels)


def test_a_bomb_is_refused_with_its_size() -> None:
    header = b"P6 60000 60000 255\n"
    with pytest.raises(ImageError, match="too large: 60000 x 60000 pixels"):
        crop_pixels(header + bytes(100), CropSettings(16))


@given(st.integers(0, len(JPEG) - 1), st.integers(0, 255), st.sampled_from([JPEG, PNG]))
def test_a_damaged_file_gives_a_crop_or_a_reason(at: int, value: int, data: bytes) -> None:
    damaged = bytearray(data)
    damaged[at % len(damaged)] = value
    try:
        assert crop_pixels(bytes(damaged), CropSettings(16)).shape == (16, 16, 3)
    except ImageError as error:
        assert 0 < len(str(error)) < 60 and "0x" not in str(error)


def test_warnings_and_remarks_of_the_decoder_stay_inside() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0\x01"
    data = encoded(Image.fromarray(smooth(40, 40)), "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert crop_pixels(data, CropSettings(16)).shape == (16, 16, 3)
    assert logging.getLogger("PIL").handlers


def squashed(image: Image.Image, size: int) -> NDArray[np.uint8]:
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def test_squash_takes_the_whole_image() -> None:
    image = Image.fromarray(smooth(90, 200))
    pixels = crop_pixels(encoded(image, "PNG"), CropSettings(48, fit="squash"))
    assert difference(pixels, squashed(image, 48)) == 0


@pytest.mark.parametrize(
    ("name", "resampling"),
    [
        ("bilinear", Image.Resampling.BILINEAR),
        ("area", Image.Resampling.BOX),
        ("bicubic", Image.Resampling.BICUBIC),
        ("lanczos", Image.Resampling.LANCZOS),
    ],
)
def test_each_filter_is_pillows(name: str, resampling: Image.Resampling) -> None:
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (120, 120, 3), np.uint8))
    expected = np.asarray(image.resize((40, 40), resampling))
    settings = CropSettings(40, filter=name)
    assert np.array_equal(crop_pixels(encoded(image, "PNG"), settings), expected)
    # Only a part of a grey image is converted: its margin must hold what the filter needs.
    wide = Image.fromarray(np.random.default_rng(3).integers(0, 256, (120, 360), np.uint8))
    whole = np.asarray(wide.convert("RGB").resize((40, 40), resampling, (120, 0, 240, 120)))
    assert difference(crop_pixels(encoded(wide, "PNG"), settings), whole) < 0.01


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_an_exif_orientation_is_ignored_where_that_is_wanted(form: str, orientation: int) -> None:
    image = Image.fromarray(smooth(60, 100))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, form, exif=exif)
    ignored = crop_pixels(data, CropSettings(32, exif="ignore"))
    assert difference(ignored, definition(image, 32)) < 0.5


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_files_are_kept_on_request(kind: str) -> None:
    image = Image.fromarray(smooth(200, 200))
    data = encoded(image, kind)
    part = data[: len(data) * 3 // 4]
    with pytest.raises(ImageError, match=f"truncated {kind}"):
        crop_image(part, CropSettings(64))
    kept = crop_image(part, CropSettings(64, truncated="keep"))
    assert kept.remark == f"truncated {kind}, kept"
    top = decoded(kept.jpeg)[:32]
    assert difference(top, definition(image, 64)[:32]) < 12
    # Other images fail as before, also after that.
    with pytest.raises(ImageError, match="truncated"):
        crop_image(part, CropSettings(64))
    with pytest.raises(ImageError, match="not an image"):
        crop_image(b"some text", CropSettings(64, truncated="keep"))
    assert crop_image(data, CropSettings(64, truncated="keep")).remark == ""


def test_threads_that_keep_incomplete_ones_all_say_so() -> None:
    data = encoded(Image.fromarray(smooth(200, 300)), "JPEG")
    part, settings = data[: len(data) // 2], CropSettings(64, truncated="keep")
    with ThreadPoolExecutor(4) as threads:
        crops = list(threads.map(lambda _: crop_image(part, settings), range(60)))
    assert {made.remark for made in crops} == {"truncated JPEG, kept"}


def outcomes(data: bytes, settings: CropSettings) -> bytes | str:
    """The crop of a file, or the reason why there is none."""
    try:
        return crop_image(data, settings).jpeg
    except ImageError as error:
        return str(error)


def both_ways(data: bytes, settings: CropSettings, patch: pytest.MonkeyPatch) -> bool:
    """Whether the shorter way of decoding comes to the same as Pillow's."""
    short = outcomes(data, settings)
    with patch.context() as without:
        without.setattr(crop, "_decoded_at_once", lambda _image, _data: None)
        return outcomes(data, settings) == short


@pytest.mark.parametrize("size", [(1, 1), (33, 7), (200, 301), (1000, 640)])
@pytest.mark.parametrize("options", [{}, {"subsampling": "4:4:4"}, {"progressive": True}])
def test_jpegs_decoded_the_shorter_way_give_the_same_bytes(
    size: tuple[int, int], options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(Image.fromarray(smooth(*size)), "JPEG", **options)
    for settings in (CropSettings(64), CropSettings(64, fit="squash", filter="lanczos")):
        assert both_ways(data, settings, monkeypatch)


def test_damaged_jpegs_have_the_same_outcome_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(smooth(90, 120)), "JPEG")
    chance = np.random.default_rng(8)
    for number in range(300):
        damaged = bytearray(data)
        if number % 2:
            damaged[chance.integers(2, len(data))] ^= 1 << chance.integers(8)
        else:
            del damaged[chance.integers(2, len(data)) :]
        assert both_ways(bytes(damaged), CropSettings(32), monkeypatch)


def test_odd_files_have_the_same_outcome_both_ways(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in sorted((shared_data / "odd").iterdir()):
        if file.is_file() and file.stat().st_size < 5_000_000:
            assert both_ways(file.read_bytes(), CropSettings(64), monkeypatch), file.name
