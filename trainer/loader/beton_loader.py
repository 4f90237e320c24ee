"""The loader itself: files checked before the first read, one epoch at a time, exact resume."""

from __future__ import annotations

import contextlib
import hashlib
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
from imagenet_prep.dataset.beton_tables import REBUILD, inspect_betons, stamp_of, verify_pages
from imagenet_prep.dataset.shards import Betons, find_betons, require_files, stats_of
from imagenet_prep.dataset.statistics import Stats
from trainer.loader.backends import make_backend
from trainer.loader.checks import (
    Reading,
    check_decoding,
    check_fit,
    check_reading,
    check_views,
    usable_device,
)
from trainer.loader.iterator import DamagedError, Filler
from trainer.loader.order import rank_batches, sample_order, step_ends
from trainer.loader.read_ahead import ReadAhead
from trainer.views.views import Views


@dataclass(frozen=True, eq=False)
class Batch:
    """``images, labels = batch``. images (B, 3, S, S) of the loader's dtype and layout, or
    (B, V, 3, S, S) with all V views of an image in its row, and labels int64 (B,), both on the
    loader's device; indices int64 (B,), the samples' numbers in the data set, on the CPU.

    The images are views into a ring of buffers: valid until you ask for the next batch. Clone
    what you keep for longer, or use ``copy=True``.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter((self.images, self.labels))


@dataclass(frozen=True)
class Dataset:
    """What scripts ask a loader's data set: its ``len`` and the names of its ``classes``."""

    samples: int
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return self.samples


class BetonLoader:
    """Iterates over the batches of an epoch; made by ``train_loader`` or ``eval_loader``.

    Iterating takes the epoch that ``set_epoch`` named, or else the one after the last. One
    epoch is under way at a time: beginning another ends the one before. ToolError when a
    sample does not decode (with its file, its number there and its source key), when the file
    ends before it, or when that file is changed or replaced while it is read.
    """

    samples: int
    """Images in an epoch, of all ranks."""
    wait_s: float
    """Seconds that the consumer has waited for batches in the current epoch."""
    decode: str
    """Where JPEGs are decoded: "cpu" or "gpu"."""

    def __init__(
        self, beton: Path | str | Betons, stats: Stats | None, views: Views, reading: Reading
    ) -> None:
        if views.dtype == "uint8":  # pixels as they are
            views = replace(views, mean="none", lighting_mode="off", scaled=False, std=None)
        self.device = usable_device(reading.device)
        check_views(views)
        self.betons = betons = beton if isinstance(beton, Betons) else find_betons(beton)
        self.info = inspect_betons(betons.paths)
        check_reading(reading, self.info.samples)
        check_decoding(reading, self.device)
        self.views, self.reading, self.manifest = views, reading, betons.manifest
        stats = stats_of(betons) if stats is None else stats
        check_fit(betons, self.info, stats, views)
        if reading.verify:
            for path, manifest in zip(betons.paths, betons.manifests, strict=True):
                verify_pages(path, manifest)
        require_files(len(betons.paths), betons.name)
        chosen = reading.indices
        self.samples = self.info.samples if chosen is None else len(chosen)
        self.dataset = Dataset(self.samples, self.manifest.classes)
        self.wait_s = 0.0
        self._epoch, self._position, self._begun = 0, 0, False
        self._live: Filler | None = None
        self._stamps = list(self.info.stamps)
        self._ending = contextlib.ExitStack()
        # Also raises when there are too few samples for the ranks.
        self._ends = step_ends(
            self.samples, reading.batch_size, reading.ranks, reading.drop_last
        )  # fmt: skip
        self._prepare(stats)

    def _prepare(self, stats: Stats) -> None:
        """The back end for ``views``. Compiled now, in this thread, where Ctrl-C works."""
        # No batch is larger than a rank's share of the set.
        largest = min(self.reading.batch_size, -(-self.samples // self.reading.ranks))
        self._backend, self.decode = make_backend(
            self.betons, self.info, stats, self.views, self.reading, self.device, largest
        )

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch, the smaller last one included."""
        return len(self._ends)

    def __getstate__(self) -> Any:
        raise UsageError(
            "loader.copied",
            f"{self.betons}: a loader has threads and open files and cannot be copied or "
            "pickled; make one in each process with the same arguments",
        )

    @property
    def lighting(self) -> float:
        """How strong the colour noise is; may be set between epochs."""
        return self._backend.draws.lighting

    @lighting.setter
    def lighting(self, value: float) -> None:
        check_views(replace(self.views, lighting=value))
        self._backend.draws.lighting = value

    @property
    def out_size(self) -> int:
        """Side of the images in pixels; may be set between epochs. Windows stay the same."""
        return self.views.out_px

    @out_size.setter
    def out_size(self, value: int) -> None:
        if value == self.views.out_px:
            return
        draws = self._backend.draws
        views = replace(draws.views, out_px=value)  # with the lighting of now
        check_views(views)
        self.close()
        self.views = views
        del self._backend  # its memory is for the new one
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._prepare(draws.stats)

    def set_epoch(self, epoch: int) -> None:
        """Names the epoch (0, 1, ...) that the next iteration goes through, from its start,
        or from where ``load_state_dict`` has put it if that was in this epoch."""
        if epoch < 0:
            raise UsageError("loader.epoch", f"epoch {epoch}: epochs count from 0")
        if self._begun or epoch != self._epoch:
            self._epoch, self._position, self._begun = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch is: the batches that were handed out are behind it.

        Plain values. ``position`` counts samples of all ranks, so that the epoch may go on
        with other batches, ranks or jobs and the same pixels.
        """
        chosen = self.reading.indices
        subset = {}
        if chosen is not None:
            subset["indices"] = hashlib.sha256(np.sort(chosen).tobytes()).hexdigest()
        return subset | {
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
        for name in ("beton", "samples", "seed", "order", "pages_at_once", "indices"):
            if state.get(name) != ours.get(name):
                raise ToolError(
                    "loader.other_position",
                    f"{self.betons}: the stored position is of another loader ({name} "
                    f"{state.get(name)} there, {ours.get(name)} here); use what it was made with",
                )
        epoch, position = int(state["epoch"]), int(state["position"])
        if epoch < 0 or not 0 <= position <= self.samples:
            raise ToolError(
                "loader.bad_position",
                f"{self.betons}: the stored position {epoch}/{position} does not exist",
            )
        self.close()
        if position >= self._ends[-1]:  # taken after the last batch
            epoch, position = epoch + 1, 0
        self._epoch, self._position, self._begun = epoch, position, False

    def _order(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """(Sample indices, their pages) of what is left of the epoch."""
        reading, pages = self.reading, self.info.pages()
        order = sample_order(
            reading.order, self.views.seed, self._epoch, pages, reading.pages_at_once
        )
        if reading.indices is not None:
            order = order[np.isin(order, reading.indices)]
        order = order[self._position :]
        return order, pages[order]

    def _announced(
        self, batches: list[NDArray[np.uint64]], ends: list[int], ahead: ReadAhead
    ) -> Iterator[NDArray[np.uint64]]:
        """The batches, for the loader's thread; each is announced to the system before."""
        for batch, end in zip(batches, ends, strict=False):
            if self.reading.order != "shuffle":
                ahead.reach(end)
            yield batch

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the epoch, or what is left of it; leaving early ends the thread."""
        self.close()
        if self._begun:
            self.set_epoch(self._epoch + 1)
        self._begun = True
        reading, done, backend = self.reading, self._position, self._backend
        order, pages = self._order()
        how = (reading.ranks, reading.drop_last)
        ends = step_ends(len(order), reading.batch_size, *how)
        batches = rank_batches(order, reading.batch_size, reading.rank, *how)
        backend.draws.epoch = self._epoch
        self.wait_s = 0.0
        with contextlib.ExitStack() as self._ending:
            self._open()
            ahead = ReadAhead(
                backend.files.tolist(), self.info.first_pages, pages, self.info.page_size_bytes,
                reading.pages_at_once,
            )  # fmt: skip
            backend.begin()
            announced = self._announced(batches, ends, ahead)
            live = self._live = Filler(backend, announced, self._check, self._named)
            self._ending.callback(self._end, live)
            live.start()
            for end in ends:
                asked = time.perf_counter()
                taken = live.take()
                if taken is None:
                    return
                slot, indices = taken
                images, labels = backend.take(slot)
                self.wait_s += time.perf_counter() - asked
                if reading.copy:
                    images, labels = images.clone(), labels.clone()
                self._position = done + end
                yield Batch(images, labels, torch.from_numpy(indices.astype(np.int64)))
                backend.release(slot)
            live.take()  # raises what was found in the last batches

    def _end(self, live: Filler) -> None:
        live.stop()
        self._live = None

    def _open(self) -> None:
        """Opens the files until the epoch ends: what the kernels read is what was checked."""
        for number, path in enumerate(self.betons.paths):
            try:
                file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except FileNotFoundError:
                raise ToolError("beton.missing", f"{path}: no longer exists; {REBUILD}") from None
            except OSError as error:
                raise ToolError(
                    "beton.unreadable", f"{path}: cannot be read ({error.strerror})"
                ) from None
            self._ending.callback(os.close, file)
            self._check_contents(number, stamp_of(file))
            self._backend.files[number] = file

    def _check_contents(self, number: int, stamp: tuple[int, ...]) -> None:
        """ToolError if file ``number`` was changed. A new time alone is no change: the contents
        are compared with the manifest once, where there is one."""
        if stamp == self._stamps[number]:
            return
        path, manifests = self.betons.paths[number], self.betons.manifests
        if stamp[0] != self._stamps[number][0] or not manifests[number].pages:
            raise _changed(path)
        try:
            verify_pages(path, manifests[number])
        except (ToolError, OSError):
            raise _changed(path) from None
        self._stamps[number] = stamp

    def _check(self, indices: NDArray[np.uint64]) -> None:
        """Called after each batch, in the loader's thread: raises if a file was changed."""
        for number in set(self.info.extents[indices, 3].tolist()):
            path = self.betons.paths[number]
            try:
                self._check_contents(number, stamp_of(path))
            except OSError:
                raise _changed(path) from None

    def _named(self, error: BaseException | None, indices: NDArray[np.uint64]) -> BaseException:
        """What ended the loader's thread while it made a batch -> what the consumer gets."""
        if isinstance(error, DamagedError):
            try:
                self._check(np.array([error.sample], np.uint64))
            except ToolError as changed:  # which is why the sample does not decode
                return changed
            path, sample = self.betons.sample(error.sample)
            return ToolError(
                "loader.sample_damaged",
                f"{path}: {sample}, does not decode ({error.reason}); {REBUILD}",
            )
        if isinstance(error, ToolError):
            return error
        name, where = self.betons.name, ""
        if len(indices):
            path, sample = self.betons.sample(int(indices[0]))
            name = str(path)
            where = f" while it made the batch of {len(indices)} that begins with {sample},"
        reason = "without an error" if error is None else f"by {type(error).__name__}: {error}"
        ended = RuntimeError(f"{name}: the loader's thread was ended{where} {reason}")
        ended.__cause__ = error
        return ended

    def close(self) -> None:
        """Ends the epoch that is under way, if there is one, with its thread and its files."""
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


def _changed(path: Path) -> ToolError:
    return ToolError("beton.changed", f"{path}: was replaced or changed while in use; restore it")
