"""A data set's own tables, read and checked: FFCV trusts them, and would read foreign memory.

Those of several files become one, as if the samples of all lay in one after the other.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.dataset.manifest import Manifest

REBUILD = "build it again with imagenet-prep build"

# The format of FFCV 1.0.2, in which a beton is written: little-endian everywhere.
FFCV_FORMAT = 2
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype(
    [("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True
)
TABLE = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_RANGE = np.dtype([("ptr", "<u8"), ("size", "<u8")])
# The metadata of a sample, by the number of a field's type.
_INT, _RGB = 1, 2
_KINDS: tuple[Any, ...] = ("<f8", "<i8", IMAGE, _RANGE, "<u8", _RANGE, "<u8")
_METADATA = {number: np.dtype(kind) for number, kind in enumerate(_KINDS)}


@dataclass(frozen=True, eq=False)
class BetonInfo:
    """A set's own tables, checked: ``samples`` square images of ``side_px``.

    kind: what all files of a set have in common; extents int64 (samples, 4): offset and size in
    bytes, FFCV's mode (0 JPEG, 1 raw), and number of the file; labels int64 (samples,), none
    negative; stamps: size, time and identity of each file; first_pages (files + 1,): the pages
    of each, counted through all files.
    """

    samples: int
    side_px: int
    label_max: int
    kind: tuple[object, ...]
    page_size_bytes: int
    extents: NDArray[np.int64]
    labels: NDArray[np.int64]
    stamps: tuple[tuple[int, ...], ...]
    first_pages: NDArray[np.int64]

    def pages(self) -> NDArray[np.int64]:
        """(samples,) the page that each sample lies on, counted through all files."""
        # The header has a page of its own: data pages begin at whole ones.
        within = self.extents[:, 0] // self.page_size_bytes
        return within + self.first_pages[self.extents[:, 3]]


def inspect_betons(paths: Sequence[Path]) -> BetonInfo:
    """The tables of all files of a set, in the order of their samples; see ``inspect_beton``.

    ToolError also when their fields, images or pages are of different kinds.
    """
    infos = [inspect_beton(path) for path in paths]
    first = infos[0]
    for path, info in zip(paths, infos, strict=True):
        if info.kind != first.kind:
            raise ToolError(
                "beton.shard_differs",
                f"{path}: has other fields, images or pages than {paths[0]}; {REBUILD}",
            )
    if len(infos) == 1:
        return first
    extents = np.concatenate([info.extents for info in infos])
    extents[:, 3] = np.repeat(np.arange(len(infos)), [info.samples for info in infos])
    pages = [int(info.first_pages[-1]) for info in infos]
    return BetonInfo(
        samples=len(extents),
        side_px=first.side_px,
        label_max=max(info.label_max for info in infos),
        kind=first.kind,
        page_size_bytes=first.page_size_bytes,
        extents=extents,
        labels=np.concatenate([info.labels for info in infos]),
        stamps=tuple(itertools.chain.from_iterable(info.stamps for info in infos)),
        first_pages=np.cumsum([0, *pages]),
    )


def inspect_beton(path: Path) -> BetonInfo:
    """Reads and checks a beton's header and tables, not its images.

    ToolError when the file is missing, is something else, is cut short, points outside itself,
    or has images that are not squares of one size. FFCV checks none of that.
    """
    with _beton_errors(path):
        with path.open("rb") as file:
            stamp = stamp_of(path)
            metadata, names, kinds, table, page = _read_tables(file, stamp[0])
        types = dict(zip(names, kinds, strict=True))
        if types.get("image") != _RGB or types.get("label") != _INT:
            raise ValueError("it lacks the fields image (RGB images) and label (integers)")
        return _checked(metadata, names, table, stamp, page)


@dataclass(frozen=True, eq=False)
class Images:
    """Where the images of any beton lie: ``places`` int64 (n, 2), offset and bytes; ``raw`` int64
    (n, 2), height and width of those that are stored raw, zeros of the JPEGs; ``labels`` int64
    (n,), None unless one field is of integers."""

    places: NDArray[np.int64]
    raw: NDArray[np.int64]
    labels: NDArray[np.int64] | None


def read_images(path: Path) -> Images:
    """The images of a beton with any fields and sizes, of which one is FFCV's RGBImageField.

    Raises ToolError where the file is missing, is something else or points outside itself.
    """
    with _beton_errors(path):
        return images_in(path)


def images_in(path: Path) -> Images:
    """As ``read_images``; raises OSError or ValueError."""
    with path.open("rb") as file:
        total = stamp_of(path)[0]
        metadata, names, kinds, table, _ = _read_tables(file, total)
        if kinds.count(_RGB) != 1:
            raise ValueError(f"it has {kinds.count(_RGB)} fields of RGB images ({names})")
        images = metadata[f"f{kinds.index(_RGB)}"]
        sizes = _sizes(images, table, total)
    raw = np.stack([images["height"], images["width"]], axis=1).astype(np.int64)
    raw[images["mode"] != 1] = 0
    places = np.stack([images["data_ptr"], sizes], axis=1).astype(np.int64)
    one = kinds.count(_INT) == 1
    labels = metadata[f"f{kinds.index(_INT)}"].astype(np.int64) if one else None
    return Images(places, raw, labels)


@contextlib.contextmanager
def _beton_errors(path: Path) -> Iterator[None]:
    """What goes wrong while the tables of a beton are read, as a ToolError."""
    if path.is_dir():
        raise UsageError("beton.is_folder", f"{path}: is a folder; name the .beton file in it")
    try:
        yield
    except FileNotFoundError:
        raise UsageError(
            "beton.missing", f"{path}: no such file; {REBUILD}, or name the right one"
        ) from None
    except OSError as error:
        raise ToolError(
            "beton.unreadable", f"{path}: cannot be read ({error.strerror}); {REBUILD}"
        ) from None
    except ValueError as error:
        raise ToolError(
            "beton.damaged", f"{path}: is not a usable beton: {error}. {REBUILD.capitalize()}."
        ) from None


def verify_pages(path: Path, manifest: Manifest) -> None:
    """Reads the whole file; ToolError naming the first page that its manifest has otherwise."""
    size = manifest.page_size_bytes
    with path.open("rb") as file:
        for index, expected in enumerate(manifest.pages):
            if hashlib.sha256(file.read(size)).hexdigest() != expected:
                raise ToolError(
                    "beton.page_changed",
                    f"{path}: page {index} (from byte {index * size}) is not what was written; "
                    f"{REBUILD}",
                )


def stamp_of(path: Path | int) -> tuple[int, ...]:
    """By what a change of a file (a path, or an open descriptor) shows."""
    status = os.stat(path)  # noqa: PTH116 - takes descriptors
    return status.st_size, status.st_mtime_ns, status.st_ino


def _read(file: Any, dtype: np.dtype[Any], count: int, total: int, what: str) -> NDArray[Any]:
    """``count`` items of ``dtype`` from the file's position; ValueError if they are not there."""
    if count < 0 or count * dtype.itemsize > total - file.tell():
        raise ValueError(f"the file ends within its {what}")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype, count)


def _read_tables(
    file: Any, total: int
) -> tuple[NDArray[Any], list[str], list[int], NDArray[Any], int]:
    """-> (metadata of the samples, names and types of the fields, allocation table, bytes of a
    page)."""
    header = _read(file, HEADER, 1, total, "header")[0]
    fields, samples, page = (
        int(header[name]) for name in ("num_fields", "num_samples", "page_size")
    )
    if header["version"] != FFCV_FORMAT or not 0 < fields < 100 or page & (page - 1):
        raise ValueError("it does not begin as FFCV's files do")
    if samples < 1 or page < 1:
        raise ValueError("it has no samples")
    described = _read(file, FIELD, fields, total, "list of fields")
    kinds = described["type_id"].tolist()
    try:
        names = [bytes(row["name"]).split(b"\0")[0].decode("ascii") for row in described]
        rows = np.dtype([("", _METADATA[kind]) for kind in kinds], align=True)
    except (KeyError, UnicodeDecodeError):
        raise ValueError("it has fields of an unknown type") from None
    metadata = _read(file, rows, samples, total, "table of samples")
    start = int(header["alloc_table_ptr"])
    length, rest = divmod(total - start, TABLE.itemsize)
    if start < file.tell() or length < samples or rest:
        raise ValueError("it was cut short: the table at its end is not whole")
    file.seek(start)
    table = _read(file, TABLE, length, total, "last table")
    return metadata, names, kinds, table, page


def _sizes(images: NDArray[Any], table: NDArray[Any], total: int) -> NDArray[np.uint64]:
    """The bytes of each image; ValueError where one is not within the file."""
    table = table[np.argsort(table["ptr"], kind="stable")]
    offsets = images["data_ptr"]
    place = np.minimum(np.searchsorted(table["ptr"], offsets), len(table) - 1)
    sizes, end = table["size"][place], np.uint64(total)
    pixels = images["height"].astype(np.uint64) * images["width"].astype(np.uint64)
    # Compared so that no sum of two large numbers can wrap around.
    lost = (table["ptr"][place] != offsets) | (sizes > end) | (offsets > end - sizes)
    lost |= (images["mode"] == 1) & (sizes != 3 * pixels)
    lost |= (images["mode"] > 1) | (sizes < 1)
    if lost.any():
        raise ValueError(f"the place of sample {int(lost.argmax())} is not within the file")
    return np.asarray(sizes)


def _checked(
    metadata: NDArray[Any],
    names: list[str],
    table: NDArray[Any],
    stamp: tuple[int, ...],
    page_size: int,
) -> BetonInfo:
    images = metadata[f"f{names.index('image')}"]
    labels = metadata[f"f{names.index('label')}"].astype(np.int64)
    side = int(images["height"][0])
    if side < 1 or (images["height"] != side).any() or (images["width"] != side).any():
        raise ValueError("its images are not squares of one size")
    if int(labels.min()) < 0:
        raise ValueError(f"sample {int(labels.argmin())} has a negative label")
    sizes = _sizes(images, table, stamp[0])
    columns = (images["data_ptr"], sizes, images["mode"], np.zeros(len(images)))
    extents = np.stack([column.astype(np.int64) for column in columns], axis=1)
    return BetonInfo(
        samples=len(images),
        side_px=side,
        label_max=int(labels.max()),
        kind=(tuple(names), metadata.dtype, side, page_size),
        page_size_bytes=page_size,
        extents=extents,
        labels=labels,
        stamps=(stamp,),
        first_pages=np.array([0, -(-stamp[0] // page_size)]),
    )
