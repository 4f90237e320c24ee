"""What a crop is made with. Pure, and light enough for a command line's help."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

FITS = ("shortest", "squash")
FILTERS = ("bilinear", "area", "bicubic", "lanczos")
EXIF = ("apply", "ignore")
TRUNCATED = ("fail", "keep")
ALGORITHM = 3  # counts the versions of the module crop that give other pixels


@dataclass(frozen=True)
class CropSettings:
    """How an image becomes a square of ``size`` pixels a side.

    ``fit``: "shortest" takes the short side to ``size`` and cuts the centre out, "squash"
    resizes the whole image whatever its shape. ``filter``: the antialiasing one. ``exif``:
    whether the EXIF orientation is applied to the image. ``truncated``: whether what is there of an
    incomplete file is taken or the file fails. ``quality``: of the crop as JPEG.
    """

    size: int = 256
    quality: int = 90
    fit: str = "shortest"
    filter: str = "bilinear"
    exif: str = "apply"
    truncated: str = "fail"

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
