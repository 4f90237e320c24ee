"""The environment of a run: processor, GPU, versions, commit."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_GIT_TIMEOUT_S = 10


def environment_stamp() -> dict[str, Any]:
    """The environment of a run as JSON values, without names of persons and hosts.

    Versions come from the metadata of installed packages (None: not installed). Flags of the
    processor are those that torch reports.
    """
    import torch

    from trainer.device import usable_cpus

    simd = _version("pillow-simd") is not None
    packages = ("torch", "torchvision", "ffcv", "numpy", "numba")
    names = ("imagenet-alexnet", *packages, "pillow-simd" if simd else "pillow")
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in names},
        },
        "pillow_simd": simd,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": {
            "model": _cpu_model(),
            "count": usable_cpus(),
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


def _found(path: str, pattern: str) -> str | None:
    """The first group of ``pattern`` in a text file; None without the file or a match."""
    with contextlib.suppress(OSError):
        found = re.search(pattern, Path(path).read_text(), re.M)
        return found.group(1).strip() if found else None
    return None


def _cpu_model() -> str:
    model = _found("/proc/cpuinfo", r"^model name\s*:\s*(.+)$")
    return model or platform.processor() or platform.machine()


def _cpu_flags() -> dict[str, bool]:
    """The processor's units that matter to training, as torch reports them."""
    import torch

    names = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")
    known = torch.cpu.get_capabilities()
    flags = {name: bool(known[name]) for name in names if name in known}
    return flags | {"bf16": flags.get("avx512_bf16", False) or flags.get("amx_bf16", False)}


def _cuda_device() -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    return {
        "device": torch.cuda.get_device_name(),
        "count": torch.cuda.device_count(),
        "capability": ".".join(str(part) for part in torch.cuda.get_device_capability()),
        "runtime": torch.version.cuda,
        "driver": _found("/proc/driver/nvidia/version", r"\b(\d{3,}\.\d+(?:\.\d+)?)\b"),
    }


def _commit(checkout: Path) -> str | None:
    """The commit of ``checkout``, with ``+`` if files differ from it; None without git.

    The folder itself must be the root of a repository: a package installed inside another
    repository must not report that one's commit.
    """
    if not (checkout / ".git").exists():
        return None
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        done = subprocess.run(
            command, env=clean, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--verify", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
