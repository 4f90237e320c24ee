"""The example of the loader's documentation is a program that runs."""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from imagenet_prep.dataset.manifest import save_manifest
from imagenet_prep.dataset.names import stats_beside
from imagenet_prep.dataset.statistics import save_stats
from tests.kit.loading import Sample
from trainer.loader import loader


def example() -> str:
    """The indented block of the module's documentation."""
    lines = (loader.__doc__ or "").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("    "))
    last = max(i for i, line in enumerate(lines) if line.startswith("    "))
    return textwrap.dedent("\n".join(lines[first : last + 1]))


def test_the_readme_shows_the_same_example() -> None:
    readme = (Path(__file__).resolve().parents[3] / "README.md").read_text()
    assert textwrap.indent(example(), "    ").rstrip() in readme


def run_beside(
    program: str, sample: Sample, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Runs a program in a folder with train.beton and val.beton -> its names."""
    for split in ("train", "val"):
        beton = folder / f"{split}.beton"
        shutil.copy(sample.path, beton)
        save_manifest(beton, sample.manifest)
        save_stats(stats_beside(beton), sample.stats)
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(compile(program, "example", "exec"), names)
    return names


def test_the_script_of_the_documentation_trains_and_validates(
    full_beton: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    page = (Path(__file__).resolve().parents[3] / "docs" / "loader.md").read_text()
    program = page.split("```python\n")[1].partition("```")[0]
    for whole, short in (("range(90)", "range(1)"), ("size=128", "size=3")):
        assert whole in program
        program = program.replace(whole, short)
    program = program.replace("torch.cuda.is_available()", "False")
    run_beside(program, full_beton, tmp_path, monkeypatch)
    assert re.search(r"epoch 1: top-1 accuracy \d+\.\d\d%", capsys.readouterr().out)


def test_the_example_trains_a_torchvision_network(
    full_beton: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = example()
    assert len([line for line in program.splitlines() if line.strip()]) <= 12
    for whole, short in (
        ("range(90)", "range(1)"),
        ("size=256", "size=3"),
        ("resnet50", "resnet18"),
    ):
        assert whole in program
        program = program.replace(whole, short)
    names = run_beside(program, full_beton, tmp_path, monkeypatch)
    assert names["images"].shape == (3, 3, 224, 224)
    # Normalised: the levels of images are within a few standard deviations.
    assert 0.2 < float(names["images"].std()) < 3
    assert torch.isfinite(names["loss"])
    assert names["model"].fc.weight.grad.abs().sum() > 0
