"""How fast a training step of AlexNet is on this CPU, beside the network as tutorials write it.

    python tools/bench/step.py [--smoke] [--json FILE] [--images FOLDER] [--rounds N]

One tower with LRN, 1000 classes, 227 px, batch 128: forward, backward, SGD with momentum.
Theirs is eager float32 with the library's LRN; ours is the trainer's step, in float32 and in
bfloat16 where the processor has that in hardware. Then ours fed from a beton over ours on
fixed data.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.bench.contenders_build import build
from tools.bench.harness import Entrant, Options, options, race, work_folder
from tools.bench.image_sets import make_crops, photographs
from tools.bench.recording import Record, speed_row

OURS, HALF = "ours, float32", "ours, bfloat16"
FED, FIXED = "ours, fed", "ours, on fixed data"
TUTORIAL = "tutorials' network, eager float32"
# As tutorials write it, a third of its time is page faults: glibc gives each step's activations
# back to the system. How much that costs depends on the machine, so there is a row without.
KEPT = "the same, keeping freed memory"
BATCH, SMOKE_BATCH, CROPS = 128, 2, 512


def bfloat16_in_hardware() -> bool:
    """Whether the processor multiplies bfloat16 matrices itself."""
    import torch

    from trainer.device import choose_precision

    return choose_precision("auto", torch.device("cpu")) == "bfloat16"


def steps(record: Record, given: Options, share: dict[str, object]) -> None:
    """Our step beside theirs, on a fixed batch."""
    title = "step"
    if not record.wanted(title):
        return
    entrants = [
        Entrant(OURS, "contenders_step:ours", [{**share, "precision": "float32"}]),
        Entrant(TUTORIAL, "contenders_step:tutorial", [share]),
        Entrant(KEPT, "contenders_step:tutorial", [{**share, "keep": True}]),
    ]
    half = bfloat16_in_hardware()
    if half:
        entrants.append(Entrant(HALF, "contenders_step:ours", [{**share, "precision": "bfloat16"}]))
    else:
        record.skipped[f"{title}: {HALF}"] = "this processor has no bfloat16 in hardware"
    result = race(title, entrants, given)
    record.add(result, speed_row(result, OURS, TUTORIAL, 2.2, f"{title}, float32"))
    record.add(result, speed_row(result, OURS, KEPT, None, f"{title}, float32"))
    if half:
        record.add(result, speed_row(result, HALF, TUTORIAL, 5.0, f"{title}, bfloat16"))
        record.add(result, speed_row(result, HALF, KEPT, None, f"{title}, bfloat16"))


def fed(record: Record, given: Options, share: dict[str, object], work: Path) -> None:
    """Our step fed from a beton, over the same on fixed data."""
    title = "fed"
    if not record.wanted(title) or given.smoke:
        return
    crops = make_crops(photographs(given, work), work, CROPS, jobs=None)
    beton = crops.stats.parent / "jpeg.beton"
    if not beton.exists():
        build(crops.folder, crops.stats, beton, "jpeg", None)
    ours = {**share, "precision": "auto"}
    result = race(
        title,
        [
            Entrant(FED, "contenders_step:fed",
                    [{**ours, "beton": str(beton), "stats": str(crops.stats)}]),
            Entrant(FIXED, "contenders_step:ours", [ours]),
        ],
        given,
    )  # fmt: skip
    record.add(result, speed_row(result, FED, FIXED, 0.97, "fed from a beton"))


def main() -> int:
    """Runs the races that ``--only`` leaves."""
    given = options(__doc__.splitlines()[0] if __doc__ else "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share: dict[str, object] = {
        "batch": SMOKE_BATCH if given.smoke else BATCH, "threads": cores, "small": given.smoke,
    }  # fmt: skip
    with work_folder(given) as work:
        record = Record("step", given)
        record.details = {"batch": share["batch"], "threads": cores}
        steps(record, given, share)
        fed(record, given, share, work)
        return record.finish()


if __name__ == "__main__":
    sys.exit(main())
