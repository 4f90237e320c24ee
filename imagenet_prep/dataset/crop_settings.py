"""What a crop is made with. Pure, and light enough for a command line's help."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

ALGORITHM = 3  # counts the versions of the module crop that give other pixels


def _setting(default: Any, allowed: tuple[Any, ...], text: str) -> Any:
    """A field, and its option: the choices, or the smallest and the largest number; its help."""
    return field(default=default, metadata={"allowed": allowed, "help": text})


@dataclass(frozen=True)
class CropSettings:
    """How an image becomes a square of ``size`` pixels a side.

    ``fit``: "shortest" takes the short side to ``size`` and cuts the centre out, "squash"
    resizes the whole image whatever its shape. ``filter``: the antialiasing one. ``truncated``:
    whether what is there of an incomplete file is taken or the file fails.
    """

    size: int = _setting(256, (1, 4096), "Side of the crops, pixels.")
    quality: int = _setting(90, (1, 100), "JPEG quality of the crops, 1 to 100.")
    fit: str = _setting(
        "shortest",
        ("shortest", "squash"),
        "Shape: centre crop after scaling the short side to --size, or whole image squashed.",
    )
    filter: str = _setting(
        "bilinear", ("bilinear", "area", "bicubic", "lanczos"), "Resampling filter."
    )
    exif: str = _setting("apply", ("apply", "ignore"), "EXIF orientation: applied, or ignored.")
    truncated: str = _setting(
        "fail",
        ("fail", "keep"),
        "Incomplete files: failure, or crop of the part that decodes.",
    )

    def text(self) -> str:
        """These settings and the algorithm in one line: equal where crops are."""
        values = asdict(self) | {"algorithm": ALGORITHM}
        return " ".join(f"{name}={value}" for name, value in values.items())

    @classmethod
    def parse(cls, text: str) -> CropSettings:
        """What ``text`` gave -> the settings. Raises ValueError for anything else."""
        pairs = dict(word.split("=", 1) for word in text.split())
        if pairs.pop("algorithm", "") != str(ALGORITHM):
            raise ValueError("made by another version")
        if set(pairs) != {field.name for field in fields(cls)}:
            raise ValueError("other settings than this version has")
        size, quality = int(pairs.pop("size")), int(pairs.pop("quality"))
        return cls(size, quality, **pairs)
