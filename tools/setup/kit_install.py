"""Installs the wheels of a GPU kit into site/ beside this file, without pip and network.

Packages that this machine has are left alone, except those that wheels/forced.txt names.
Ends with status 1 and the names where large packages are missing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
import zipfile
from pathlib import Path

KIT = Path(__file__).resolve().parent
SITE = KIT / "site"
LARGE = ("torch", "torchvision", "numba", "PIL", "cv2", "matplotlib", "tensorboard")
# Files of a folder on PYTHONPATH that only site.addsitedir reads, such as numba-cuda's .pth.
SITECUSTOMIZE = "import site\nsite.addsitedir({!r})\n"


def installed(name: str) -> str | None:
    """The version of a package on this machine, None where it is missing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> int:
    """Unpacks the wheels that are needed and prints what it did."""
    version = (KIT / "wheels" / "python.txt").read_text().strip()
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if here != version:
        print(f"kit: made for Python {version}, but this is {here}; set PYTHON", file=sys.stderr)
        return 1
    missing = [name for name in LARGE if importlib.util.find_spec(name) is None]
    if missing:
        print(f"kit: install {', '.join(missing)} on this machine first", file=sys.stderr)
        return 1
    if not (SITE / "sitecustomize.py").exists():
        shutil.rmtree(SITE, ignore_errors=True)
        unpack(set((KIT / "wheels" / "forced.txt").read_text().split()))
    return 0


def unpack(forced: set[str]) -> None:
    """Wheels -> site/; sitecustomize.py is written last and means complete."""
    SITE.mkdir()
    for wheel in sorted((KIT / "wheels").glob("*.whl")):
        name, ours = wheel.name.split("-")[:2]
        name = name.lower().replace("_", "-")
        theirs = installed(name)
        if theirs is not None and name not in forced:
            continue
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(SITE)
        instead = f" instead of {theirs}" if theirs not in (None, ours) else ""
        print(f"kit: {name} {ours}{instead}", file=sys.stderr)
    (SITE / "sitecustomize.py").write_text(SITECUSTOMIZE.format(str(SITE)))


if __name__ == "__main__":
    sys.exit(main())
