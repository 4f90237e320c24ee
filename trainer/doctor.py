"""What limits a run: disk, decoding, copying, step and evaluation, measured alone and together.

A stage's figure is images a second over a few seconds, after a warm-up; the step is the run's
own, with its batch, precision and optimiser. On CUDA the time between steps is read from events
in the device's stream: the host is ahead of the device and waits at other moments.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imagenet_prep.core.errors import Progress
from trainer.config import run_config as configs
from trainer.data import Data, find_data
from trainer.device import choose_precision, usable_cpus
from trainer.distributed.world import World
from trainer.inference.judge import evaluate
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
    """A measured stage: images a second, and what it was measured on."""

    name: str
    images_per_second: float
    note: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Stages in order (the last one is the run as it is), what else was tried, and the verdict.

    ``limit`` is the name of a stage; ``gain`` how many times as fast the run would be if that
    stage cost nothing; ``tried`` are other settings, measured.
    """

    stages: tuple[Stage, ...]
    tried: tuple[Stage, ...]
    wait_share: float
    limit: str
    gain: float
    advice: tuple[str, ...]

    @property
    def together(self) -> float:
        """Images a second of loader and step at once."""
        return self.stages[-1].images_per_second


def examine(
    config: configs.RunConfig, beton: Path, *, seconds: float, progress: Progress
) -> Diagnosis:
    """Measures each stage for about ``seconds``; trains a network that is thrown away."""
    data = find_data(beton)
    session = Session(replace(config, start_size=0), data, World())
    measured: list[Stage] = []

    def done(name: str, rate: float, note: str) -> Stage:
        measured.append(Stage(name, rate, note))
        progress("stages", min(len(measured), 5), 5)
        return measured[-1]

    with training_batches(session) as batches:
        disk = _disk(batches, seconds)
        done(disk.name, disk.images_per_second, disk.note)
        done("decode", _loader_rate(batches, seconds), _what_is_read(data, batches.decode))
        fixed = _fixed_batch(batches)
        if session.device.type == "cuda":
            done("copy", *_copy(batches, fixed))
        step = done("step", _step_rate(session, fixed, seconds), _what_steps(session))
        done("evaluation", _evaluation_rate(session, fixed, seconds), "the same network, no steps")
        rate, wait = _together(session, batches, seconds)
    done("together", rate, f"{100 * wait:.0f} % of the time waiting for data")
    tried = tuple(_alternatives(session, fixed, step, seconds / 2))
    ratio = data.validation.manifest.samples / data.manifest.samples if data.validation else 0.0
    return diagnose(
        tuple(measured), tried, wait, config, data.manifest.formats, usable_cpus(), ratio
    )


def diagnose(
    stages: tuple[Stage, ...],
    tried: tuple[Stage, ...],
    wait_share: float,
    config: configs.RunConfig,
    formats: Mapping[str, int],
    cpus: int,
    validation_ratio: float = 0.0,
) -> Diagnosis:
    """The measured stages, ``together`` last -> what limits, by how much, what helps.

    ``validation_ratio``: images of the validation set for each one of the training set.
    """
    rates = {stage.name: stage.images_per_second for stage in stages}
    together = stages[-1]
    data = [name for name in ("disk", "decode", "copy") if name in rates]
    limit = "step"
    if wait_share >= _ENOUGH_WAIT:
        # Decoding reads the disk too: only a clearly slower disk is the cause.
        limit = min(data, key=lambda name: rates[name] * (1.0 if name == "decode" else 0.91))
    loader = min(rates[name] for name in data)
    gain = max(1.0, (loader if limit == "step" else rates["step"]) / together.images_per_second)
    training_s = 1 / together.images_per_second  # an image of an epoch
    advice: tuple[str, ...]
    evaluation_s = validation_ratio / min(loader, rates["evaluation"])
    if evaluation_s > training_s:
        limit, gain = "evaluation", 1 + evaluation_s / training_s
        share = evaluation_s / (training_s + evaluation_s)
        advice = (f"a smaller validation set (--val): evaluation takes {share:.0%} of an epoch",)
    elif limit == "step":
        step = next(stage for stage in stages if stage.name == "step")
        advice = tuple(_step_advice(config, tried, step, together))
    else:
        advice = tuple(_data_advice(limit, config, formats, cpus, together))
    if limit != "evaluation" and rates["evaluation"] < 1.5 * together.images_per_second:
        advice += (
            f"evaluation runs at {rates['evaluation']:,.0f} images/s, little faster than training: "
            "a smaller validation set shortens each epoch",
        )
    return Diagnosis(stages, tried, wait_share, limit, gain, advice)


def _endless(batches: BetonLoader) -> Iterator[Batch]:
    """Epoch after epoch, whole batches only."""
    size = min(batches.reading.batch_size, batches.samples)
    for epoch in itertools.count():
        batches.set_epoch(epoch)
        yield from (batch for batch in batches if len(batch.labels) == size)


class _Meter:
    """Images, seconds and moments after the warm-up, on a device that may lag behind."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.images, self.started = 0, 0.0
        self.steps: list[tuple[Any, Any]] = []

    def over(self, batches: Iterable[Batch], seconds: float) -> Iterator[Batch]:
        """``batches`` for that long after the warm-up; measures what is done with each."""
        end = float("inf")
        for number, batch in enumerate(batches):
            if number == WARM_UP_BATCHES:
                self._settle()
                self.images, self.steps, self.started = 0, [], time.perf_counter()
                end = self.started + seconds
            # One batch at least is measured, however long it takes.
            if number > WARM_UP_BATCHES and time.perf_counter() >= end:
                return
            begun = self.now()
            yield batch
            self.steps.append((begun, self.now()))
            self.images += len(batch.labels)

    def rate(self) -> float:
        """Images a second, until now; waits for the device."""
        self._settle()
        return self.images / max(time.perf_counter() - self.started, 1e-9)

    def wait_share(self) -> float:
        """The share of the time in which no step ran, for want of data."""
        busy = sum(self.between(*moments) for moments in self.steps)
        whole = self.between(self.steps[0][0], self.steps[-1][1]) if self.steps else 0.0
        return max(0.0, 1.0 - busy / whole) if whole else 0.0

    def now(self) -> Any:
        """A moment in the order of the device's work: an event on CUDA, else the time of day."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def between(self, first: Any, last: Any) -> float:
        """Seconds; waits for the device."""
        if not self.cuda:
            return float(last - first)
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000

    def _settle(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def _loader_rate(batches: BetonLoader, seconds: float) -> float:
    meter = _Meter(batches.device)
    for _ in meter.over(_endless(batches), seconds):
        pass
    rate = meter.rate()
    batches.close()
    return rate


def _fixed_batch(batches: BetonLoader) -> Batch:
    batch = next(_endless(batches))
    kept = Batch(batch.images.clone(), batch.labels.clone(), batch.indices.clone())
    batches.close()
    return kept


def _step_rate(session: Session, batch: Batch, seconds: float) -> float:
    return _trained(session, itertools.repeat(batch), seconds).rate()


def _copy(batches: BetonLoader, batch: Batch) -> tuple[float, str]:
    """Images a second that fit through the connection to the device, and what travels."""
    if batches.decode == "gpu":
        each = batches.manifest.bytes / max(1, batches.info.samples)
    else:
        each = batch.images.nbytes / len(batch.labels)
    host = torch.empty(2**26, dtype=torch.uint8, pin_memory=True)
    device = torch.empty_like(host, device=batches.device)
    clock, moments = _Meter(batches.device), []
    for _ in range(6):
        moments.append(clock.now())
        device.copy_(host, non_blocking=True)
    per_second = 4 * host.nbytes / clock.between(moments[1], moments[5])
    return per_second / each, f"{per_second / 1e9:.1f} GB/s, {each / 1e3:,.0f} kB an image"


def _evaluation_rate(session: Session, batch: Batch, seconds: float) -> float:
    meter = _Meter(session.device)
    fed = meter.over(itertools.repeat(batch), seconds)
    evaluate(session.judging(), fed, session.precision, lambda _: None)
    return meter.rate()


def _together(session: Session, batches: BetonLoader, seconds: float) -> tuple[float, float]:
    """(images a second, share of the time in which no step ran, for want of data)."""
    meter = _trained(session, _endless(batches), seconds)
    rate = meter.rate()
    batches.close()
    return rate, meter.wait_share()


def _trained(session: Session, batches: Iterable[Batch], seconds: float) -> _Meter:
    """Real steps over ``batches`` for that long, with a learning rate that moves nothing far."""
    meter = _Meter(session.device)
    train_epoch(
        session.stepping, meter.over(batches, seconds), lambda _: 1e-9, 0,
        Sums(session.device), lambda _: None,
    )  # fmt: skip
    return meter


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


def _what_is_read(data: Data, where: str) -> str:
    formats = ", ".join(
        f"{count:,} {name}" for name, count in data.manifest.formats.items() if count
    )
    return f"read, decode on the {where.upper()}, crop, subtract: {formats}"


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
    if limit == "copy":
        yield "decode on the device (numba-cuda, a JPEG beton): only compressed images travel then"
        return
    if config.jobs is not None and config.jobs < cpus:
        yield f"--jobs {cpus}: this process may use {cpus} CPUs and decodes on {config.jobs}"
    if formats.get("jpeg"):
        yield (
            "a raw or mixed beton (imagenet-prep build --format raw, or mixed:0.5): decoding is "
            "most of what the loader does; it takes several times the disk"
        )
    yield f"more CPU cores: {cpus} bring {together.images_per_second:,.0f} images/s"
