"""What each change of a preset is worth: every variant differs, a training is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from imagenet_prep.cli.main import run as prepare
from tools.ablation import NETWORK, PRESET, VARIANTS, Result, measure, table
from trainer.config import presets
from trainer.network.alexnet import NETWORKS


def test_a_variant_changes_what_the_preset_has() -> None:
    assert presets.preset(PRESET).network == NETWORK
    spec = NETWORKS[NETWORK]
    assert not VARIANTS[0].options and not VARIANTS[0].network
    for variant in VARIANTS[1:]:
        assert bool(variant.options) != bool(variant.network)
        assert all(getattr(spec, name) != value for name, value in variant.network.items())


def test_a_variant_is_trained_and_measured(tmp_path: Path, make_raw: Callable[..., Path]) -> None:
    words = ["prepare", "--src", str(make_raw(train=4, val=2)), "--dst", str(tmp_path)]
    assert prepare([*words, "--jobs", "1"]) == 0
    found = measure(VARIANTS[1], 3, tmp_path / "train.beton", epochs=1)
    assert (found.variant, found.seed) == (VARIANTS[1].name, 3)
    assert 0 <= found.top1 <= 100 and found.loss > 0 and found.cpu_s > 0


def test_the_table_has_means_and_differences() -> None:
    base, other = VARIANTS[0].name, VARIANTS[1].name
    rows = [Result(base, 0, 80.0, 0.5, 90), Result(other, 0, 78.5, 0.5, 100)]
    rows.append(Result(base, 1, 81.0, 0.5, 100))
    assert table(rows)[2:] == [
        "| the preset | 80.50 % | 80.00, 81.00 |  | 95 |",
        f"| {other} | 78.50 % | 78.50 | -2.00 | 100 |",
    ]
