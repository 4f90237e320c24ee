"""JPEG bytes -> pixels in memory that is there already, by the decoder of this package.

The kinds of JPEG that it does not read (progressive, 4:2:2, restart markers, ...) are left to
libjpeg-turbo, from FFCV's extension module (FFCV itself is not imported, which would take seconds)
or the system's; where there is none, to Pillow. All give the same pixels.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Of turbojpeg.h, the same in versions 1 to 3; by the bytes of a pixel: RGB and RGBX.
_PIXELS = {3: 0, 4: 2}
_ACCURATE_DCT = 4096  # what PIL uses; FFCV itself decodes with the fast one

Decode = Callable[[bytes, NDArray[np.uint8]], None]


def decode_into(data: bytes, pixels: NDArray[np.uint8]) -> None:
    """JPEG bytes of a grey or RGB image -> its pixels in ``pixels``, (H, W, 3 or 4) uint8.

    They are red, green, blue and perhaps a byte of any value, the same as PIL's. The caller has
    looked at the size in the header (``jpeg_frame``). Raises ValueError with the reason when
    the bytes do not decode, or only with a guess at what is missing.
    """
    from imagenet_prep.jpeg import core, cpu

    if not pixels.flags.c_contiguous or pixels.ndim != 3 or pixels.shape[2] not in _PIXELS:
        raise ValueError(f"pixels of shape {pixels.shape} in memory")
    status = cpu.decoder().decode(np.frombuffer(data, np.uint8), pixels)
    if status in (core.NOT_JPEG, core.CORRUPT, core.TRUNCATED):
        raise ValueError(f"is not a whole JPEG ({core.REASONS[status]})")
    if status != core.OK:  # another kind, or not the size that was asked for
        _other_decoder()(data, pixels)


@functools.cache
def _other_decoder() -> Decode:
    return of_library() or _with_pil


@functools.cache
def library() -> ctypes.CDLL | None:
    """A library with libjpeg-turbo's functions (``tjDecompress2`` ...): FFCV's extension module,
    which is linked with it, or the system's; None where there is none."""
    import ctypes.util

    spec = importlib.util.find_spec("ffcv")
    folders = spec.submodule_search_locations if spec else None
    names = [str(path) for folder in folders or () for path in Path(folder).glob("_libffcv*")]
    names += ["libturbojpeg.so.0", ctypes.util.find_library("turbojpeg") or ""]
    for name in names:
        try:
            found = ctypes.CDLL(name) if name else None
            if found is not None and found.tjInitDecompress and found.tjDecompress2:
                return found
        except (OSError, AttributeError):
            continue
    return None


def of_library() -> Decode | None:
    """The decoder of ``library``; None where there is none."""
    found = library()
    if found is None:
        return None
    start, decompress, reason = (
        getattr(found, name) for name in ("tjInitDecompress", "tjDecompress2", "tjGetErrorStr2")
    )
    start.restype = ctypes.c_void_p
    integer, address = ctypes.c_int, ctypes.c_void_p
    decompress.argtypes = [
        *(address, ctypes.c_char_p, ctypes.c_ulong, address),
        *(integer, integer, integer, integer, integer),
    ]
    reason.argtypes, reason.restype = [address], ctypes.c_char_p
    handles = threading.local()  # workers of a cluster may be threads
    handles.handle = start()
    if not handles.handle:
        return None

    def decode(data: bytes, pixels: NDArray[np.uint8]) -> None:
        handle = getattr(handles, "handle", None)
        if handle is None:
            handle = handles.handle = start()
        height, width, depth = pixels.shape
        shape = (width, depth * width, height, _PIXELS[depth], _ACCURATE_DCT)
        if decompress(handle, data, len(data), pixels.ctypes.data, *shape):
            text = reason(handle).decode("ascii", "replace").rpartition(": ")[2]
            raise ValueError(f"is not a whole JPEG ({text})")

    return decode


def _with_pil(data: bytes, pixels: NDArray[np.uint8]) -> None:
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"is not a whole JPEG ({type(error).__name__})") from None
    if rgb.size != pixels.shape[1::-1]:
        raise ValueError("is not a whole JPEG (another size than in its header)")
    pixels[..., :3] = np.asarray(rgb)
