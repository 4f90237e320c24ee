"""The harness of the benchmarks: races between processes, records, and what they work on."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.conftest import jpeg_bytes, smooth_pixels
from tools.bench import contender, image_sets, recording
from tools.bench import harness as benching
from tools.bench.harness import Entrant, Lap, Options, Race


@pytest.fixture
def given(tmp_path: Path) -> Options:
    """What a benchmark gets from its command line."""
    return benching.options("", ["--rounds", "3", "--json", str(tmp_path / "record.json")])


@pytest.fixture
def crop_files(tmp_path: Path) -> list[str]:
    """Three small JPEG files."""
    paths = [tmp_path / f"{number}.jpg" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(jpeg_bytes(smooth_pixels(40, 40, number)))
    return [str(path) for path in paths]


def decoding(name: str, *shares: list[str]) -> Entrant:
    """A contender that only decodes files."""
    return Entrant(name, "contenders_stats:decode", [{"files": files} for files in shares])


def test_contenders_run_in_turns_and_shares_are_added_up(
    given: Options, crop_files: list[str]
) -> None:
    result = benching.race(
        "r", [decoding("a", crop_files), decoding("b", *[crop_files] * 2)], given
    )
    assert [lap.count for lap in result.laps["a"]] == [3, 3, 3]
    assert [lap.count for lap in result.laps["b"]] == [6, 6, 6]
    assert all(lap.wall_s > 0 for laps in result.laps.values() for lap in laps)
    assert "PIL" in result.versions["a"]
    assert (result.absent, result.failed) == ({}, set())


def test_absent_contenders_are_skipped_failing_ones_are_errors(
    given: Options, crop_files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lost = Entrant("lost", "contenders_stats:decode", [{"files": []}], Path("no/such/python"))
    result = benching.race("r", [decoding("well", crop_files), lost], given)
    record = recording.Record("t", given)
    record.add(result, recording.speed_row(result, "well", "lost", 2.0))
    assert record.finish() == 0
    assert "skipped  r: lost: its environment is missing" in capsys.readouterr().out
    assert (record.rows, set(result.laps)) == ([], {"well"})
    record.add(benching.race("r", [decoding("bad", ["no-such-file.jpg"])], given))
    assert record.finish() == 1
    assert "FAILED   r: bad: ended with status 1: FileNotFoundError" in capsys.readouterr().out


def test_a_contender_that_never_ends_is_ended(given: Options, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)  # opening it waits for a writer who does not come
    hurried = dataclasses.replace(given, lap_s=0.5)
    result = benching.race("r", [decoding("stuck", [str(pipe)])], hurried)
    assert result.absent == {"stuck": "did not end in time"}
    assert result.failed == {"stuck"}


def test_a_missing_rival_is_no_error_our_missing_module_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pyvips", None)
    arguments = {"files": [], "folder": str(tmp_path)}
    found = contender.prepare("contenders_crop:libvips", arguments)
    assert found == "pyvips is not installed (make bench-env)"
    with pytest.raises(ModuleNotFoundError):
        contender.prepare("contenders_nobody:none", {})


def laps(*walls_s: float, count: int = 100, cpu_s: float | None = 2.0) -> list[Lap]:
    return [Lap(wall_s, cpu_s, count, 0.0, ()) for wall_s in walls_s]


def test_a_ratio_is_of_medians_and_above_one_if_ours_is_faster() -> None:
    times = {"ours": laps(1.0, 2.0, 1.25, cpu_s=1.0), "theirs": laps(2.0, 2.5, 100.0)}
    row = recording.speed_row(Race("r", times), "ours", "theirs", 1.5)
    assert row is not None
    assert (row.ours, row.theirs, row.ratio) == (80.0, 40.0, 2.0)
    assert (row.spread, row.cpu_ratio) == ((1.25, 80.0), 2.0)


def test_a_record_has_machine_and_versions_and_no_folder(
    given: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "bench_x.py"), "--json", str(tmp_path / "r")])
    record = recording.Record("x", given)
    times = {"ours": laps(1.0), "theirs": laps(2.0)}
    record.add(Race("r", times), recording.speed_row(Race("r", times), "ours", "theirs", 1.5))
    record.finish()
    text = (tmp_path / "record.json").read_text()
    written = json.loads(text)
    assert {"machine", "versions", "commit", "rows", "command", "date"} <= set(written)
    assert written["command"] == "python bench_x.py --json r"
    row = written["rows"][0]
    wanted = {"what", "rival", "ours", "theirs", "unit", "ratio", "n"}
    assert wanted <= set(row)
    assert (row["ratio"], row["n"]) == (2.0, 100)
    assert str(tmp_path) not in text
    assert os.uname().nodename not in re.findall(r"[\w.-]+", text)


def test_a_benchmarks_crops_are_as_many_as_asked_and_different(
    tmp_path: Path,
) -> None:
    files = []
    for number in range(2):
        files.append(tmp_path / f"{number}.jpg")
        files[-1].write_bytes(jpeg_bytes(smooth_pixels(300, 400, number)))
    images = image_sets.ImageFiles("made", tuple(files))
    crops = image_sets.make_crops(images, tmp_path / "work", 5, jobs=1)
    assert len({path.read_bytes() for path in crops.files}) == len(crops.labels) == 5
    assert crops.stats.exists()
    # Made once: the photographs are not asked for again.
    gone = image_sets.ImageFiles("made", ())
    assert image_sets.make_crops(gone, tmp_path / "work", 5, jobs=1) == crops
