"""A beton or its shards -> batches for training or evaluation: the same pixels every time, or
a sentence.

For any training script; nothing else of the trainer is needed:

    import torch, torchvision
    from trainer.loader import train_loader

    model = torchvision.models.resnet50()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with train_loader("train.beton", batch_size=256, view="resized", crop_size=224,
                      mean="channel", scaled=True, lighting=0.0) as batches:
        for epoch in range(90):
            batches.set_epoch(epoch)
            for batch in batches:
                loss = torch.nn.functional.cross_entropy(model(batch.images), batch.labels)
                optimizer.zero_grad(), loss.backward(), optimizer.step()

FFCV's engine runs our compiled kernels; what it lets pass is caught here: files are checked
before the first read, samples that do not decode are named, threads are watched.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.dataset.shards import Betons, find_betons, require_files, stats_of
from imagenet_prep.dataset.statistics import Stats
from trainer.loader.iterator import Epoch, make_loader
from trainer.loader.order import ORDERS, rank_batches, sample_order, step_ends
from trainer.loader.pipelines import (
    check_fit,
    check_views,
    make_pipelines,
    usable_device,
    usable_threads,
)
from trainer.loader.read_ahead import ReadAhead
from trainer.loader.tables import REBUILD, inspect_betons, stamp_of, verify_pages
from trainer.loader.views import Views


@dataclass(frozen=True)
class Batch:
    """images (B, 3, S, S) of the loader's dtype, or (B, V, 3, S, S) with all V views of a
    picture in its row, and labels int64 (B,), both on the loader's device; indices int64
    (B,), the samples' places in the data set, on the CPU.

    The tensors are views into a ring of buffers. They are yours until you ask for the next
    batch; clone what you keep for longer.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


@dataclass(frozen=True)
class Reading:
    """How a beton is read, whatever is made of its pictures; see ``train_loader``."""

    batch_size: int = 128
    order: str = "shuffle"
    pages_at_once: int = 16
    rank: int = 0
    ranks: int = 1
    jobs: int | None = None
    device: str = "cpu"
    channels_last: bool = True
    batches_ahead: int = 3
    verify: bool = False


def train_loader(
    beton: Path | str | Betons,
    stats: Stats | None = None,
    *,
    batch_size: int = 128,
    view: str = "random",
    crop_size: int = 227,
    out_size: int | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    mirror: bool = True,
    mean: str = "image",
    lighting: float = 0.1,
    lighting_mode: str = "deviation",
    scaled: bool = False,
    dtype: str = "float32",
    channels_last: bool = True,
    order: str = "shuffle",
    pages_at_once: int = 16,
    seed: int = 0,
    rank: int = 0,
    ranks: int = 1,
    jobs: int | None = None,
    device: str = "cpu",
    batches_ahead: int = 3,
    verify: bool = False,
) -> BetonLoader:
    """Drawn windows of all samples in a seeded order; pixels are a function of (seed, epoch,
    sample) alone, whatever the number of ``jobs`` (threads; None: one per core), of ranks,
    and wherever the epoch was taken up.

    ``beton`` is a file or, for a set of shards, a pattern (``train-*.beton``): the same pixels
    come out for any number of shards. ``stats`` None takes those beside it. ``view`` "random"
    is a square of ``crop_size`` anywhere; "resized" a window with a share of the area within
    ``scale`` and a width to height within ``ratio``; both are resampled to ``out_size`` (None:
    ``crop_size``) where they are not that size, and ``mirror`` turns half of them.
    ``mean``, ``lighting``, ``lighting_mode``, ``scaled`` and ``dtype`` say what happens to
    the pixels (see ``draws.Views``); "uint8" leaves them as they are. ``channels_last``
    is the memory layout on the CPU.

    ``order`` is "shuffle", "pages" (shuffled ``pages_at_once`` pages at a time, for sets beyond
    memory; it depends on the pages, so on the number of shards) or "sequential". ``rank`` of
    ``ranks`` processes takes its part of the one order (see ``order.rank_batches``): every
    sample comes once per epoch, the last batch is the smaller one, never dropped.
    ``batches_ahead`` batches wait ready, besides the consumer's and the one that is being
    made. ``verify`` reads all files first and compares their digests: damage that still
    decodes to some picture shows in no other way.
    Raises ToolError or UsageError with one sentence; see ``BetonLoader``.
    """
    views = Views(
        crop_size, crop_size if out_size is None else out_size, view, scale, ratio, mirror, mean,
        lighting, lighting_mode, scaled, dtype, seed,
    )  # fmt: skip
    if not views.drawn:
        raise UsageError(f"view is {view!r}; training draws its views: random or resized")
    reading = Reading(
        batch_size, order, pages_at_once, rank, ranks, jobs, device, channels_last,
        batches_ahead, verify,
    )  # fmt: skip
    return BetonLoader(beton, stats, views, reading)


def eval_loader(
    beton: Path | str | Betons,
    stats: Stats | None = None,
    *,
    batch_size: int = 128,
    view: str = "centre",
    crop_size: int = 227,
    out_size: int | None = None,
    mean: str = "image",
    scaled: bool = False,
    dtype: str = "float32",
    channels_last: bool = True,
    rank: int = 0,
    ranks: int = 1,
    jobs: int | None = None,
    device: str = "cpu",
    batches_ahead: int = 3,
    verify: bool = False,
) -> BetonLoader:
    """Fixed windows of all samples in file order: "centre", "five" (the corners and the
    centre) or "ten" (these and their mirror images), the same in every epoch.

    Options are those of ``train_loader``. The last batch is the smaller one, never dropped.
    """
    views = Views(
        crop_size, crop_size if out_size is None else out_size, view, mean=mean, scaled=scaled,
        lighting_mode="off", dtype=dtype,
    )  # fmt: skip
    if views.drawn:
        raise UsageError(f"view is {view!r}; evaluation has fixed ones: centre, five or ten")
    reading = Reading(
        batch_size, "sequential", 1, rank, ranks, jobs, device, channels_last, batches_ahead,
        verify,
    )  # fmt: skip
    return BetonLoader(beton, stats, views, reading)


class BetonLoader:
    """Iterates over the batches of an epoch; made by ``train_loader`` or ``eval_loader``.

    Iterating takes the epoch that ``set_epoch`` named, or else the one after the last. One
    epoch is under way at a time: beginning another ends the one before. ToolError when a
    sample does not decode (with its file, its place there and its source key), when the file
    ends before it, or when that file is changed or replaced while it is read.
    """

    samples: int
    """Pictures in an epoch, of all ranks."""
    wait_s: float
    """Seconds that the consumer has waited for batches in the current epoch."""

    def __init__(
        self, beton: Path | str | Betons, stats: Stats | None, views: Views, reading: Reading
    ) -> None:
        if views.dtype == "uint8":  # pixels as they are
            views = replace(views, mean="none", lighting_mode="off", scaled=False)
        place = usable_device(reading.device)
        threads = usable_threads(reading.jobs)
        check_views(views)
        _check_reading(reading)
        self.device, self.views, self.reading = place, views, reading
        self.betons = betons = beton if isinstance(beton, Betons) else find_betons(beton)
        self.info = inspect_betons(betons.paths)
        self.manifest = betons.manifest
        stats = stats_of(betons) if stats is None else stats
        check_fit(betons, self.info, stats, views)
        if reading.verify:
            for path, manifest in zip(betons.paths, betons.manifests, strict=True):
                verify_pages(path, manifest)
        require_files(len(betons.paths), betons.name)
        self.samples = self.info.samples
        self.wait_s = 0.0
        self._epoch, self._position, self._begun = 0, 0, False
        self._live: Epoch | None = None
        self._ending = contextlib.ExitStack()
        # No batch is larger than a rank's share of the set.
        largest = min(reading.batch_size, -(-self.samples // reading.ranks))
        pipelines, self._decoder, self._channels_in_front = make_pipelines(
            self.info, stats, views, batch_size=largest, jobs=threads, device=place,
            planes=not reading.channels_last,
        )  # fmt: skip
        self._loader = make_loader(
            betons.name, self.info, largest, threads,
            batches_ahead=reading.batches_ahead,
            pipelines={**dict.fromkeys(self.info.fields), **pipelines},
        )  # fmt: skip
        # Also says at once when there are too few samples for the ranks.
        self._ends = step_ends(self.samples, reading.batch_size, reading.ranks)
        # Compiled now, in this thread, where Ctrl-C works.
        Epoch(self._loader, [], self._check, self._named).compile()

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch, the smaller last one included."""
        return len(self._ends)

    @property
    def lighting(self) -> float:
        """How strong the colour noise is; may be set between epochs."""
        return self._decoder.lighting

    @lighting.setter
    def lighting(self, value: float) -> None:
        check_views(replace(self.views, lighting=value))
        self._decoder.lighting = value

    def set_epoch(self, epoch: int) -> None:
        """Names the epoch (0, 1, ...) that the next iteration goes through, from its start,
        or from where ``load_state_dict`` has put it if that was in this epoch."""
        if epoch < 0:
            raise UsageError(f"epoch {epoch}: epochs count from 0")
        if self._begun or epoch != self._epoch:
            self._epoch, self._position, self._begun = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch is: the batches that were handed out are behind it.

        Plain values. ``position`` counts samples of all ranks, so that the epoch may go on
        with other batches, ranks or jobs and the same pixels.
        """
        return {
            "epoch": self._epoch,
            "position": self._position,
            "seed": self.views.seed,
            "order": self.reading.order,
            "pages_at_once": self.reading.pages_at_once,
            "samples": self.samples,
            "beton": self.manifest.digest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on where ``state_dict`` was taken.

        ToolError when that was in another beton or another order.
        """
        ours = self.state_dict()
        for name in ("beton", "samples", "seed", "order", "pages_at_once"):
            if name not in state or state[name] != ours[name]:
                raise ToolError(
                    f"{self.betons}: the stored position is of another loader ({name} "
                    f"{state.get(name)} there, {ours[name]} here); use what it was made with"
                )
        epoch, position = int(state["epoch"]), int(state["position"])
        if epoch < 0 or not 0 <= position <= self.samples:
            raise ToolError(f"{self.betons}: the stored position {epoch}/{position} cannot be")
        self.close()
        if position == self.samples:  # taken after the last batch
            epoch, position = epoch + 1, 0
        self._epoch, self._position, self._begun = epoch, position, False

    def _order(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """(Sample indices, their pages) of what is left of the epoch."""
        reading, pages = self.reading, self.info.pages()
        order = sample_order(
            reading.order, self.views.seed, self._epoch, pages, reading.pages_at_once
        )[self._position :]
        return order, pages[order]

    def _announced(
        self, batches: list[NDArray[np.uint64]], ends: list[int], ahead: ReadAhead
    ) -> Iterator[NDArray[np.uint64]]:
        """The batches, for the loader's thread; the system hears of each before it is made."""
        for batch, end in zip(batches, ends, strict=True):
            if self.reading.order != "shuffle":
                ahead.reach(end)
            yield batch

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the epoch, or what is left of it; leaving early ends FFCV's thread."""
        self.close()
        if self._begun:
            self.set_epoch(self._epoch + 1)
        self._begun = True
        reading, done = self.reading, self._position
        order, pages = self._order()
        ends = step_ends(len(order), reading.batch_size, reading.ranks)
        batches = rank_batches(order, reading.batch_size, reading.rank, reading.ranks)
        self._decoder.epoch = self._epoch
        self.wait_s = 0.0
        outputs = [name for name in self.info.fields if name in ("image", "label")]
        with contextlib.ExitStack() as self._ending:
            self._open()
            ahead = ReadAhead(
                self._decoder.files.tolist(), self.info.first_pages, pages,
                self.info.page_size_bytes, reading.pages_at_once,
            )  # fmt: skip
            announced = self._announced(batches, ends, ahead)
            live = self._live = Epoch(self._loader, announced, self._check, self._named)
            self._ending.callback(self._end, live)
            live.begin()
            for end in ends:
                asked = time.perf_counter()
                taken = live.take()
                self.wait_s += time.perf_counter() - asked
                if taken is None:
                    return
                indices, results = taken
                found = dict(zip(outputs, results, strict=True))
                places = torch.from_numpy(indices.astype(np.int64))
                self._position = done + end
                yield Batch(self._images(found["image"]), found["label"], places)

    def _end(self, live: Epoch) -> None:
        live.stop()
        self._live = None

    def _images(self, made: torch.Tensor) -> torch.Tensor:
        """What the pipeline made -> (B, [V,] 3, S, S) of the dtype asked for, without a copy."""
        if made.dtype == torch.uint16:  # as NumPy holds the halves
            made = made.view(getattr(torch, self.views.dtype))
        return made if self._channels_in_front else made.movedim(-1, -3)

    def _open(self) -> None:
        """Opens the files until the epoch ends: what the kernels read is what was checked."""
        for number, path in enumerate(self.betons.paths):
            try:
                file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except FileNotFoundError:
                raise ToolError(f"{path}: has gone; {REBUILD}") from None
            except OSError as error:
                raise ToolError(f"{path}: cannot be read ({error.strerror})") from None
            self._ending.callback(os.close, file)
            if stamp_of(file) != self.info.stamps[number]:
                raise _changed(path)
            self._decoder.files[number] = file

    def _check(self, indices: NDArray[Any]) -> None:
        """Called after each batch, in the loader's thread: raises if it is not to be used."""
        fault = self._decoder.fault(len(indices))
        for number in set(self.info.extents[indices, 3].tolist()):
            path = self.betons.paths[number]
            try:
                changed = stamp_of(path) != self.info.stamps[number]
            except OSError:
                changed = True
            if changed:
                raise _changed(path)
        if fault is None:
            return
        path, sample = self.betons.sample(int(indices[fault[0]]))
        raise ToolError(f"{path}: {sample}, does not decode ({fault[1]}); {REBUILD}")

    def _named(self, error: BaseException | None, indices: NDArray[Any]) -> BaseException:
        """What ended the loader's thread while it made a batch -> what the consumer gets."""
        if isinstance(error, ToolError):
            return error
        name, where = self.betons.name, ""
        if len(indices):
            path, sample = self.betons.sample(int(indices[0]))
            name = str(path)
            where = f" while it made the batch of {len(indices)} that begins with {sample},"
        reason = "without a word" if error is None else f"by {type(error).__name__}: {error}"
        ended = RuntimeError(f"{name}: the loader's thread was ended{where} {reason}")
        ended.__cause__ = error
        return ended

    def close(self) -> None:
        """Ends the epoch that is under way, if there is one, with its thread and its file."""
        self._ending.close()

    def __enter__(self) -> BetonLoader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _check_reading(reading: Reading) -> None:
    """UsageError naming the first option that cannot be."""
    for name in ("batch_size", "pages_at_once", "ranks", "batches_ahead"):
        value = getattr(reading, name)
        if value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")
    if not 0 <= reading.rank < reading.ranks:
        raise UsageError(f"rank is {reading.rank}; it counts from 0 to {reading.ranks - 1}")
    if reading.order not in ORDERS:
        raise UsageError(f"order is {reading.order!r}; it is one of {', '.join(ORDERS)}")


def _changed(path: Path) -> ToolError:
    return ToolError(f"{path}: was replaced or changed while in use; start again")
