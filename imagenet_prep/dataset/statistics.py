"""The statistics file: stats.npz."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.files import publish

STATS_FORMAT = 2


@dataclass(frozen=True)
class Stats:
    """Exact statistics of a set of equally sized images (units: 0-255 levels).

    mean (S, S, 3) float32; sum (S, S, 3) uint64; products (3, 3) uint64, the sum of
    p pᵀ over all pixels; count images; channel_mean, channel_std (3,) float64;
    covariance (3, 3) float64 of a pixel's colour; eigenvalues (3,) ascending,
    eigenstdev their roots; eigenvectors (3, 3) in columns, each with its largest
    component positive; source, a digest of the images they came from; coverage, lines
    "first-last/total digest": the number of images and a digest of their paths.
    """

    mean: NDArray[np.float32]
    sum: NDArray[np.uint64]
    products: NDArray[np.uint64]
    count: int
    channel_mean: NDArray[np.float64]
    channel_std: NDArray[np.float64]
    covariance: NDArray[np.float64]
    eigenvalues: NDArray[np.float64]
    eigenstdev: NDArray[np.float64]
    eigenvectors: NDArray[np.float64]
    source: str
    coverage: tuple[str, ...] = ()

    @property
    def size_px(self) -> int:
        """The side of the images."""
        return int(self.mean.shape[0])


def save_stats(target: Path, stats: Stats) -> None:
    """Publishes ``stats.npz``, without pickles; the same statistics give the same bytes."""
    with publish(target) as temporary:
        write_stats(temporary, stats)


def write_stats(path: Path | BinaryIO, stats: Stats) -> None:
    """Writes the bytes of ``stats.npz`` to a file that the caller publishes, or into memory."""
    import numpy as np

    arrays: dict[str, Any] = {
        **asdict(stats),
        "count": np.uint64(stats.count),
        "size": np.int64(stats.size_px),
        "source": np.array(stats.source),
        "coverage": np.array(stats.coverage, np.str_),
        "format": np.int64(STATS_FORMAT),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(arrays):
            # A fixed time stamp: numpy.savez would write the clock into the file.
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, np.asanyarray(arrays[name]), allow_pickle=False)


def load_stats(path: Path) -> Stats:
    """Reads and checks ``stats.npz``; ToolError if it is missing, foreign or damaged."""
    import numpy as np

    remedy = "make it again with imagenet-prep stats"
    if path.exists() and not path.is_file():  # a folder, or a pipe, which would block
        raise ToolError("stats.missing", f"{path}: is not a file; {remedy}")
    try:
        # Opened here, because NumPy does not close it when the archive is damaged.
        with path.open("rb") as handle:
            if not zipfile.is_zipfile(handle):  # NumPy would advise to trust the file
                raise ValueError("it is not an .npz file, or was cut short")
            handle.seek(0)
            file = np.load(handle, allow_pickle=False)
            values = {name: file[name] for name in file.files}
        if int(values["format"]) != STATS_FORMAT:
            raise ValueError(f"format {int(values['format'])}, this version reads {STATS_FORMAT}")
        stats = Stats(
            **{name: values[name] for name in Stats.__dataclass_fields__ if name in STATS_SHAPES},
            count=int(values["count"]),
            source=str(values["source"]),
            coverage=tuple(str(part) for part in values["coverage"].ravel()),
        )
        size = int(values["size"])
        for name, shape in STATS_SHAPES.items():
            array = getattr(stats, name)
            if array.shape != tuple(size if n < 0 else n for n in shape):
                raise ValueError(f"{name} has shape {array.shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite")
        expected = (stats.sum / np.float64(max(stats.count, 1))).astype(np.float32)
        if stats.count < 1 or not np.array_equal(expected, stats.mean):
            raise ValueError("the mean is not the sum divided by the count")
    except FileNotFoundError:
        message = f"{path}: the statistics file is missing; {remedy}"
        raise ToolError("stats.missing", message) from None
    except _DAMAGED_ARCHIVE as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        message = f"{path}: not a usable statistics file ({reason}); {remedy}"
        raise ToolError("stats.damaged", message) from None
    return stats


# What zipfile and NumPy raise for changed bytes; RuntimeError: a claimed encryption or
# compression that is not supported.
_DAMAGED_ARCHIVE = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)

STATS_SHAPES: dict[str, tuple[int, ...]] = {
    "mean": (-1, -1, 3),
    "sum": (-1, -1, 3),
    "products": (3, 3),
    "channel_mean": (3,),
    "channel_std": (3,),
    "covariance": (3, 3),
    "eigenvalues": (3,),
    "eigenstdev": (3,),
    "eigenvectors": (3, 3),
}
"""The arrays of :class:`Stats` with their shapes; -1 is the side of the images."""
