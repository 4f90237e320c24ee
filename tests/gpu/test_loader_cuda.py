"""The loader on a CUDA device: the CPU's pixels, damage by name, nothing left behind."""

from __future__ import annotations

import gc
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset.beton_tables import inspect_beton
from imagenet_prep.dataset.manifest import save_manifest
from imagenet_prep.dataset.names import stats_beside
from imagenet_prep.jpeg.index import rows_beside
from tests.gpu.devices import no_waiting, on_cuda
from tests.kit.loading import ON_DEVICE, Sample, assert_same_on_the_device, kept
from tests.trainer.conftest import make_beton
from trainer.loader import train_loader

GIVEN: dict[str, Any] = {"batch_size": 8, "crop_size": 51, "jobs": 1, "seed": 3}
GPU: dict[str, Any] = {"device": "cuda", "decode": "gpu"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """50 images of 72 px, every third of them grey."""
    return make_beton(tmp_path_factory.mktemp("made"), 50, 72)


@on_cuda
@pytest.mark.parametrize("options", ON_DEVICE)
def test_batches_are_those_of_the_cpu(made: Sample, options: dict[str, Any]) -> None:
    assert_same_on_the_device(made.path, GIVEN | options, GPU)


@on_cuda
@pytest.mark.parametrize("format", ["raw", "mixed:0.5"])
def test_raw_and_mixed_betons_are_read_as_well(tmp_path: Path, format: str) -> None:
    raw = make_beton(tmp_path, 20, 72, format=format)
    assert_same_on_the_device(raw.path, GIVEN | {"lighting_mode": "image"}, GPU)


@on_cuda
@pytest.mark.parametrize("resident", ["on", "off"])
def test_resident_or_not_the_pixels_are_the_same(made: Sample, resident: str) -> None:
    assert_same_on_the_device(made.path, GIVEN, GPU | {"resident": resident}, epochs=3)


@on_cuda
@pytest.mark.parametrize("options", ON_DEVICE[:4])
def test_decoded_on_the_host_the_pixels_are_the_same(made: Sample, options: dict[str, Any]) -> None:
    given = GIVEN | options
    with (
        train_loader(made.path, **given) as host,
        train_loader(made.path, **given, device="cuda", decode="cpu") as ours,
    ):
        assert ours.decode == "cpu"
        for wanted, found in zip(host, ours, strict=True):
            assert torch.equal(found.images.cpu(), wanted.images)
            assert torch.equal(found.labels.cpu(), wanted.labels)


@on_cuda
def test_a_damaged_sample_is_named(made: Sample, tmp_path: Path) -> None:
    with train_loader(made.path, **GIVEN, **GPU):
        pass
    path = tmp_path / "train.beton"
    data = bytearray(made.path.read_bytes())
    offset, size, *_ = inspect_beton(made.path).extents[17].tolist()
    data[offset + size // 2 : offset + size - 2] = bytes(size - size // 2 - 2)
    path.write_bytes(data)
    save_manifest(path, made.manifest)
    for beside in (rows_beside, stats_beside):
        shutil.copyfile(beside(made.path), beside(path))
    with train_loader(path, **GIVEN, **GPU) as batches, pytest.raises(ToolError) as caught:
        kept(batches)
    assert caught.value.code == "loader.sample_damaged"
    assert f"sample 17, {made.manifest.keys[17]}" in str(caught.value)


@on_cuda
def test_a_hundred_epochs_left_early_leave_nothing(made: Sample) -> None:
    with train_loader(made.path, **GIVEN, **GPU) as batches:

        def leave(times: int) -> None:
            for number in range(times):
                for taken, _ in enumerate(batches):
                    if taken == number % 4:
                        break

        leave(5)
        gc.collect()
        torch.cuda.synchronize()
        threads, memory = threading.active_count(), torch.cuda.memory_allocated()
        free = torch.cuda.mem_get_info()[0]
        leave(100)
        gc.collect()
        torch.cuda.synchronize()
        assert threading.active_count() == threads
        assert torch.cuda.memory_allocated() <= memory
        assert torch.cuda.mem_get_info()[0] >= free - (8 << 20)
        batches.set_epoch(0)
        assert len(kept(batches)) == 7


@on_cuda
def test_batches_stay_whole_while_a_slow_consumer_uses_them(made: Sample) -> None:
    with train_loader(made.path, **GIVEN, **GPU) as batches:
        want = [batch.images.clone() for batch in batches]
        batches.set_epoch(0)
        sums = []
        sleep: Any = torch.cuda._sleep
        for batch in batches:
            sleep(50_000_000)  # queued before the batch is read
            sums.append(batch.images.double().sum())
        for found, images in zip(sums, want, strict=True):
            assert float(found) == float(images.double().sum())


@on_cuda
def test_nothing_waits_for_the_device_while_batches_are_made(made: Sample) -> None:
    with train_loader(made.path, **GIVEN, **GPU) as batches:
        kept(batches)
        with no_waiting("cuda"):
            count = sum(len(batch.labels) for batch in batches)
    assert count == 50
