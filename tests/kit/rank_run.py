"""``trainer run`` with tiny networks, on several ranks without torchrun's own start-up.

    python -m tests.kit.rank_run JOBS.json
    torchrun --nproc-per-node 3 -m tests.kit.rank_run --beton ...

The first form does one job after the other: ``{"folder", "words", "ranks", "strike"}``, and
``"after"`` where it goes on with a copy of what another job's rank 0 has on its disk. Jobs with
``"beside": true``, which mostly wait, are done beside the others. A job's
ranks are forked from one process that has only imported things. Rank r works in
``folder/disk<r>``, so that ``--out run`` is on a disk of its own, and writes its output to
``folder/<r>.out`` and ``folder/<r>.err`` and its status in ``folder/<r>.status``.

``strike`` (in the second form the environment's STRIKE) is ``signal,rank,step``: that rank
sends itself that signal after that step of the run, in a first start only; ``signal,rank,4.30``:
30 ms later.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import traceback
import unittest.mock
from pathlib import Path
from typing import Any

import torch

from tests.kit.command import free_port
from tests.kit.short_run import PLAIN_SPEC, SPEC
from trainer.cli import main as cli
from trainer.network import alexnet as model
from trainer.training import epoch as training

STEP = training.EpochRun._after_step


def run(words: list[str], strike: str) -> int:
    """``trainer run`` with the tiny networks, struck where STRIKE names -> its status."""
    torch.set_num_threads(1)
    name, rank, step = (strike or "SIGKILL,-1,0").split(",")
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"

    after, _, delay = step.partition(".")

    def after_step(epoch: training.EpochRun) -> None:
        STEP(epoch)
        world = epoch.session.world
        if first and (world.rank, epoch.session.step) == (int(rank), int(after)):
            if delay:
                threading.Timer(
                    int(delay) / 1000, os.kill, (os.getpid(), signal.Signals[name])
                ).start()
            else:
                os.kill(os.getpid(), signal.Signals[name])

    networks = {"short": SPEC, "plain": PLAIN_SPEC}
    with (
        unittest.mock.patch.dict(model.NETWORKS, networks),
        unittest.mock.patch.object(training.EpochRun, "_after_step", after_step),
    ):
        return cli.run_trainer(["run", *words])


def fork(job: dict[str, Any], rank: int, port: int) -> int:
    """Starts one rank of ``job`` -> its process id."""
    child = os.fork()
    if child:
        return child
    folder = Path(job["folder"])
    (folder / f"disk{rank}").mkdir(parents=True, exist_ok=True)
    for name, stream in (("out", 1), ("err", 2)):
        file = os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
    os.chdir(folder / f"disk{rank}")
    if job["ranks"] > 1:
        os.environ |= {
            **{"RANK": str(rank), "WORLD_SIZE": str(job["ranks"]), "LOCAL_RANK": str(rank)},
            **{"LOCAL_WORLD_SIZE": str(job["ranks"])},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            "GLOO_SOCKET_IFNAME": "lo",  # the host's own name need not resolve
        }
    status = 70
    try:
        status = run(job["words"], job["strike"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def do(job: dict[str, Any]) -> None:
    """Runs a job; a rank that stopped is continued when the others have ended."""
    if job["after"]:
        shutil.copytree(Path(job["after"]) / "disk0", Path(job["folder"]) / "disk0")
    port = free_port()
    ranks = {fork(job, rank, port): rank for rank in range(job["ranks"])}
    stopped = set()
    while ranks:
        # A stopped child is no news after the first time.
        process, told = os.waitpid(-1, os.WUNTRACED)
        if os.WIFSTOPPED(told):
            stopped.add(process)
        else:
            status = str(os.waitstatus_to_exitcode(told))
            (Path(job["folder"]) / f"{ranks.pop(process)}.status").write_text(status)
        if set(ranks) == stopped:
            for process in stopped:
                os.kill(process, signal.SIGKILL)


def main() -> None:
    """The program."""
    if "RANK" in os.environ:
        status = run(sys.argv[1:], os.environ.get("STRIKE", ""))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    importlib.import_module("torch._dynamo")  # every optimiser does, and it takes seconds
    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    children = []
    for beside in (True, False):
        child = os.fork()
        if not child:
            random.seed()
            status = 1
            try:
                for job in jobs:
                    if job["beside"] is beside:
                        do(job)
                status = 0
            finally:
                if status:
                    traceback.print_exc()
                os._exit(status)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    # On one core numba's TBB waits for ever at the end of a program that has forked.
    os._exit(int(any(statuses)))


if __name__ == "__main__":
    main()
