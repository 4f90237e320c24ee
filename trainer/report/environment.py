"""What a run ran on: machine, versions, commit."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


_GIT_TIMEOUT_S = 10


def environment_stamp() -> dict[str, Any]:
    """Where and with what a run happens, as JSON values; nothing that names a person or host.

    Versions come from the installed packages' metadata (None: not installed). Flags
    of the processor are those that torch reports.
    """
    import torch

    packages = ("torch", "torchvision", "ffcv", "numpy", "numba", "pillow-simd", "pillow")
    versions = {name: _version(name) for name in ("imagenet-alexnet", *packages)}
    simd = versions["pillow-simd"] is not None
    if versions["pillow-simd" if not simd else "pillow"] is None:
        del versions["pillow-simd" if not simd else "pillow"]
    return {
        "versions": {"python": platform.python_version(), **versions},
        "pillow_simd": simd,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": {
            "model": _cpu_model(),
            "count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "logical": os.cpu_count(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "flags": _cpu_flags(),
        },
        "threads": torch.get_num_threads(),
        "cuda": _cuda_device(),
        "commit": _commit(Path(__file__).resolve().parents[2]),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """The processor's name as the system knows it; its architecture where it has none."""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def _cpu_flags() -> dict[str, bool]:
    """What torch says that the processor has of the units which matter to training."""
    import torch

    names = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")
    report = getattr(torch.cpu, "get_capabilities", None)
    known = report() if report is not None else {}
    flags = {name: bool(known[name]) for name in names if name in known}
    probes = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_tile": "_is_amx_tile_supported"}
    for name, probe in probes.items():  # torch before get_capabilities has these alone
        if name not in flags and hasattr(torch.cpu, probe):
            flags[name] = bool(getattr(torch.cpu, probe)())
    return flags | {"bf16": flags.get("avx512_bf16", False) or flags.get("amx_bf16", False)}


def _cuda_device() -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    driver = None
    with contextlib.suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text()
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text)
        driver = found.group(0) if found else None
    return {
        "device": torch.cuda.get_device_name(),
        "count": torch.cuda.device_count(),
        "capability": ".".join(str(part) for part in torch.cuda.get_device_capability()),
        "runtime": torch.version.cuda,
        "driver": driver,
    }


def _commit(checkout: Path) -> str | None:
    """The commit of ``checkout``, with ``+`` if files differ from it; None without git.

    A package installed into somebody else's repository must not report theirs, so the
    folder itself has to be the root of one.
    """
    if not (checkout / ".git").exists():
        return None
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=checkout,
            env=clean,
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
        ).stdout.strip()

    try:
        commit = git("rev-parse", "--verify", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
