"""The benchmarks of a GPU, as far as they run without one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.kit.command import python
from tests.kit.jpegs import content, encoded
from tests.trainer.conftest import Sample, make_beton
from tools.bench import gpu, gpu_epoch, gpu_loader, gpu_step


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Five images of 256 px."""
    return make_beton(tmp_path_factory.mktemp("small"), 5, 256)


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


def test_pixels_that_differ_fail_the_loaders_bench(
    small: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_loader, "SETTINGS", {"uint8": {"dtype": "uint8"}})
    lines = gpu_loader.Lines(tmp_path / "rows.json")
    gpu_loader.pixels(lines, small.path, {"seed": 7}, ["uint8"], crop_size=200)
    found, failed = lines.rows
    assert found["value"] > 0
    assert failed["unit"].startswith("FAILED: RuntimeError")


@pytest.mark.parametrize(("right", "status"), [(True, 0), (False, 1)])
def test_a_wrong_result_of_the_step_is_its_exit_status(
    right: bool, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # is put back
    monkeypatch.setitem(gpu_step.PARTS, "check", lambda part: part.say(part.verdict(right)))
    given = ["gpu_step.py", "--part", "check", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", given)
    assert gpu_step.main() == status


def test_the_decoders_benchmark_runs_in_the_simulator(tmp_path: Path) -> None:
    for number in range(2):
        pixels = content(np.random.default_rng(number), 64, 64, 4)
        (tmp_path / f"{number}.jpg").write_bytes(encoded(pixels, quality=90))
    record = tmp_path / "record.json"
    options = ("--crops", str(tmp_path), "--smoke", "--json", str(record))
    python("-m", "tools.bench.gpu_decode", *options, NUMBA_ENABLE_CUDASIM="1")
    rows = {row["what"]: row["value"] for row in json.loads(record.read_text())}
    assert rows["2 images, elements that differ from Pillow's"] == 0
    assert rows["float32 19, less a mean image"] == 0


def test_an_epoch_by_the_command_line_is_recorded(
    small: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops, out = small.path.parent / "cropped", tmp_path / "epoch.json"
    given = ["gpu_epoch.py", "--crops", str(crops), "--smoke", "--json", str(out)]
    monkeypatch.setattr("sys.argv", given)
    assert gpu_epoch.main() == 0
    _, command, epoch = json.loads(out.read_text())
    assert command["status"] == 0
    assert epoch["what"] == "epoch 1"
    assert epoch["images_per_second"] > 0


def test_a_part_that_fails_or_hangs_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fails.py").write_text("raise SystemExit(3)")
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(6000)")
    (tmp_path / "last.py").write_text("print('the last part')")
    parts = [(f"{name}.py", (), 1 if name == "hangs" else 600, True)
             for name in ("fails", "hangs", "last")]  # fmt: skip
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    given = ["gpu.py", "--crops", str(tmp_path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", given)
    assert gpu.main() == 1
    printed = capfd.readouterr().out
    assert "hangs.py: longer than 1 s" in printed
    assert printed.endswith("the last part\n")
