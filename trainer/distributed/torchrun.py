"""What torchrun tells a process of its launch: its place, and whether it was started again.

After a rank has died ``torchrun --max-restarts`` ends the others and runs the same command
line again. The run's ``config.json`` names the launch that began it, so that such a restart
continues its own run from ``last.pt`` and never an older one that lies in the same folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path


def several() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Whether this process is rank 0, which writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def restarts() -> bool:
    """Whether torchrun may run the command line again."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def launch() -> dict[str, str] | None:
    """What names a launch by torchrun: the id that all its hosts and restarts share (without
    --rdzv-id or --standalone it is "none"), and which torchrun it is. None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is None:
        return None
    return {"id": name, "agent": f"{os.getppid()} {_started(os.getppid())}"}


def _started(process: int) -> str:
    """When ``process`` began, in the system's own ticks; nothing where that is not told."""
    try:
        told = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return told.rpartition(")")[2].split()[19]


def continues(folder: Path) -> bool:
    """Whether ``folder`` has a run that this launch began: torchrun has started it again.

    That does not go by the count of restarts alone, which hosts may have differently. Where it
    is above 0 the launch's id is enough: rank 0 may have moved to another host.
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
