"""Checks and measures the trainer on a CUDA machine; without one, what a CPU can of it.

    python tools/bench/gpu.py [--smoke] [--json FILE] [--images FOLDER] [--only TEXT]

Needs no network. In this order: the pixels of the CUDA pipeline beside those of the CPU
(parity); the LRN kernels' exactness and speed (lrn); steps, fed and unfed, in which nothing
waits for the device (sync); the step against the tutorials' network in eager float32,
against torchvision's AlexNet with autocast and channels-last, and as a share of the matrix
peak (step); the step fed from JPEG and raw betons over the
unfed one (fed); an epoch over a beton of 1,281,167 samples (rehearsal). ``--only`` takes
one of these words. What was skipped is named, and no row stands for it; what breaks is
named too, the rest goes on, and the status is 1.

All runs are in this process, in turns, with synchronised clocks; cuDNN tunes for all.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.bench.harness import options, work_folder
from tools.bench.recording import Record


def main() -> int:
    """Runs the parts that ``--only`` leaves."""
    given = options(__doc__.splitlines()[0] if __doc__ else "")
    import torch

    from tools.bench import gpu_feed, gpu_steps
    from tools.bench.gpu_record import Bench, accelerator

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    record = Record("gpu", given, accelerator=accelerator())
    with work_folder(given) as work:
        bench = Bench(record, given, device, work)
        record.details = {"device": device.type, "batch": bench.batch, "steps a lap": bench.steps}
        data: gpu_feed.Betons | None = None
        if any(map(record.wanted, ("parity", "sync", "fed", "rehearsal"))):
            data = gpu_feed.betons(bench)
        if data is not None:
            with bench.part("parity") as takes_place:
                if takes_place:
                    gpu_feed.parity(bench, data)
        with bench.part("lrn") as takes_place:
            if takes_place:
                gpu_steps.lrn(bench)
        with bench.part("sync", cuda=True) as takes_place:
            if takes_place and data is not None:
                gpu_steps.sync_free(bench)
                gpu_feed.fed_without_waiting(bench, data)
        with bench.part("step", cuda=True) as takes_place:
            if takes_place:
                gpu_steps.step(bench)
        if data is not None:
            with bench.part("fed", cuda=True) as takes_place:
                if takes_place:
                    gpu_feed.fed(bench, data)
            with bench.part("rehearsal") as takes_place:
                if takes_place:
                    gpu_feed.rehearsal(bench, data)
        return record.finish()


if __name__ == "__main__":
    sys.exit(main())
