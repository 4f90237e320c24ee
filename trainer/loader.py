"""A beton -> batches for training or evaluation: the same pixels every time, or a sentence.

    with train_loader(Path("train.beton"), load_stats(Path("train.stats.npz"))) as batches:
        for epoch in range(90):
            batches.set_epoch(epoch)
            for batch in batches:
                step(batch.images, batch.labels)

FFCV's engine runs our compiled kernels; what it lets pass is caught here: files are checked
before the first read, samples that do not decode are named, threads are watched.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imagenet_prep.artifacts import Manifest, Stats, ToolError, UsageError, load_manifest
from trainer import augment
from trainer.draws import Views, colour_basis
from trainer.engine import (
    MOST_THREADS,
    CropDecoder,
    DeviceAugment,
    Epoch,
    EpochOrder,
    ffcv,
    make_loader,
)

BATCHES_AHEAD = 3
_REBUILD = "build it again with imagenet-prep build"


@dataclass(frozen=True)
class Batch:
    """images float32 (B, 3, S, S), channels-last, 0-255 levels minus the mean image;
    labels int64 (B,), both on the loader's device; indices int64 (B,), the samples' places
    in the beton, on the CPU.

    The tensors are views into a ring of buffers. They are yours until you ask for the next
    batch; clone what you keep for longer.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


@dataclass(frozen=True, eq=False)
class BetonInfo:
    """What a beton's own tables say, checked: ``samples`` square pictures of ``side_px``.

    fields: their names in file order; extents int64 (samples, 3): offset and size in
    bytes, FFCV's mode (0 JPEG, 1 raw); labels int64 (samples,), none negative; stamp: the
    file's size, time and identity.
    """

    samples: int
    side_px: int
    label_max: int
    fields: tuple[str, ...]
    extents: NDArray[np.int64]
    labels: NDArray[np.int64]
    stamp: tuple[int, ...]


def inspect_beton(path: Path) -> BetonInfo:
    """Reads and checks a beton's header and tables, not its pictures.

    ToolError (one sentence) when the file is missing, is something else, is cut short,
    points outside itself, or has pictures that are not squares of one size. FFCV checks
    none of that: it would read foreign memory.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name the .beton file in it")
    try:
        with path.open("rb") as file:
            stamp = _stamp(path)
            metadata, names, table = _read_tables(file, stamp[0])
        return _checked(metadata, names, table, stamp)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; {_REBUILD}, or name the right one") from None
    except OSError as error:
        raise ToolError(f"{path}: cannot be read ({error.strerror}); {_REBUILD}") from None
    except ValueError as error:
        raise ToolError(f"{path}: not a usable beton ({error}); {_REBUILD}") from None


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _read(file: Any, dtype: np.dtype[Any], count: int, total: int, what: str) -> NDArray[Any]:
    """``count`` items of ``dtype`` from the file's position; ValueError if they are not there."""
    if count < 0 or count * dtype.itemsize > total - file.tell():
        raise ValueError(f"the file ends within its {what}")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype, count)


def _read_tables(file: Any, total: int) -> tuple[NDArray[Any], list[str], NDArray[Any]]:
    """-> (metadata of the samples, names of the fields, allocation table)."""
    header = _read(file, ffcv.HeaderType, 1, total, "header")[0]
    fields, samples, page = (
        int(header[name]) for name in ("num_fields", "num_samples", "page_size")
    )
    if header["version"] != ffcv.CURRENT_VERSION or not 0 < fields < 100 or page & (page - 1):
        raise ValueError("it does not begin as FFCV's files do")
    if samples < 1 or page < 1:
        raise ValueError("it has no samples")
    described = _read(file, ffcv.FieldDescType, fields, total, "list of fields")
    try:
        handlers = ffcv.get_handlers(described)
        names = [bytes(row["name"]).split(b"\0")[0].decode("ascii") for row in described]
        kinds = {name: type(handler) for name, handler in zip(names, handlers, strict=True)}
    except (KeyError, UnicodeDecodeError):
        raise ValueError("its fields are unknown to FFCV") from None
    if kinds.get("image") is not ffcv.RGBImageField or kinds.get("label") is not ffcv.IntField:
        raise ValueError("it lacks the fields image (RGB pictures) and label (whole numbers)")
    if None in handlers:
        raise ValueError("it has a field of a type of its own")
    metadata = _read(file, ffcv.get_metadata_type(handlers), samples, total, "table of samples")
    start = int(header["alloc_table_ptr"])
    length, rest = divmod(total - start, ffcv.ALLOC_TABLE_TYPE.itemsize)
    if start < file.tell() or length < samples or rest:
        raise ValueError("it was cut short: the table at its end is not whole")
    file.seek(start)
    return metadata, names, _read(file, ffcv.ALLOC_TABLE_TYPE, length, total, "last table")


def _checked(
    metadata: NDArray[Any], names: list[str], table: NDArray[Any], stamp: tuple[int, ...]
) -> BetonInfo:
    images = metadata[f"f{names.index('image')}"]
    labels = metadata[f"f{names.index('label')}"].astype(np.int64)
    side = int(images["height"][0])
    if side < 1 or (images["height"] != side).any() or (images["width"] != side).any():
        raise ValueError("its pictures are not squares of one size")
    if int(labels.min()) < 0:
        raise ValueError(f"sample {int(labels.argmin())} has a negative label")
    table = table[np.argsort(table["ptr"], kind="stable")]
    offsets = images["data_ptr"]
    place = np.minimum(np.searchsorted(table["ptr"], offsets), len(table) - 1)
    sizes, total = table["size"][place], np.uint64(stamp[0])
    # Compared so that no sum of two large numbers can wrap around.
    lost = (table["ptr"][place] != offsets) | (sizes > total) | (offsets > total - sizes)
    lost |= (images["mode"] == 1) & (sizes != 3 * side * side)
    lost |= (images["mode"] > 1) | (sizes < 1)
    if lost.any():
        raise ValueError(f"the place of sample {int(lost.argmax())} is not within the file")
    extents = np.stack([offsets, sizes, images["mode"].astype(np.uint64)], axis=1)
    return BetonInfo(
        samples=len(images),
        side_px=side,
        label_max=int(labels.max()),
        fields=tuple(names),
        extents=extents.astype(np.int64),
        labels=labels,
        stamp=stamp,
    )


def train_loader(
    beton: Path,
    stats: Stats,
    *,
    batch_size: int = 128,
    crop_size: int = 227,
    out_size: int | None = None,
    scale_min: float = 1.0,
    seed: int = 0,
    lighting: float = 0.1,
    mirror: bool = True,
    jobs: int | None = None,
    device: str = "cpu",
) -> BetonLoader:
    """Random windows of all samples in a seeded order, mirrored half the time, with the
    colour noise of the data set, the mean image subtracted.

    The window is ``crop_size`` square, or with ``scale_min`` < 1 a drawn share of the
    picture's area; it is resampled to ``out_size`` (None: ``crop_size``). ``jobs`` threads
    (None: one per core that this process may use) give the same pixels as one. Every
    sample comes once per epoch: the last batch is the smaller one, never dropped.
    Raises ToolError or UsageError with one sentence; see ``BetonLoader``.
    """
    out = crop_size if out_size is None else out_size
    views = Views(crop_size, out, True, scale_min, mirror, lighting, seed)
    return BetonLoader(beton, stats, views, batch_size=batch_size, jobs=jobs, device=device)


def eval_loader(
    beton: Path,
    stats: Stats,
    *,
    batch_size: int = 128,
    crop_size: int = 227,
    out_size: int | None = None,
    jobs: int | None = None,
    device: str = "cpu",
) -> BetonLoader:
    """The centre crops of all samples in file order, the mean image subtracted, resampled
    to ``out_size`` (None: ``crop_size``); the last batch is the smaller one, never dropped."""
    out = crop_size if out_size is None else out_size
    views = Views(crop_size, out, False)
    return BetonLoader(beton, stats, views, batch_size=batch_size, jobs=jobs, device=device)


class BetonLoader:
    """Iterates over the batches of an epoch; made by ``train_loader`` or ``eval_loader``.

    An epoch's order and pixels depend on (seed, epoch) alone. Iterating takes the epoch
    that ``set_epoch`` named, or else the one after the last. One epoch is under way at a
    time: beginning another ends the one before. ToolError when a sample does not decode
    (with the file, the sample and its source key) or the file changes between epochs.
    """

    samples: int
    """Pictures in an epoch."""
    wait_s: float
    """Seconds that the consumer has waited for batches in the current epoch."""

    def __init__(
        self,
        beton: Path,
        stats: Stats,
        views: Views,
        *,
        batch_size: int,
        jobs: int | None,
        device: str,
    ) -> None:
        place = _device(device)
        threads = _threads(jobs)
        _check_numbers(views, batch_size)
        self.beton, self.device, self.batch_size = beton, place, batch_size
        self.info = inspect_beton(beton)
        self.manifest = load_manifest(beton)
        _check_fit(beton, self.info, self.manifest, stats, views)
        self.samples = self.info.samples
        self.wait_s = 0.0
        self._next_epoch = 0
        self._live: Epoch | None = None
        pipelines, self._decoder = _pipelines(
            self.info, stats, views, batch_size=batch_size, jobs=threads, device=place
        )
        order = EpochOrder(views.seed, views.random)
        self._loader = make_loader(
            str(beton), batch_size, threads, order, batches_ahead=BATCHES_AHEAD,
            pipelines={**dict.fromkeys(self.info.fields), **pipelines},
        )  # fmt: skip
        # Compiled now, in this thread, where Ctrl-C works.
        Epoch(self._loader, order.sample_order(0)[:1], self._check).compile()

    def __len__(self) -> int:
        """Batches in an epoch, the smaller last one included."""
        return math.ceil(self.samples / self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Names the epoch (0, 1, ...) that the next iteration goes through."""
        if epoch < 0:
            raise UsageError(f"epoch {epoch}: epochs count from 0")
        self._next_epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the epoch; leaving early ends FFCV's thread."""
        self.close()
        if not self.beton.exists() or _stamp(self.beton) != self.info.stamp:
            raise ToolError(f"{self.beton}: was replaced or changed while in use; start again")
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        self._decoder.epoch = epoch
        self.wait_s = 0.0
        live = Epoch(self._loader, self._loader.traversal_order.sample_order(epoch), self._check)
        self._live = live
        outputs = [name for name in self.info.fields if name in ("image", "label")]
        live.begin()
        try:
            while True:
                asked = time.perf_counter()
                taken = live.take()
                self.wait_s += time.perf_counter() - asked
                if taken is None:
                    return
                indices, results = taken
                found = dict(zip(outputs, results, strict=True))
                places = torch.from_numpy(indices.astype(np.int64))
                yield Batch(found["image"], found["label"], places)
        finally:
            live.stop()
            if self._live is live:
                self._live = None

    def _check(self, indices: NDArray[Any]) -> None:
        fault = self._decoder.fault(len(indices))
        if fault is None:
            return
        index = int(indices[fault[0]])
        raise ToolError(
            f"{self.beton}: sample {index}, {self.manifest.keys[index]}, does not decode "
            f"({fault[1]}); {_REBUILD}"
        )

    def close(self) -> None:
        """Ends the epoch that is under way, if there is one, and its thread."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def __enter__(self) -> BetonLoader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _pipelines(
    info: BetonInfo, stats: Stats, views: Views, *, batch_size: int, jobs: int, device: torch.device
) -> tuple[dict[str, list[Any]], CropDecoder]:
    """FFCV's pipelines for one device, and the decoder, which holds the epoch.

    On the CPU everything happens in the decoder's one pass. To another device travel uint8
    crops, and the rest happens there; resampled windows are made on the CPU always.
    """
    mean = stats.mean
    basis = colour_basis(stats.eigenvectors, stats.eigenstdev, views.lighting)
    whole = _on_host(device) or views.resamples
    decoder = CropDecoder(
        views, info.extents, info.side_px, batch_size=batch_size, jobs=jobs,
        mean=mean if whole else None, basis=basis if whole else None,
    )  # fmt: skip
    image: list[Any]
    if _on_host(device):
        image = [decoder, ffcv.ToTensor(), ffcv.ToTorchImage(channels_last=True)]
        label = [ffcv.IntDecoder(), ffcv.ToTensor(), ffcv.Squeeze(1)]
    elif whole:
        image = [decoder, ffcv.ToTensor(), ffcv.ToDevice(device), ffcv.ToTorchImage()]
        label = [ffcv.IntDecoder(), ffcv.ToTensor(), ffcv.ToDevice(device), ffcv.Squeeze(1)]
    else:
        rest = DeviceAugment(decoder, augment.normalise, mean, basis, device)
        image = [decoder, ffcv.ToTensor(), ffcv.ToDevice(device), rest]
        label = [ffcv.IntDecoder(), ffcv.ToTensor(), ffcv.ToDevice(device), ffcv.Squeeze(1)]
    return {"image": image, "label": label}, decoder


def _on_host(device: torch.device) -> bool:
    return device.type == "cpu"


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {name!r}: unknown; it is cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r}: batches can be made for cpu and cuda only")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {name!r}: this machine has no usable CUDA device; use cpu")
    return device


def _threads(jobs: int | None) -> int:
    """The threads to use; numba raises above the cores that this process may use."""
    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs is {jobs}; it must be at least 1")
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    most = min(cores, MOST_THREADS)
    return most if jobs is None else min(jobs, most)


def _check_numbers(views: Views, batch_size: int) -> None:
    sizes = {"batch_size": batch_size, "crop_size": views.crop_px, "out_size": views.out_px}
    for name, value in sizes.items():
        if value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")
    if not 0 < views.scale_min <= 1:
        raise UsageError(f"scale_min is {views.scale_min}; it is a share: above 0, at most 1")
    if not 0 <= views.lighting < math.inf:
        raise UsageError(f"lighting is {views.lighting}; it must be at least 0")


def _check_fit(
    beton: Path, info: BetonInfo, manifest: Manifest, stats: Stats, views: Views
) -> None:
    """The beton, its manifest, the statistics and the crop size belong together, or a sentence."""
    if (manifest.samples, manifest.size_px) != (info.samples, info.side_px):
        raise ToolError(
            f"{beton}: has {info.samples} pictures of {info.side_px} px where its manifest says "
            f"{manifest.samples} of {manifest.size_px} px; {_REBUILD}"
        )
    if info.label_max >= len(manifest.classes):
        raise ToolError(
            f"{beton}: has label {info.label_max} where its manifest names "
            f"{len(manifest.classes)} classes; {_REBUILD}"
        )
    if stats.mean.shape[:2] != (info.side_px, info.side_px):
        raise ToolError(
            f"{beton}: has pictures of {info.side_px} px where the statistics are of pictures "
            f"of {stats.size_px} px; use the statistics that were made from its crops"
        )
    if views.crop_px > info.side_px:
        raise UsageError(
            f"crop_size is {views.crop_px} where the pictures of {beton} have {info.side_px} px; "
            "choose a smaller one"
        )
