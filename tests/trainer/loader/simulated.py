"""The CUDA back end in numba's simulator; ``test_cuda`` runs this file in a process of its own."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import threading
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset.beton_tables import inspect_beton
from imagenet_prep.dataset.manifest import save_manifest
from imagenet_prep.dataset.names import stats_beside
from imagenet_prep.jpeg.index import rows_beside
from tests.kit.loading import ON_DEVICE, Sample, assert_same_on_the_device, kept
from tests.trainer.conftest import make_beton
from trainer.loader import backends, train_loader

GIVEN: dict[str, Any] = {"batch_size": 2, "crop_size": 6, "jobs": 1, "seed": 3}
GPU: dict[str, Any] = {"decode": "gpu"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """4 images of 16 px, two of them grey."""
    return make_beton(tmp_path_factory.mktemp("tiny"), 4, 16)


@pytest.fixture
def copied(tiny: Sample, tmp_path: Path) -> Callable[..., Sample]:
    """A copy of it with its row index, then changed."""

    def make(change: Callable[[bytearray], Any]) -> Sample:
        with train_loader(tiny.path, **GIVEN, **GPU):
            pass
        path = tmp_path / "train.beton"
        data = bytearray(tiny.path.read_bytes())
        change(data)
        path.write_bytes(data)
        save_manifest(path, tiny.manifest)
        shutil.copyfile(rows_beside(tiny.path), rows_beside(path))
        shutil.copyfile(stats_beside(tiny.path), stats_beside(path))
        return dataclasses.replace(tiny, path=path)

    return make


@pytest.mark.parametrize("options", ON_DEVICE)
def test_batches_are_those_of_the_cpu(tiny: Sample, options: dict[str, Any]) -> None:
    assert_same_on_the_device(tiny.path, GIVEN | options, GPU, epochs=1)


@pytest.mark.parametrize("format", ["raw", "mixed:0.5"])
def test_raw_and_mixed_betons_are_read_as_well(tmp_path: Path, format: str) -> None:
    made = make_beton(tmp_path, 3, 16, format=format)
    options = GIVEN | {"lighting_mode": "image", "batch_size": 3}
    assert_same_on_the_device(made.path, options, GPU, epochs=1)


@pytest.mark.parametrize("resident", ["on", "off"])
def test_a_resident_set_is_copied_once_and_has_the_same_pixels(
    tiny: Sample, resident: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with train_loader(tiny.path, **GIVEN) as batches:
        wanted = [kept(batches) for _ in range(2)]
    with train_loader(tiny.path, **GIVEN, **GPU, resident=resident) as batches:
        asked: list[int] = []
        packer = batches._backend.packer  # type: ignore[attr-defined]
        copy = packer.copy

        def counted(indices: Any, *rest: Any) -> None:
            asked.append(len(indices))
            copy(indices, *rest)

        monkeypatch.setattr(packer, "copy", counted)
        found = [kept(batches) for _ in range(2)]
    assert sum(asked) == (4 if resident == "on" else 8)
    for one, other in zip(chain(*wanted), chain(*found), strict=True):
        np.testing.assert_allclose(one.images, other.images, atol=1e-3, rtol=0)


def test_an_epoch_is_resumed_and_left_early(tiny: Sample) -> None:
    with train_loader(tiny.path, **GIVEN, **GPU) as batches:
        whole = kept(batches)
        before = set(threading.enumerate())
        for _ in range(3):
            batches.set_epoch(0)
            next(iter(batches))
            state = batches.state_dict()
            batches.close()
            assert set(threading.enumerate()) <= before
        batches.load_state_dict(state)
        rest = kept(batches)
    assert [b.indices.tolist() for b in rest] == [b.indices.tolist() for b in whole[1:]]
    assert all(torch.equal(a.images, b.images) for a, b in zip(rest, whole[1:], strict=True))


@pytest.mark.parametrize("index", [0, 3])
def test_a_damaged_sample_is_named_within_two_batches(
    tiny: Sample, copied: Callable[..., Sample], index: int
) -> None:
    offset, size, *_ = inspect_beton(tiny.path).extents[index].tolist()

    def damage(data: bytearray) -> None:
        data[offset + size - 9 : offset + size - 2] = bytes(7)

    broken = copied(damage)
    taken: list[int] = []
    options = GIVEN | {"batch_size": 1, "order": "sequential"}
    with train_loader(broken.path, **options, **GPU) as batches, pytest.raises(ToolError) as caught:
        for batch in batches:
            taken += batch.indices.tolist()
    assert caught.value.code == "loader.sample_damaged"
    assert str(broken.path) in str(caught.value)
    assert f"sample {index}, {tiny.manifest.keys[index]}" in str(caught.value)
    assert index <= len(taken) <= min(index + 2, 4)


def test_a_file_that_ends_early_is_an_error(copied: Callable[..., Sample]) -> None:
    copy = copied(lambda data: None)
    options = GIVEN | {"batch_size": 1, "batches_ahead": 1}
    with train_loader(copy.path, **options, **GPU) as batches, pytest.raises(ToolError) as caught:
        for _ in batches:
            with copy.path.open("r+b") as file:
                file.truncate(5000)
    assert caught.value.code == "beton.changed"


def test_images_that_only_the_cpu_decodes_are_decoded_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_beton(tmp_path, 4, 16, progressive=True)
    with pytest.raises(ToolError) as caught:
        train_loader(made.path, **GIVEN, **GPU)
    assert caught.value.code == "loader.not_for_gpu"
    monkeypatch.setattr(backends, "on_host", lambda device: False)
    with (
        caplog.at_level(logging.WARNING, "trainer.loader"),
        train_loader(made.path, **GIVEN) as batches,
    ):
        assert batches.decode == "cpu"
        assert len(kept(batches)) == 2
    assert len(caplog.records) == 1
    assert "sample 0" in caplog.text


def test_a_full_device_is_one_error(tiny: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("trainer.loader.cuda.CudaBackend._prepare", full)
    with pytest.raises(ToolError) as caught:
        train_loader(tiny.path, **GIVEN, **GPU)
    assert caught.value.code == "loader.device_memory"
