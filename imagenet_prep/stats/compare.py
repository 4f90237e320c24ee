"""Statistics beside somebody else's: how far apart they are. Pure; units: 0-255 levels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.dataset.statistics import Stats

Values = NDArray[np.float64]
# Another reading than the plain one is believed when it is this much closer.
_CLOSER = 0.5


@dataclass(frozen=True, eq=False, slots=True)
class Reference:
    """What a file of statistics says, in levels; None for what it does not say.

    mean (S, S, 3); channel_mean, channel_std (3,); stdev (3,) along the directions of
    colour, ascending; vectors (3, 3), the directions, in columns unless those of ours show
    otherwise, and ``order`` (3,) which of them has the least stdev, the next, and the most.
    ``notes``: how it was read where that was not plain.
    """

    name: str
    mean: Values | None = None
    channel_mean: Values | None = None
    channel_std: Values | None = None
    stdev: Values | None = None
    vectors: Values | None = None
    order: NDArray[np.int64] = field(default_factory=lambda: np.arange(3))
    notes: tuple[str, ...] = ()


def reference_of(stats: Stats, name: str) -> Reference:
    """Statistics of ours as a reference for others."""
    return Reference(
        name,
        mean=stats.mean.astype(np.float64),
        channel_mean=stats.channel_mean,
        channel_std=stats.channel_std,
        stdev=stats.eigenstdev,
        vectors=stats.eigenvectors,
    )


def compare(stats: Stats, theirs: Reference) -> dict[str, Any]:
    """The differences, ours less theirs, of whatever the reference has.

    ``mean_image``: largest and mean absolute difference; ``channel_mean`` and
    ``channel_std``: ours, theirs and the difference; ``eigenstdev``: ours, theirs (ascending)
    and ours over theirs (None over zero); ``angles``: degrees between the directions of each.
    Channels in the order blue, green, red, and directions in rows, are taken so where that
    is far closer, and a note says so; of pictures of two sizes the centre of the larger.
    """
    notes = list(theirs.notes)
    found: dict[str, Any] = {"name": theirs.name}
    mean, channels, std = theirs.mean, theirs.channel_mean, theirs.channel_std
    if mean is not None:
        channels = mean.mean(axis=(0, 1)) if channels is None else channels
    if channels is not None and _is_swapped(stats.channel_mean, channels):
        notes.append("channels taken as blue, green, red, which is far closer")
        channels = channels[::-1]
        std = None if std is None else std[::-1]
        mean = None if mean is None else mean[..., ::-1]
    if mean is not None:
        found["mean_image"] = _mean_image(stats, mean, notes)
    if channels is not None:
        found["channel_mean"] = _beside(stats.channel_mean, channels)
    if std is not None:
        found["channel_std"] = _beside(stats.channel_std, std)
    if theirs.stdev is not None:
        ratio = [
            float(a / b) if b > 0 else None
            for a, b in zip(stats.eigenstdev, theirs.stdev, strict=True)
        ]
        pair = {"ours": stats.eigenstdev.tolist(), "theirs": theirs.stdev.tolist()}
        found["eigenstdev"] = {**pair, "ratio": ratio}
    if theirs.vectors is not None:
        found["angles"] = _directions(stats.eigenvectors, theirs, notes)
    return {**found, "notes": notes}


def _is_swapped(ours: Values, theirs: Values) -> bool:
    straight, swapped = (np.abs(ours - t).sum() for t in (theirs, theirs[::-1]))
    return bool(swapped < _CLOSER * straight)


def _beside(ours: Values, theirs: Values) -> dict[str, list[float]]:
    values = {"ours": ours, "theirs": theirs, "difference": ours - theirs}
    return {name: value.tolist() for name, value in values.items()}


def _mean_image(stats: Stats, theirs: Values, notes: list[str]) -> dict[str, float]:
    ours = stats.mean.astype(np.float64)
    side = min(len(ours), len(theirs))
    if len(ours) != len(theirs):
        larger = "ours" if len(ours) > side else "theirs"
        notes.append(f"of the mean images the middle {side} x {side} px of {larger}")
        ours, theirs = _middle(ours, side), _middle(theirs, side)
    difference = np.abs(ours - theirs)
    return {"max_abs": float(difference.max()), "mean_abs": float(difference.mean())}


def _middle(image: Values, side: int) -> Values:
    start = (len(image) - side) // 2
    return image[start : start + side, start : start + side]


def _directions(ours: Values, theirs: Reference, notes: list[str]) -> list[float]:
    """The angle between the directions of each, in degrees; a direction has no sign."""
    columns = theirs.vectors
    if columns is None:
        return []
    readings = {
        "": columns,
        "directions taken in rows": columns.T,
        "directions taken as blue, green, red": columns[::-1],
        "directions taken in rows as blue, green, red": columns.T[::-1],
    }
    angles = {
        reading: angles_between(ours, vectors[:, theirs.order])
        for reading, vectors in readings.items()
    }
    best = min(angles, key=lambda reading: float(angles[reading].sum()))
    if not angles[best].sum() < _CLOSER * angles[""].sum():
        best = ""
    if best:
        notes.append(f"{best}, which is far closer")
    return [float(angle) for angle in angles[best]]


def angles_between(a: Values, b: Values) -> Values:
    """The angles between the columns of two (3, 3) matrices, 0 to 90 degrees.

    By the arc tangent of sine and cosine, which is exact for small angles too.
    """
    a, b = (matrix / np.linalg.norm(matrix, axis=0) for matrix in (a, b))
    cosines = np.abs((a * b).sum(axis=0))
    sines = np.linalg.norm(np.cross(a, b, axis=0), axis=0)
    angles: Values = np.degrees(np.arctan2(sines, cosines))
    return angles
