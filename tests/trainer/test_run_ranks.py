"""Two processes against one with the same global batch, over gloo."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from imagenet_prep.artifacts import ToolError
from trainer.checkpoint import load_checkpoint
from trainer.record import read_metrics
from trainer.world import World

from .short_run import PLAIN, train_short

if TYPE_CHECKING:
    from tests.trainer.conftest import Sample

REPOSITORY = Path(__file__).resolve().parents[2]


def world(rank: int, ranks: int) -> World:
    made = World()
    made.rank, made.ranks = rank, ranks
    return made


def test_weights_make_the_mean_of_ranks_the_mean_over_pictures() -> None:
    # 25 pictures for two ranks of five: twice 5 + 5, then 3 + 2.
    first, second = (list(world(rank, 2).weights(25, 5, 1)) for rank in range(2))
    assert first == [1.0, 1.0, 1.2]
    assert second == [1.0, 1.0, 0.8]
    # A rank with one picture cannot normalise a batch: none takes that step.
    assert [list(world(rank, 2).weights(13, 5, 2))[-1] for rank in range(2)] == [0.0, 0.0]
    assert list(itertools.islice(world(0, 1).weights(25, 5, 2), 3)) == [1.0, 1.0, 1.0]


def test_two_ranks_train_as_one_process_with_the_same_global_batch(
    small_beton: Sample, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        for suffix in (".beton", ".beton.json", ".stats.npz"):
            source = small_beton.path.with_name("train" + suffix)
            (tmp_path / (split + suffix)).write_bytes(source.read_bytes())
    beton, two, one = tmp_path / "train.beton", tmp_path / "two", tmp_path / "one"
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "tests.trainer.short_run"),
            *(str(beton), str(two), "--plain"),
        ],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    both = dataclasses.replace(PLAIN, batch_size=10)
    train_short(both, beton, one)
    ours, theirs = load_checkpoint(two / "last.pt"), load_checkpoint(one / "last.pt")
    for name, tensor in theirs.model.items():
        assert torch.allclose(ours.model[name], tensor, rtol=1e-3, atol=2e-5), name
    rows = [
        [row for row in read_metrics(folder) if row["kind"] == "epoch"] for folder in (two, one)
    ]
    assert len(rows[0]) == len(rows[1]) == 2
    for first, second in zip(*rows, strict=True):
        assert first["val_top1_error"] == second["val_top1_error"]
        for key in ("val_loss", "train_loss", "train_top1_error"):
            assert first[key] == pytest.approx(second[key], rel=1e-4), key
    # One process goes on with what two have left only when it is forced to.
    longer = dataclasses.replace(PLAIN)
    with pytest.raises(ToolError, match="2 processes there and 1 here"):
        train_short(longer, beton, two, resume=True)
