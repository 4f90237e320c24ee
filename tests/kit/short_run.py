"""A short run as a program: trains in moments, and ends itself where it is told to.

    python -m tests.kit.short_run BETON FOLDER [--kills 5,17] [--signal-at N NAME] [--resume]
    torchrun --nproc-per-node 2 -m tests.kit.short_run BETON FOLDER --plain

With ``--kills 5,17`` the run is done by three processes, one after the other, each of which
resumes: the first gets SIGKILL when it has counted its fifth batch, the second at its 17th.
They are forked from one that has only imported things, which takes longer than the run.
With ``--signal-at N SIGTERM`` the process sends itself that signal, which it handles as the
command does.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from imagenet_prep.core.errors import ToolError
from trainer.config import presets
from trainer.config.run_config import RunConfig
from trainer.distributed.world import World
from trainer.interrupt import Stop
from trainer.network.alexnet import NETWORKS, NetworkSpec
from trainer.training.run import train

# Dropout, batch statistics, an average, momentum, two batches in a step and images that grow (67,
# 83 and 99 px in three epochs): all that a checkpoint has to bring back.
SPEC = NetworkSpec(
    input_size=99,
    widths=(8, 8, 8, 8, 8),
    hidden=(16, 16),
    pooled=2,
    norm="batch",
    init="he",
    input_scale=1 / 64,
)
# Nothing that differs between one process and two: no dropout, no statistics of a batch.
PLAIN_SPEC = dataclasses.replace(SPEC, norm="lrn", dropout=0.0)
CONFIG = dataclasses.replace(
    presets.preset("small"),
    network="short",
    epochs=3,
    batch_size=3,
    accumulate=2,
    lr=1e-3,
    average=0.9,
    crop_size=56,
    start_size=67,
    lighting=0.1,
    warmup_epochs=0.5,
    checkpoint_every=2,
    device="cpu",
    precision="float32",
    jobs=1,
)
PLAIN = dataclasses.replace(CONFIG, network="plain", batch_size=5, accumulate=1, epochs=2)


def train_short(
    config: RunConfig,
    beton: Path,
    folder: Path,
    *,
    resume: bool = False,
    force: bool = False,
    overwrite: bool = False,
    at_batch: Callable[[int], None] = lambda _: None,
    stop: Stop | None = None,
    world: World | None = None,
) -> None:
    """Trains; ``at_batch(n)`` is called after the n-th batch of this sitting."""
    count = 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal count
        count += 1
        at_batch(count)

    NETWORKS.update(short=SPEC, plain=PLAIN_SPEC)
    # The same sums to the last bit, in whatever process and whatever was run there before.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(
            config, beton, folder, resume=resume, force=force, overwrite=overwrite,
            report=lambda _: None, progress=progress, stop=stop, world=world,
        )  # fmt: skip
    finally:
        del NETWORKS["short"], NETWORKS["plain"]
        torch.set_num_threads(threads)


def main() -> int:
    """The program; its exit status is the command's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("beton", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", default="")
    parser.add_argument("--signal-at", nargs=2, default=("0", "SIGTERM"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--plain", action="store_true")
    told = parser.parse_args()
    if told.kills:
        importlib.import_module("torch._dynamo")  # every optimiser does, and it takes seconds
    for moment in filter(None, told.kills.split(",")):
        if not killed_at(int(moment), told.beton, told.folder):
            sys.stderr.write(f"the process that was to be killed at {moment} ended by itself\n")
            return 1
    moment, name = int(told.signal_at[0]), signal.Signals[told.signal_at[1]]

    def at_batch(number: int) -> None:
        if number == moment:
            os.kill(os.getpid(), name)

    stop, world = Stop(), World.join()
    try:
        with stop.listening():
            train_short(
                PLAIN if told.plain else CONFIG, told.beton, told.folder,
                resume=told.resume or bool(told.kills), at_batch=at_batch, stop=stop, world=world,
            )  # fmt: skip
    except ToolError as error:
        sys.stderr.write(f"{error}\n")
        return error.status
    finally:
        world.leave()
    return 0


def killed_at(moment: int, beton: Path, folder: Path) -> bool:
    """Resumes in a process of its own that is killed at that batch; whether it was."""
    child = os.fork()
    if child == 0:

        def at_batch(number: int) -> None:
            if number == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            train_short(CONFIG, beton, folder, resume=True, at_batch=at_batch)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    ended = main()
    # As trainer.cli does for ranks; and on one core numba's TBB waits for ever at the end of a
    # program that has forked.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended)
