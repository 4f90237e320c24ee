"""The environment of a launch by torchrun: this process's rank, and whether it was restarted.

After a rank has died ``torchrun --max-restarts`` ends the others and runs the same command
line again. The run's ``config.json`` names the launch that began it, so that such a restart
continues its own run from ``last.pt`` and never an older one in the same folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from imagenet_prep.core.errors import UsageError


def several() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Whether this process writes and prints: rank 0, or the only one."""
    return not several() or os.environ.get("RANK", "0") == "0"


def check() -> None:
    """UsageError for an incomplete environment of several processes."""
    missing = [name for name in ("RANK", "MASTER_ADDR") if name not in os.environ]
    if several() and missing:
        raise UsageError(
            "distributed.environment",
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} but {' and '.join(missing)} not set; start "
            "with torchrun, or unset WORLD_SIZE to train with one process",
        )


def restarts() -> bool:
    """Whether torchrun may run the command line again."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def launch() -> dict[str, str] | None:
    """The identity of a launch by torchrun: the id that all its hosts and restarts share ("none"
    without --rdzv-id or --standalone), and the torchrun process. None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is None:
        return None
    return {"id": name, "agent": f"{os.getppid()} {_started(os.getppid())}"}


def _started(process: int) -> str:
    """When ``process`` began, in clock ticks of the system; "" where that is unknown."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]


def continues(folder: Path) -> bool:
    """Whether ``folder`` has a run that this launch began: torchrun has restarted it.

    The count of restarts alone does not tell: it may differ between hosts. If it is above 0 the
    launch's id is enough: rank 0 may have moved to another host.
    """
    here = launch()
    if here is None:
        return False
    try:
        begun = json.loads((folder / "config.json").read_text(encoding="utf-8"))["launch"]
        if begun == here:
            return True
        again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        return bool(again and here["id"] != "none" and begun["id"] == here["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
