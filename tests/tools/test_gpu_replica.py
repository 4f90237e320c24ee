"""The full-size rehearsal's beton: the small one's samples again and again, at their places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imagenet_prep.dataset.manifest import load_manifest
from imagenet_prep.jpeg.index import load_index, rows_beside
from tests.trainer.conftest import Sample, make_beton
from tools.bench.gpu_replica import copies_that_fit, replicate, replicate_rows
from trainer.loader.loader import eval_loader

COUNT = 6


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Six images of 32 px."""
    return make_beton(tmp_path_factory.mktemp("small"), COUNT, 32)


def samples_of(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """All images and labels of a beton, in file order."""
    with eval_loader(path, crop_size=32, dtype="uint8", batch_size=4, jobs=1) as batches:
        parts = [(batch.images.clone(), batch.labels.clone()) for batch in batches]
    images, labels = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize(("samples", "copies"), [(15, 3), (15, 1), (5, 1)])
def test_samples_repeat_in_order(small: Sample, tmp_path: Path, samples: int, copies: int) -> None:
    target = tmp_path / "train.beton"
    replicate(small.path, target, samples, copies)
    images, labels = samples_of(target)
    once, its_labels = samples_of(small.path)
    turn = torch.arange(samples) % COUNT
    assert torch.equal(images, once[turn])
    assert torch.equal(labels, its_labels[turn])


def test_copies_take_space_and_are_no_more_than_needed(small: Sample, tmp_path: Path) -> None:
    sizes = []
    for copies in (1, 2):
        replicate(small.path, tmp_path / "train.beton", 12, copies)
        sizes.append((tmp_path / "train.beton").stat().st_size)
    assert sizes[1] - sizes[0] >= 6 * 500
    assert copies_that_fit(small.path, 15, tmp_path) == 3
    assert copies_that_fit(small.path, 15, tmp_path, share=0.0) == 1


def test_the_row_index_repeats_as_the_samples_do(small: Sample, tmp_path: Path) -> None:
    target = tmp_path / "train.beton"
    replicate(small.path, target, 15, 2)
    replicate_rows(small.path, target, 15)
    digest = bytes.fromhex(load_manifest(target).digest)
    once = load_index(rows_beside(small.path), digest)
    whole = load_index(rows_beside(target), digest)
    turn = np.arange(15) % COUNT
    mine, theirs = whole.jobs(np.arange(15)), once.jobs(turn)
    assert np.array_equal(mine.jobs, theirs.jobs)
    assert np.array_equal(mine.positions, theirs.positions)
    assert np.array_equal(mine.predictors, theirs.predictors)
