"""An image file's bytes -> an opened image, its pixels as RGB, or a code and a reason. Pure.

Formats are those of Pillow's registry that FORMATS lists, recognised by their first bytes, never
by their name: none that runs programs (EPS) or guesses (TGA) is ever tried.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_PIXELS = 178_956_970  # Pillow's own limit: half a gigabyte as 24-bit RGB
FORMATS = {
    "JPEG": "JPEG", "PNG": "PNG", "GIF": "GIF", "BMP": "BMP", "PPM": "PNM", "WEBP": "WebP",
    "TIFF": "TIFF", "JPEG2000": "JPEG 2000", "ICO": "ICO", "PCX": "PCX", "AVIF": "AVIF",
}  # fmt: skip
"""Name in Pillow's registry -> name in messages."""
_UNSUPPORTED = {
    rb"\xff\x0a|\0\0\0\x0cJXL ": "JPEG XL",
    rb"....ftyp(?:hei[cxms]|hevc|mif1|msf1)": "HEIC",
}
_BAND_PIXELS = 1 << 21  # converted at a time, which bounds the memory that it takes
_WHITE_IS_65535 = ("PNG", "PPM")
_WHITE = (255, 255, 255)

# Pillow logs remarks about odd files; without any handler Python prints them.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class ImageError(Exception):
    """An image that cannot be used: a code such as image.truncated, and a short reason.

    The reason is the same on every machine and names no file. With the codes
    image.unsupported_here and image.no_memory another machine, or a later try, may succeed.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason

    def __str__(self) -> str:
        return self.reason


def to_rgb(image: Image.Image, region: tuple[int, int, int, int]) -> Image.Image:
    """A region of an image of any mode -> RGB; what is transparent shows white."""
    levels = _levels(image) if image.mode in ("I", "F") or image.mode.startswith("I;16") else None
    bands = _bands(region)
    if len(bands) == 1:
        return _band_to_rgb(image.crop(region), levels)
    left, top, right, bottom = region
    whole = Image.new("RGB", (right - left, bottom - top))
    for band in bands:
        whole.paste(_band_to_rgb(image.crop(band), levels), (0, band[1] - top))
    return whole


def _bands(region: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    """A region -> the same in horizontal bands of at most _BAND_PIXELS."""
    left, top, right, bottom = region
    rows = max(_BAND_PIXELS // max(right - left, 1), 1)
    return [(left, y, right, min(y + rows, bottom)) for y in range(top, bottom, rows)]


def _band_to_rgb(band: Image.Image, levels: tuple[float, float] | None) -> Image.Image:
    if levels is not None:
        low, high = levels
        scaled = (_values(band) - low) * (255.0 / max(high - low, 1e-300))
        band = Image.fromarray(np.rint(np.clip(scaled, 0, 255)).astype(np.uint8))
    elif band.has_transparency_data:
        layer = band.convert("RGBA")
        white = Image.new("RGB", band.size, _WHITE)
        white.paste(layer, mask=layer.getchannel("A"))
        return white
    return band if band.mode == "RGB" else band.convert("RGB")


def _values(band: Image.Image) -> NDArray[np.float64]:
    """16- and 32-bit grey as numbers; infinite and undefined ones are 0."""
    return np.nan_to_num(np.asarray(band).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _levels(image: Image.Image) -> tuple[float, float]:
    """The values of a deep grey image that become 0 and 255.

    Whole numbers map linearly, white (``_white``) to 255; floats are taken as 0-1 or as 0-255
    where all of them fit. Other ranges (negative, beyond 16 bits) are stretched: their
    smallest value becomes 0, their largest 255.
    """
    if image.mode.startswith("I;16") and image.format in _WHITE_IS_65535:
        return 0.0, 65535.0
    ends = []
    for band in _bands((0, 0, *image.size)):
        values = _values(image.crop(band))
        ends.append((float(values.min()), float(values.max())))
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    if image.mode == "F" and low >= 0 and high <= 255:
        return 0.0, 1.0 if high <= 1 else 255.0
    if image.mode != "F" and low >= 0 and high <= 65535:
        return 0.0, float(_white(high, image.format))
    return low, high


def _white(largest: float, format_name: str | None) -> int:
    """The value that stands for white in a grey image whose largest value is ``largest``.

    PNG and PNM define it as 65535. Others (TIFF from cameras and microscopes) store 10,
    12 or 14 bits in 16 without a field for it: the fewest such bits that hold all values.
    """
    if format_name in _WHITE_IS_65535:
        return 65535
    return next(white for white in (255, 1023, 4095, 16383, 65535) if largest <= white)


def _recognise(data: bytes) -> str:
    """The name in Pillow's registry of the format that these bytes begin with.

    Raises ImageError for a format that is not among FORMATS, or that this Pillow cannot read.
    """
    head = data[:64]
    for load in (Image.preinit, Image.init, _load_avif):  # few plugins first, then all
        load()
        for name, shown in FORMATS.items():
            _, accept = Image.OPEN.get(name, (None, None))
            answer = accept(head[:16]) if accept else False
            if isinstance(answer, str) and (name != "AVIF" or load is _load_avif):
                reason = f"{shown} is not supported by this Pillow"
                raise ImageError("image.unsupported_here", reason)
            if answer is True:
                return name
    if head.startswith(b"\xff\xd8"):
        raise ImageError("image.damaged", "damaged JPEG")
    for pattern, shown in _UNSUPPORTED.items():
        if re.match(pattern, head, re.DOTALL):
            raise ImageError("image.unsupported", f"{shown} is not supported")
    raise ImageError("image.unknown_format", "not an image of a known format")


def _load_avif() -> None:
    """Registers the package pillow-avif-plugin where Pillow itself has no AVIF."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_avif")


def open_image(data: bytes) -> ImageFile.ImageFile:
    """An image file's bytes -> the opened, undecoded image, of a size that is allowed."""
    if not data:
        raise ImageError("image.empty", "empty file")
    name = _recognise(data)
    image = Image.OPEN[name][0](io.BytesIO(data), "")
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError("image.damaged", f"damaged {FORMATS[name]} (it has no pixels)")
    if width * height > MAX_PIXELS:
        raise ImageError("image.too_large", f"too large: {width} x {height} pixels")
    return image


@contextlib.contextmanager
def reasons(data: bytes) -> Iterator[None]:
    """Turns every exception of a decoder of ``data`` into ImageError; hides its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ImageError:
            raise
        except Exception as error:  # noqa: BLE001 - damaged fields lead decoders to any of them
            raise ImageError(*_reason(FORMATS[_recognise(data)], error)) from None


def _reason(name: str, error: Exception) -> tuple[str, str]:
    """A decoder's exception -> (code, a short reason that is the same on every machine)."""
    text = str(error).lower()
    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"(\d+) pixels", text)
        return "image.too_large", f"too large: {pixels[1]} pixels" if pixels else "too large"
    if isinstance(error, MemoryError):
        return "image.no_memory", "not enough memory to decode it"
    if isinstance(error, ImportError) or "not available" in text:
        return "image.unsupported_here", f"this kind of {name} is not supported by this Pillow"
    if isinstance(error, EOFError) or "truncated" in text or "unexpected end" in text:
        return "image.truncated", f"truncated {name}"
    unsupported = ("unsupported", "not supported", "unknown", "cannot handle")
    if isinstance(error, NotImplementedError) or any(word in text for word in unsupported):
        return "image.unsupported", f"unsupported kind of {name}"
    return "image.damaged", f"damaged {name}"
