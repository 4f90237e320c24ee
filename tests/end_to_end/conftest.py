"""Raw images, and the results of uninterrupted runs over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.command import must


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory, make_waves: Callable[[Path], Path]) -> Path:
    """240 raw images of two classes, each a few milliseconds of work."""
    return make_waves(tmp_path_factory.mktemp("faults") / "raw")


@pytest.fixture(scope="session")
def whole(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Uninterrupted runs over ``many``: cropped/ with stats.npz, and both kinds of betons."""
    folder = tmp_path_factory.mktemp("whole")
    must("crop", "--src", many, "--dst", folder / "cropped", "--jobs", 2)
    must("stats", "--src", folder / "cropped", "--jobs", 2)
    for form in ("jpeg", "raw"):
        must(*build(folder / "cropped", folder / form, form))
    return folder


def build(cropped: Path, betons: Path, form: str) -> list[object]:
    """The arguments of a build with two jobs, which are threads."""
    return ["build", "--src", cropped, "--dst", betons, "--format", form, "--jobs", 2]
