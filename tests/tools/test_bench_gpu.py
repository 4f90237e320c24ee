"""bench/gpu.py without a GPU: its checks can fail, what it skips is named and has no row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.imagenet_prep.jpeg.test_kernels import run_module
from tests.kit.jpegs import content, encoded
from tests.trainer.conftest import Sample, make_beton
from tools.bench import gpu_feed, gpu_loader
from tools.bench.gpu_record import NO_CUDA, Bench
from tools.bench.harness import options
from tools.bench.recording import Record
from trainer.loader import device


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A smoke test's bench on the CPU that records into a file."""
    given = options("", ["--smoke", "--json", str(tmp_path / "record.json")])
    return Bench(Record("gpu", given), given, torch.device("cpu"), tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Five images of 256 px."""
    return make_beton(tmp_path_factory.mktemp("small"), 5, 256)


def test_what_needs_a_gpu_is_named_and_has_no_row(bench: Bench) -> None:
    with bench.part("step", cuda=True) as takes_place:
        assert not takes_place
    assert bench.record.skipped == {"step": NO_CUDA}
    assert bench.record.rows == []
    assert bench.record.finish() == 0


def test_a_part_that_breaks_is_named_and_the_next_goes_on(bench: Bench) -> None:
    with bench.part("step"):
        raise RuntimeError("no kernel image\nis there")
    with bench.part("fed") as takes_place:
        assert takes_place
    assert bench.record.skipped == {"step": "RuntimeError: no kernel image"}
    assert bench.record.finish() == 1


def test_the_record_is_on_disk_after_each_part(bench: Bench) -> None:
    with bench.part("lrn"):
        bench.difference("LRN", 1e-7, 1e-6, "of the largest", 3)
    assert bench.given.json is not None
    found = json.loads(bench.given.json.read_text())
    assert [row["what"] for row in found["rows"]] == ["LRN"]
    assert found["rows"][0]["ratio"] == 10.0


@pytest.mark.parametrize(("found", "status"), [(0.5, 0), (1.0, 0), (1.5, 1), (float("nan"), 1)])
def test_more_than_is_allowed_is_a_failure(bench: Bench, found: float, status: int) -> None:
    bench.difference("pixels", found, 1.0, "levels", 1)
    assert bench.record.finish() == status


def test_equal_pipelines_pass_and_one_that_is_off_does_not(
    bench: Bench, small: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = gpu_feed.Betons(small.path, small.path)
    gpu_feed.parity(bench, data)
    assert [row.n for row in bench.record.rows] == [5] * len(gpu_feed.SETTINGS)
    assert bench.record.failed == set()
    take = device.DeviceRing.take

    def off(ring: device.DeviceRing, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = take(ring, slot)
        return images + 0.01, labels

    monkeypatch.setattr(device.DeviceRing, "take", off)
    gpu_feed.parity(bench, data)
    assert len(bench.record.failed) == len(gpu_feed.SETTINGS)


def test_the_loader_s_bench_runs_without_a_device(
    small: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cropped, out = small.path.parent / "cropped", tmp_path / "rows.json"
    given = ["gpu_loader.py", "--crops", str(cropped), "--smoke", "--json", str(out)]
    monkeypatch.setattr("sys.argv", given)
    assert gpu_loader.main() == 0
    rows = json.loads(out.read_text())
    assert [row["value"] for row in rows] == [0.0] * (len(gpu_loader.SETTINGS) + 1)
    assert {row["images"] for row in rows} == {4}


def test_the_decoders_benchmark_runs_in_the_simulator(tmp_path: Path) -> None:
    for number in range(2):
        pixels = content(np.random.default_rng(number), 64, 64, 4)
        (tmp_path / f"{number}.jpg").write_bytes(encoded(pixels, quality=90))
    record = tmp_path / "record.json"
    options = ("--crops", str(tmp_path), "--smoke", "--json", str(record))
    run_module("tools.bench.gpu_decode", *options, NUMBA_ENABLE_CUDASIM="1")
    rows = {row["what"]: row["value"] for row in json.loads(record.read_text())}
    assert rows["2 images, elements that differ from Pillow's"] == 0
    assert rows["float32 19, less a mean image"] == 0
