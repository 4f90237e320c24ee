"""What becomes of the 174 odd files of the real data: cropped, or why not.

They break image readers in many ways, so a change here means that another Pillow, libjpeg or
version of ``crop`` takes other files than before.
"""

from __future__ import annotations

from pathlib import Path

from imagenet_prep.crop.decode import ImageError
from imagenet_prep.crop.image import crop_image
from imagenet_prep.dataset.crop_settings import CropSettings

# Beside the checkout, where the fixture ``shared_data`` looks as well.
ODD = Path(__file__).resolve().parents[3] / "shared" / "data" / "odd"
SIZE_PX = 64


def outcome(data: bytes) -> str:
    """A file's bytes -> "ok WIDTHxHEIGHT MODE", its own, or the reason why there is no crop."""
    try:
        crop = crop_image(data, CropSettings(SIZE_PX))
    except ImageError as error:
        return str(error)
    return f"ok {crop.width}x{crop.height} {crop.mode}"


def cases() -> dict[str, str] | None:
    """File name -> outcome of every file but the list of them; None without the data."""
    if not ODD.is_dir():
        return None
    files = [path for path in ODD.iterdir() if path.name != "manifest.csv"]
    return {path.name: outcome(path.read_bytes()) for path in files}
