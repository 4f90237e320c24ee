"""The contract between the stages: names, values and how they reach the disk.

Everything here is importable without torch, FFCV, numba or PIL, so that both
command lines answer at once and the trainer can read what the offline stage wrote.
Pixels are uint8 RGB, 0-255, height x width x channel; statistics are in the same units.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
CLASSES_NAME = "classes.json"
JOURNAL_NAME = "crop.jsonl"
STATS_NAME = "stats.npz"
CROP_SUFFIX = ".JPEG"
STATS_FORMAT = 2
MANIFEST_FORMAT = 3

SHARD_NUMBER = re.compile(r"-\d{5}-of-\d{5}$")
"""How the name of a shard ends, without ``.beton``."""

Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)``; ``total`` is 0 while it is unknown."""


def quiet(what: str, done: int, total: int) -> None:
    """The progress callback that shows nothing."""


class ToolError(Exception):
    """A user's mistake or a fault of their data: one sentence with the remedy.

    The command line prints the sentence and ends with ``status`` (1: the data or
    the run failed, 2: wrong usage).
    """

    status = 1


class UsageError(ToolError):
    """Wrong usage: an option or a path that cannot be what was meant."""

    status = 2


@dataclass(frozen=True)
class Classes:
    """The classes of a data set; a label is an index into ``names``.

    ``names`` are the folder names (wnids for ImageNet), ``readable`` maps some or
    all of them to a name for people.
    """

    names: tuple[str, ...]
    readable: Mapping[str, str]

    def title(self, label: int) -> str:
        """The name for people of ``label``; the folder name where none is known."""
        return self.readable.get(self.names[label], self.names[label])

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Stats:
    """Exact statistics of a set of equally sized pictures (units: 0-255 levels).

    mean (S, S, 3) float32; sum (S, S, 3) uint64; products (3, 3) uint64, the sum of
    p pᵀ over all pixels; count pictures; channel_mean, channel_std (3,) float64;
    covariance (3, 3) float64 of a pixel's colour; eigenvalues (3,) ascending,
    eigenstdev their roots; eigenvectors (3, 3) in columns, each with its largest
    component positive; source, a digest of the pictures they came from; coverage, which
    pictures of which list they are (``coverage``), where that is known.
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
        """The side of the pictures."""
        return int(self.mean.shape[0])


@dataclass(frozen=True)
class Manifest:
    """What ``<name>.beton.json`` says; it is written last and means "complete".

    ``pages`` are the SHA-256 of the beton's pages in file order, ``digest`` that of them all
    (``pages_digest``), ``keys`` the crop path (relative, posix) of each sample in file order.
    ``shard`` (0, 1, ...) of ``shards`` files of one set; ``set``, common to them all, is what
    ``pages_digest`` makes of their digests, and "" where the beton is no part of a set.
    """

    samples: int
    split: str
    size_px: int
    classes: tuple[str, ...]
    readable: Mapping[str, str]
    formats: Mapping[str, int]
    page_size_bytes: int
    bytes: int
    digest: str
    pages: tuple[str, ...]
    stats_digest: str
    source: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    keys: tuple[str, ...]
    shard: int = 0
    shards: int = 1
    set: str = ""
    format: int = MANIFEST_FORMAT


def manifest_beside(beton: Path) -> Path:
    """``train.beton`` -> ``train.beton.json``."""
    return beton.with_name(beton.name + ".json")


def stats_beside(beton: Path) -> Path:
    """``train.beton``, and each of its shards -> ``train.stats.npz``."""
    return beton.with_name(SHARD_NUMBER.sub("", beton.stem) + ".stats.npz")


@contextlib.contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``target``; renames it onto ``target`` on success.

    After an exception (KeyboardInterrupt included) the temporary file is gone and
    ``target`` is as it was. What a killed process left half-written is removed first.
    Raises UsageError where no such file can be: it is a folder, or its folder a file.
    """
    if target.is_dir():
        raise UsageError(f"{target}: is a folder; name a file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{target.parent}: is no folder or lies in none; name a folder") from None
    _remove_abandoned(target)
    handle, temporary = _locked_temporary(target)
    try:
        os.fchmod(handle, 0o666 & ~_umask())
        yield temporary
        os.fsync(handle)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def _locked_temporary(target: Path) -> tuple[int, Path]:
    """(descriptor, path) of a new file beside ``target``, locked while its writer lives."""
    while True:
        try:
            handle, name = tempfile.mkstemp(".tmp", f".{target.name}.", target.parent)
        except OSError as error:
            error.filename = str(target)  # what the user knows of
            raise
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # Another process may have taken it for abandoned before it was locked.
        if Path(name).exists():
            return handle, Path(name)
        os.close(handle)


def _remove_abandoned(target: Path) -> None:
    """Deletes temporary files of ``target`` that no living process has locked."""
    for temporary in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        try:
            handle = os.open(temporary, os.O_RDWR)
        except OSError:
            continue  # somebody else's, or just renamed
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink(missing_ok=True)
        except OSError:
            pass  # in use, or a file system where that cannot be told
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(target: Path, value: Any) -> None:
    """Publishes ``value`` as indented JSON with sorted keys (the same value, the same bytes)."""
    with publish(target) as temporary:
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """The JSON object in ``path``; ToolError with ``remedy`` if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ToolError(f"{path}: {what} is missing; {remedy}") from None
    except IsADirectoryError:
        raise ToolError(f"{path}: is a folder, not {what}; {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ToolError(f"{path}: {what} cannot be read ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise ToolError(f"{path}: {what} is not a JSON object; {remedy}")
    return value


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_digest(pairs: Iterable[tuple[str, str]]) -> str:
    """(crop path, SHA-256 of its bytes) of every crop, in any order -> one digest of them all.

    The sum of SHA-256("<content>  <path>") over the crops, modulo 2^256, as 64 hexadecimal
    digits: so the digests of parts add up to that of the whole (``add_digests``). Statistics
    and betons carry it, so that each can tell whether the other was made from the same
    pictures.
    """
    lines = (f"{content}  {path}" for path, content in pairs)
    total = sum(int.from_bytes(hashlib.sha256(line.encode()).digest()) for line in lines)
    return f"{total % (1 << 256):064x}"


def add_digests(*digests: str) -> str:
    """``source_digest`` of several sets of crops -> that of all of them.

    Raises ValueError for what is not 64 hexadecimal digits.
    """
    if any(len(digest) != 64 for digest in digests):
        raise ValueError("a source digest has 64 hexadecimal digits")
    return f"{sum(int(digest, 16) for digest in digests) % (1 << 256):064x}"


def save_classes(folder: Path, classes: Classes) -> None:
    """Writes ``classes.json`` into ``folder``."""
    rows = [
        {"label": label, "class": name, "name": classes.title(label)}
        for label, name in enumerate(classes.names)
    ]
    write_json(folder / CLASSES_NAME, {"format": 1, "classes": rows})


def load_classes(folder: Path) -> Classes:
    """Reads ``classes.json`` from ``folder``; ToolError if it is missing or damaged."""
    remedy = "crop the pictures again with imagenet-prep crop"
    path = folder / CLASSES_NAME
    value = read_json(path, "the class list", remedy)
    try:
        rows = sorted(value["classes"], key=lambda row: row["label"])
        names = tuple(str(row["class"]) for row in rows)
        readable = {str(row["class"]): str(row["name"]) for row in rows}
        if [row["label"] for row in rows] != list(range(len(rows))):
            raise ValueError("labels are not 0, 1, 2, ...")
    except (KeyError, TypeError, ValueError) as error:
        raise ToolError(f"{path}: the class list is damaged ({error}); {remedy}") from None
    return Classes(names, readable)


def save_stats(target: Path, stats: Stats) -> None:
    """Publishes ``stats.npz``, without pickles; the same statistics give the same bytes."""
    with publish(target) as temporary:
        write_stats(temporary, stats)


def write_stats(path: Path, stats: Stats) -> None:
    """Writes the bytes of ``stats.npz`` to a file that somebody else publishes."""
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
    if path.is_dir():
        raise ToolError(f"{path}: is a folder, not a statistics file; {remedy}")
    try:
        # Opened here, because NumPy does not close it when the archive is damaged.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
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
        raise ToolError(f"{path}: the statistics file is missing; {remedy}") from None
    except _DAMAGED_ARCHIVE as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ToolError(f"{path}: not a usable statistics file ({reason}); {remedy}") from None
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
"""The arrays of :class:`Stats` with their shapes; -1 is the side of the pictures."""


def pages_digest(pages: Iterable[str]) -> str:
    """The digests of a beton's pages, or of a set's betons -> the one that names the whole:
    SHA-256 of their bytes."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, pages))).hexdigest()


def _self_digest(value: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object without its member "self", in its shortest form."""
    rest = {name: part for name, part in value.items() if name != "self"}
    return hashlib.sha256(
        json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def save_manifest(beton: Path, manifest: Manifest) -> None:
    """Writes the manifest beside ``beton``, with a digest of itself; the last act of a build."""
    value = {field.name: getattr(manifest, field.name) for field in fields(manifest)}
    value["self"] = _self_digest(value)
    with publish(manifest_beside(beton)) as temporary:
        # No indent: for a million keys that takes seconds more.
        text = json.dumps(value, sort_keys=True, separators=(",\n", ": "))
        temporary.write_text(text + "\n", encoding="ascii")


def load_manifest(beton: Path) -> Manifest:
    """Reads the manifest beside ``beton`` and checks that the beton has its size.

    Raises ToolError when the beton or its manifest is missing, the manifest is not what was
    written, or the two do not belong together. The beton's contents are not looked at here:
    that reads the whole file.
    """
    remedy = "build it again with imagenet-prep build"
    if not beton.exists():
        raise UsageError(f"{beton}: no such file; {remedy}, or name the right one")
    if beton.is_dir():
        raise UsageError(f"{beton}: is a folder; name the .beton file in it")
    path = manifest_beside(beton)
    value = read_json(path, "the manifest that says the beton is complete", remedy)
    try:
        if value["format"] != MANIFEST_FORMAT:
            raise ValueError(f"format {value['format']}, this version reads {MANIFEST_FORMAT}")
        if value["self"] != _self_digest(value):
            raise ValueError("it is not what was written")
        del value["self"]
        for name in ("classes", "pages", "keys"):
            value[name] = tuple(value[name])
        manifest = Manifest(**value)
        if len(manifest.keys) != manifest.samples:
            raise ValueError(f"{len(manifest.keys)} keys for {manifest.samples} samples")
        if not 0 <= manifest.shard < manifest.shards:
            raise ValueError(f"shard {manifest.shard} of {manifest.shards}")
    except (KeyError, TypeError, ValueError) as error:
        raise ToolError(f"{path}: the manifest is damaged ({error}); {remedy}") from None
    size = beton.stat().st_size
    if size != manifest.bytes:
        raise ToolError(
            f"{beton}: has {size} bytes where its manifest says {manifest.bytes}, so it is "
            f"not the complete file; {remedy}"
        )
    return manifest
