"""All measurements on a CUDA device, the most valuable first, each in a process of its own.

    python tools/bench/gpu.py --crops FOLDER [--out FOLDER] [--smoke]

FOLDER has JPEG crops of one size in a folder per class. In this order: are the step's kernels
right; the step's images a second, and its rivals'; the loader's; a whole epoch by the command
line; the decoder alone; the kernels of a step; the settings of each kernel. Each part prints as
it goes, saves into --out, and ends at its time limit; the others go on. Needs no network.
``--smoke`` needs no device and no crops.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

HERE = Path(__file__).resolve().parent
# (script, its options, seconds it may take, whether a smoke run has it: the others have tests)
PARTS = (
    ("gpu_step.py", ("--part", "check"), 100, True),
    ("gpu_step.py", ("--part", "steps"), 150, False),
    ("gpu_loader.py", (), 90, False),
    ("gpu_epoch.py", (), 180, False),
    ("gpu_decode.py", (), 90, False),
    ("gpu_step.py", ("--part", "profile"), 60, False),
    ("gpu_step.py", ("--part", "blocks"), 200, False),
)


def command_of(script: str, options: tuple[str, ...], crops: Path, out: Path) -> list[str]:
    """The command line of a part."""
    command = [sys.executable, str(HERE / script), *options]
    if script == "gpu_step.py":
        return [*command, "--out", str(out)]
    record = out / script.replace(".py", ".json")
    return [*command, "--crops", str(crops), "--json", str(record)]


def main() -> int:
    """Runs the parts; the status is 1 when one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--crops", type=Path, help="folder of JPEG crops")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder for the records")
    parser.add_argument("--smoke", action="store_true", help="a moment of it, without a device")
    given = parser.parse_args()
    if not given.smoke and given.crops is None:
        parser.error("--crops FOLDER is needed")
    failed = False
    # Without a device Triton's interpreter runs its kernels.
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if given.smoke else {})
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) if given.smoke else given.out
        out.mkdir(parents=True, exist_ok=True)
        for script, options, limit_s, brief in PARTS:
            if given.smoke and not brief:
                continue
            print(f"== {script} {' '.join(options)}", flush=True)
            command = command_of(script, options, given.crops, out) + ["--smoke"] * given.smoke
            try:
                # A smoke run on a busy machine is not to fail for its seconds.
                limit_s *= 10 if given.smoke else 1
                done = subprocess.run(command, timeout=limit_s, env=environment, check=False)
                failed |= done.returncode != 0
            except subprocess.TimeoutExpired:
                print(f"{script}: longer than {limit_s} s", flush=True)
                failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
