"""A folder of crops -> ``stats.npz``: reads, decodes and digests the crops in parallel.

The arithmetic is in ``stats``; this layer knows files and workers. The parent holds one
set of sums, however many pictures there are.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imagenet_prep import parallel
from imagenet_prep.artifacts import Progress, Stats, ToolError, quiet, save_stats, source_digest
from imagenet_prep.journal import list_crops

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from imagenet_prep.stats import Moments

_REMEDY = "delete it and run imagenet-prep crop again"
# Pictures of one work item: at most this many, and at most this much decoded memory.
_GROUP_PICTURES = 64
_GROUP_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class _Group:
    """One work item: crops (paths relative to ``folder``), all ``size_px`` square."""

    folder: Path
    crops: tuple[str, ...]
    size_px: int


@dataclass(frozen=True, slots=True)
class _Part:
    """The exact sums of a group and the SHA-256 of each of its files, in order."""

    crops: tuple[str, ...]
    moments: Moments
    digests: tuple[str, ...]


class _BadCropError(Exception):
    """Why one file is not a crop; never leaves this module."""


def run_stats(
    src: Path,
    out: Path,
    *,
    split: str = "train",
    jobs: int | None = None,
    progress: Progress = quiet,
) -> Stats:
    """The crops of one split of the folder ``src`` -> their Stats, also written to ``out``.

    The same crops give the same bytes for any number of jobs. Raises ToolError, and
    leaves ``out`` as it was, when the split has no crops or one of them is missing, not a
    JPEG, damaged, not square or of another size than the first.
    """
    from imagenet_prep import stats

    crops = [path for path, _ in list_crops(src, split)]
    total = stats.empty(_side_px(src, crops[0]))
    groups = _groups(src, crops, total.size_px)
    digests: list[tuple[str, str]] = []
    progress("stats", 0, len(crops))
    results = parallel.map_unordered(_measure, groups, jobs=parallel.resolve_jobs(jobs), chunk=1)
    with contextlib.closing(results):
        for part in results:
            if isinstance(part, parallel.Failed):
                raise _fault(src, part.key, part.reason)
            total = stats.merge(total, part.moments)
            digests.extend(zip(part.crops, part.digests, strict=True))
            progress("stats", len(digests), len(crops))
    result = stats.finish(total, source_digest(digests))
    save_stats(out, result)
    return result


def _fault(src: Path, crop: str, reason: str) -> ToolError:
    return ToolError(f"{src / crop}: {reason}; {_REMEDY}")


def _groups(src: Path, crops: Sequence[str], size_px: int) -> list[_Group]:
    count = max(1, min(_GROUP_PICTURES, _GROUP_BYTES // (3 * size_px**2)))
    return [
        _Group(src, tuple(crops[start : start + count]), size_px)
        for start in range(0, len(crops), count)
    ]


def _side_px(src: Path, crop: str) -> int:
    """The side of the first crop.."""
    try:
        data = (src / crop).read_bytes()
        return int(_decode(data, None).shape[0])
    except OSError as error:
        raise _fault(src, crop, f"cannot be read ({error.strerror})") from None
    except _BadCropError as error:
        raise _fault(src, crop, str(error)) from None


def _measure(group: _Group) -> _Part | parallel.Failed:
    """One group -> its sums and digests, or the first crop that is not one; runs in a worker."""
    import numpy as np

    from imagenet_prep import stats

    shape = (len(group.crops), group.size_px, group.size_px, 3)
    images = np.empty(shape, np.uint8)
    digests = []
    for index, crop in enumerate(group.crops):
        try:
            data = (group.folder / crop).read_bytes()
            images[index] = _decode(data, group.size_px)
        except OSError as error:
            return parallel.Failed(crop, f"cannot be read ({error.strerror})")
        except _BadCropError as error:
            return parallel.Failed(crop, str(error))
        digests.append(hashlib.sha256(data).hexdigest())
    return _Part(group.crops, stats.moments_of(images), tuple(digests))


def _decode(data: bytes, size_px: int | None) -> NDArray[np.uint8]:
    """JPEG bytes -> (S, S, 3) uint8 RGB, with S = ``size_px`` where that is given.

    Raises _BadCropError for anything that is not a whole, square, 8-bit RGB or grey JPEG
    of that size.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            width, height = image.size
            if width != height:
                raise _BadCropError(f"is {width}x{height}, and crops are square")
            if size_px is not None and width != size_px:
                raise _BadCropError(
                    f"is {width}x{height} where the first crop is {size_px}x{size_px}"
                )
            if image.mode not in ("RGB", "L"):
                raise _BadCropError(f"is a {image.mode} picture, and crops are RGB")
            return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError:
        raise _BadCropError("claims to be enormous") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _BadCropError(f"is not a whole JPEG ({type(error).__name__})") from None
