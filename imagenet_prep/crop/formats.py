"""The picture formats that are taken: how their files begin, and what opens them.

A file is opened by the plugin of its own format: which other plugins are loaded in this
process, and in which order, is irrelevant, and none of those that run programs (EPS) or
guess (TGA) are ever asked.
"""

from __future__ import annotations

import functools
import importlib
import re
from typing import Any

from PIL import features


class PictureError(Exception):
    """A picture that cannot be used. Its text is the reason: short, stable, no file names."""


class MachineError(PictureError):
    """A picture that this machine cannot decode as it is: another, or a later try, may."""


_PLUGINS = {
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "WebP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "PNM": ("PIL.PpmImagePlugin", "PpmImageFile"),
    "JPEG 2000": ("PIL.Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    "ICO": ("PIL.IcoImagePlugin", "IcoImageFile"),
    "PCX": ("PIL.PcxImagePlugin", "PcxImageFile"),
}
_MAGIC = (
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\0\0\1\0", "ICO"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"BM", "BMP"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def recognise(data: bytes) -> str:
    """The name of the format that these bytes begin; empty if it is none we know."""
    head = data[:64]
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        if b"avif" in head or b"avis" in head:
            return "AVIF"
        return "HEIC" if head[8:12] in _HEIF_BRANDS else ""
    if re.match(rb"P[1-6][\s#]", head):
        return "PNM"
    if re.match(rb"\x0a[\x00\x02\x03\x05]\x01[\x01\x02\x04\x08]", head):
        return "PCX"
    return next((name for magic, name in _MAGIC if head.startswith(magic)), "")


@functools.cache
def plugin(name: str) -> Any:
    """The class that opens format ``name``; loaded when the first such file needs it.

    Raises MachineError where this installation cannot.
    """
    if name == "WebP" and not features.check("webp"):
        raise MachineError("WebP is not supported by this Pillow")
    if name != "AVIF":
        module, attribute = _PLUGINS[name]
        return getattr(importlib.import_module(module), attribute)
    module = "PIL.AvifImagePlugin" if features.check("avif") else "pillow_avif.AvifImagePlugin"
    try:
        return importlib.import_module(module).AvifImageFile
    except ImportError:
        raise MachineError("AVIF needs the package pillow-avif-plugin") from None
