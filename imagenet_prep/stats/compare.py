"""Statistics beside those of another file: how far apart they are, in levels of 0-255."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset.statistics import Stats, load_stats

Values = NDArray[np.float64]
_REMEDY = (
    "name a statistics file of imagenet-prep, or an .npz with mean images (S, S, 3) or "
    "color_stdev (3,) and color_vectors (3, 3)"
)


@dataclass(frozen=True, eq=False, slots=True)
class Reference:
    """Statistics to compare with, in levels; None for what a file does not hold.

    mean (S, S, 3); channel_mean, channel_std (3,); stdev (3,) along the colour directions,
    ascending, and vectors (3, 3), these directions in columns.
    """

    name: str
    mean: Values | None = None
    channel_mean: Values | None = None
    channel_std: Values | None = None
    stdev: Values | None = None
    vectors: Values | None = None


def read_references(path: Path) -> list[Reference]:
    """A statistics file of ours, or published mean images and colour directions (.npz) -> one
    Reference for each mean image and one for the directions.

    Raises ToolError: ``stats.reference`` when the file has none of them, or as ``load_stats``.
    """
    if not path.is_file():
        raise ToolError("stats.reference", f"{path}: no such file; {_REMEDY}")
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            if "format" in file.files:
                return [reference_of(load_stats(path), path.name)]
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # noqa: BLE001 - whatever zipfile and NumPy raise for such bytes
        message = f"{path}: cannot be read as statistics ({error}); {_REMEDY}"
        raise ToolError("stats.reference", message) from None
    found = [
        Reference(name, mean=array.astype(np.float64))
        for name, array in arrays.items()
        if array.ndim == 3 and array.shape[0] == array.shape[1] and array.shape[2] == 3
    ]
    stdev, vectors = arrays.get("color_stdev"), arrays.get("color_vectors")
    if stdev is not None and vectors is not None and (stdev.shape, vectors.shape) == ((3,), (3, 3)):
        order = np.argsort(stdev)
        found.append(Reference("color", stdev=stdev[order], vectors=vectors[:, order]))
    values = [x for one in found for x in (one.mean, one.stdev, one.vectors) if x is not None]
    if not values or not all(np.isfinite(x).all() for x in values):
        raise ToolError("stats.reference", f"{path}: holds no usable statistics; {_REMEDY}")
    return found


def reference_of(stats: Stats, name: str) -> Reference:
    """Statistics of ours as a reference."""
    mean = stats.mean.astype(np.float64)
    channels = (stats.channel_mean, stats.channel_std)
    return Reference(name, mean, *channels, stats.eigenstdev, stats.eigenvectors)


def compare(stats: Stats, theirs: Reference) -> dict[str, Any]:
    """The differences, ours less theirs, of what the reference has.

    ``mean_image``: largest and mean absolute difference, of images of two sizes over the centre
    of the larger; ``channel_mean`` and ``channel_std``: ours, theirs and the difference;
    ``eigenstdev``: ours, theirs and ours over theirs (None over zero); ``angles``: degrees
    between the colour directions.
    """
    found: dict[str, Any] = {"name": theirs.name}
    channels = theirs.channel_mean
    if theirs.mean is not None:
        channels = theirs.mean.mean(axis=(0, 1)) if channels is None else channels
        side = min(stats.size_px, len(theirs.mean))
        ours = _middle(stats.mean.astype(np.float64), side)
        difference = np.abs(ours - _middle(theirs.mean, side))
        largest, mean = float(difference.max()), float(difference.mean())
        found["mean_image"] = {"max_abs": largest, "mean_abs": mean}
    if channels is not None:
        found["channel_mean"] = _beside(stats.channel_mean, channels)
    if theirs.channel_std is not None:
        found["channel_std"] = _beside(stats.channel_std, theirs.channel_std)
    if theirs.stdev is not None:
        pairs = zip(stats.eigenstdev, theirs.stdev, strict=True)
        ratio = [float(a / b) if b > 0 else None for a, b in pairs]
        pair = {"ours": stats.eigenstdev.tolist(), "theirs": theirs.stdev.tolist()}
        found["eigenstdev"] = {**pair, "ratio": ratio}
    if theirs.vectors is not None:
        found["angles"] = angles_between(stats.eigenvectors, theirs.vectors).tolist()
    return found


def _beside(ours: Values, theirs: Values) -> dict[str, list[float]]:
    values = {"ours": ours, "theirs": theirs, "difference": ours - theirs}
    return {name: value.tolist() for name, value in values.items()}


def _middle(image: Values, side: int) -> Values:
    start = (len(image) - side) // 2
    return image[start : start + side, start : start + side]


def angles_between(a: Values, b: Values) -> Values:
    """The angles between the columns of two (3, 3) matrices, 0 to 90 degrees.

    By the arc tangent of sine and cosine, which is exact for small angles too.
    """
    a, b = (matrix / np.linalg.norm(matrix, axis=0) for matrix in (a, b))
    cosines = np.abs((a * b).sum(axis=0))
    sines = np.linalg.norm(np.cross(a, b, axis=0), axis=0)
    angles: Values = np.degrees(np.arctan2(sines, cosines))
    return angles
