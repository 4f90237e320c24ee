"""What limits a run: the disk, the loader, the step, measured alone and together.

A stage's figure is pictures a second over a few seconds, after a warm-up; the step is the
one of ``loop``, with the recipe's own batch, precision and optimiser.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from imagenet_prep.core.errors import Progress
from trainer.config import run_config as configs
from trainer.data import Data, find_data
from trainer.device import choose_precision
from trainer.distributed.world import World
from trainer.loader.loader import Batch, BetonLoader
from trainer.training.epoch import training_batches
from trainer.training.state import Session
from trainer.training.step import Sums, train_epoch

WARM_UP_BATCHES = 2
_ENOUGH_WAIT = 0.05  # the share of waiting below which a run is as fast as its step
_DISTURBED = 0.6  # a fed step below this share of its own speed, without waiting, was disturbed
_SAMPLES_READ = 2000


@dataclass(frozen=True)
class Stage:
    """A measured stage: pictures a second, and what it was measured on."""

    name: str
    images_per_second: float
    note: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Stages in order (the last one is the run as it is), what else was tried, and the verdict.

    ``limit`` is ``disk``, ``loader`` or ``step``; ``gain`` how many times as fast the run
    would be if that stage cost nothing; ``tried`` are other settings, measured.
    """

    stages: tuple[Stage, ...]
    tried: tuple[Stage, ...]
    wait_share: float
    limit: str
    gain: float
    advice: tuple[str, ...]

    @property
    def together(self) -> float:
        """Pictures a second of loader and step at once."""
        return self.stages[-1].images_per_second


def examine(
    config: configs.RunConfig, beton: Path, *, seconds: float, progress: Progress
) -> Diagnosis:
    """Measures each stage for about ``seconds``; trains a network that is thrown away."""
    data = find_data(beton)
    session = Session(config, data, World())
    measured: list[Stage] = []

    def done(stage: Stage) -> Stage:
        measured.append(stage)
        progress("stages", min(len(measured), 3), 3)
        return stage

    with training_batches(session) as batches:
        disk = done(_disk(batches, seconds))
        loader = done(Stage("loader", _loader_rate(batches, seconds), _what_is_read(data)))
        fixed = _fixed_batch(batches)
        step = done(Stage("step", _step_rate(session, fixed, seconds), _what_steps(session)))
        rate, wait = _together(session, batches, seconds)
    together = Stage("together", rate, f"{100 * wait:.0f} % of the time waiting for data")
    tried = tuple(_alternatives(session, fixed, step, seconds / 2))
    formats = data.manifest.formats
    return diagnose((disk, loader, step, together), tried, wait, config, formats, usable_cpus())


def usable_cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def diagnose(
    stages: tuple[Stage, Stage, Stage, Stage],
    tried: tuple[Stage, ...],
    wait_share: float,
    config: configs.RunConfig,
    formats: Mapping[str, int],
    cpus: int,
) -> Diagnosis:
    """Disk, loader, step and both together, measured -> what limits, by how much, what helps."""
    disk, loader, step, together = stages
    limit = "step" if wait_share < _ENOUGH_WAIT else "loader"
    if limit == "loader" and disk.images_per_second < loader.images_per_second * 1.1:
        limit = "disk"
    other = loader if limit == "step" else step
    gain = max(1.0, other.images_per_second / together.images_per_second)
    if limit == "step":
        advice = tuple(_step_advice(config, tried, step, together))
    else:
        advice = tuple(_data_advice(limit, config, formats, cpus, together))
    return Diagnosis(stages, tried, wait_share, limit, gain, advice)


def _until(batches: Iterable[Batch], seconds: float, first: Callable[[], None]) -> Iterator[Batch]:
    """``batches`` for that long after the warm-up; ``first()`` is called when that ends."""
    end = float("inf")
    for number, batch in enumerate(batches):
        if number == WARM_UP_BATCHES:
            first()
            end = time.perf_counter() + seconds
        # One batch at least is measured, however long it takes.
        if number > WARM_UP_BATCHES and time.perf_counter() >= end:
            return
        yield batch


def _endless(batches: BetonLoader) -> Iterator[Batch]:
    """Epoch after epoch, whole batches only."""
    size = min(batches.reading.batch_size, batches.samples)
    for epoch in itertools.count():
        batches.set_epoch(epoch)
        yield from (batch for batch in batches if len(batch.labels) == size)


class _Meter:
    """Pictures and seconds after the warm-up, on a device that may lag behind."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.images, self.started = device, 0, 0.0

    def start(self) -> None:
        self._settle()
        self.images, self.started = 0, time.perf_counter()

    def count(self, images: int) -> None:
        self.images += images

    @property
    def seconds(self) -> float:
        self._settle()
        return max(time.perf_counter() - self.started, 1e-9)

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _loader_rate(batches: BetonLoader, seconds: float) -> float:
    meter = _Meter(batches.device)
    for batch in _until(_endless(batches), seconds, meter.start):
        meter.count(len(batch.labels))
    batches.close()
    return meter.images / meter.seconds


def _fixed_batch(batches: BetonLoader) -> Batch:
    batch = next(_endless(batches))
    kept = Batch(batch.images.clone(), batch.labels.clone(), batch.indices.clone())
    batches.close()
    return kept


def _step_rate(session: Session, batch: Batch, seconds: float) -> float:
    return _train(session, itertools.repeat(batch), seconds).rate


def _together(session: Session, batches: BetonLoader, seconds: float) -> tuple[float, float]:
    """(pictures a second, share of the time that was spent waiting for data)."""
    waited = 0.0

    def waiting() -> Iterator[Batch]:
        nonlocal waited
        source = _endless(batches)
        while True:
            asked = time.perf_counter()
            batch = next(source)
            waited += time.perf_counter() - asked
            yield batch

    def forget() -> None:
        nonlocal waited
        waited = 0.0

    measured = _train(session, waiting(), seconds, forget)
    batches.close()
    return measured.rate, min(1.0, waited / measured.seconds)


@dataclass(frozen=True)
class _Measured:
    rate: float
    seconds: float


def _train(
    session: Session,
    batches: Iterable[Batch],
    seconds: float,
    begun: Callable[[], None] = lambda: None,
) -> _Measured:
    """Real steps over ``batches`` for that long, with a learning rate that moves nothing far."""
    meter = _Meter(session.device)

    def start() -> None:
        meter.start()
        begun()

    train_epoch(
        session.stepping, _until(batches, seconds, start), lambda _: 1e-9, 0,
        Sums(session.device), meter.count,
    )  # fmt: skip
    spent = meter.seconds
    return _Measured(meter.images / spent, spent)


def _disk(batches: BetonLoader, seconds: float) -> Stage:
    """Reads samples in the recipe's order, past the system's cache where it lets us."""
    extents, paths = batches.info.extents, batches.betons.paths
    with contextlib.ExitStack() as open_files:
        files = [open_files.enter_context(path.open("rb", buffering=0)).fileno() for path in paths]
        cold = hasattr(os, "posix_fadvise")
        if cold:
            for file in files:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        order = np.random.default_rng(0).permutation(len(extents))[:_SAMPLES_READ]
        end = time.perf_counter() + seconds

        def read(index: int) -> int:
            # One sample at least is read, however late its thread begins.
            if index != order[0] and time.perf_counter() > end:
                return 0
            offset, size, _, number = extents[index].tolist()
            return len(os.pread(files[number], size, offset))

        jobs = batches.reading.jobs or usable_cpus()
        started = time.perf_counter()
        with ThreadPoolExecutor(jobs) as threads:
            sizes = [size for size in threads.map(read, order.tolist()) if size]
        spent = max(time.perf_counter() - started, 1e-9)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    note = f"{sum(sizes) / spent / 1e6:,.0f} MB/s at random places, {'cold' if cold else 'cached'}"
    if batches.manifest.bytes < memory / 2:
        note += "; the data fit into memory, so the first epoch only"
    return Stage("disk", len(sizes) / spent, note)


def _what_is_read(data: Data) -> str:
    formats = ", ".join(
        f"{count:,} {name}" for name, count in data.manifest.formats.items() if count
    )
    return f"read, decode, crop, subtract: {formats}"


def _what_steps(session: Session) -> str:
    config = session.config
    return (
        f"{config.network}, batch {config.batch_size}, {session.precision.name}, "
        f"{session.device.type}"
    )


def _alternatives(session: Session, batch: Batch, step: Stage, seconds: float) -> Iterator[Stage]:
    """The step under other settings, measured: another precision, twice the batch."""
    if step.images_per_second * seconds < len(batch.labels):  # a single step takes longer
        return
    best = choose_precision("auto", session.device)
    ours = session.precision.name
    other = best if best != ours else "float32"
    if other != ours:
        changed = replace(session.config, precision=other)
        rate = _step_rate(Session(changed, session.data, session.world), batch, seconds)
        yield Stage(f"--precision {other}", rate)
    double = Batch(*(torch.cat([one, one]) for one in (batch.images, batch.labels, batch.indices)))
    images = double.images.contiguous(memory_format=torch.channels_last)
    double = Batch(images, double.labels, double.indices)
    try:
        rate = _step_rate(session, double, seconds)
    except torch.OutOfMemoryError:
        return
    yield Stage(f"--batch-size {len(double.labels)}", rate, "another recipe: adapt --lr")


def _step_advice(
    config: configs.RunConfig, tried: tuple[Stage, ...], step: Stage, together: Stage
) -> Iterator[str]:
    """What makes the step faster: what was faster when it was tried."""
    share = together.images_per_second / step.images_per_second
    if share < _DISTURBED:
        yield (
            f"measure again on a quiet machine: fed by the loader the step ran at {share:.0%} of "
            "its own speed without ever waiting for data, so something else used the processors"
        )
    for stage in sorted(tried, key=lambda one: -one.images_per_second):
        gain = stage.images_per_second / step.images_per_second
        if gain > 1.1:
            note = f" ({stage.note})" if stage.note else ""
            yield f"{stage.name}: the step alone was {gain:.1f} times as fast{note}"
    if config.device == "cpu" or not torch.cuda.is_available():
        yield "a CUDA machine, or a smaller --network: the arithmetic is what takes the time"
    yield "nothing about the data: threads, beton and disk are fast enough"


def _data_advice(
    limit: str,
    config: configs.RunConfig,
    formats: Mapping[str, int],
    cpus: int,
    together: Stage,
) -> Iterator[str]:
    """What brings the data sooner, the surest first."""
    if limit == "disk":
        yield "a faster or local disk, or --order pages, which reads the file from end to end"
        return
    if config.jobs is not None and config.jobs < cpus:
        yield f"--jobs {cpus}: this process may use {cpus} CPUs and decodes on {config.jobs}"
    if formats.get("jpeg"):
        yield (
            "a raw or mixed beton (imagenet-prep build --format raw, or mixed:0.5): decoding is "
            "most of what the loader does; it takes several times the disk"
        )
    yield f"more CPU cores: {cpus} bring {together.images_per_second:,.0f} images/s"
