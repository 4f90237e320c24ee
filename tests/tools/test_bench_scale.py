"""Benchmark of large sets: what is straight, what is not run, sums from records."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tools.bench import scale as bench_scale
from tools.bench import scale_costs
from tools.bench.scale_stages import PROCESSES, Case

STAGES = {
    "listing: labels, order, crop names",
    "plan of a first run",
    "journal, written",
    "journal, read",
    "plan of a second run",
    "resume at half",
    "manifests of all shards",
    "order of an epoch, and resumed",
}


def points(power: float) -> dict[int, dict[str, Any]]:
    sizes = (1_000, 10_000, 100_000, 1_000_000)
    return {
        size: {
            "cpu_s": 0.1 + size**power / 1e6, "gb": 0.05 + size / 1e9, "count": size, "held": size
        }
        for size in sizes
    }  # fmt: skip


def test_a_straight_line_has_ratio_one_and_what_bends_is_told() -> None:
    straight = {row.unit: row.ratio for row in bench_scale.rows("plan", points(1.0))}
    assert straight == {"s": pytest.approx(1, abs=1e-6), "GB": pytest.approx(1, abs=1e-6)}
    bent = {row.unit: row.ratio for row in bench_scale.rows("plan", points(1.2))}
    assert bent["s"] < 0.8 and bent["GB"] == pytest.approx(1, abs=1e-6)
    assert bench_scale.rows("plan", points(1.2))[0].n == 1_000_000


def test_sizes_above_the_limit_or_the_disk_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench_scale.refusal(10, 9, tmp_path) == "above --most 9"
    assert bench_scale.refusal(10, 10, tmp_path) == ""

    class Disk:
        free = 10**9

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk)
    assert "1 GB are free" in bench_scale.refusal(10**8, 10**8, tmp_path)
    found = bench_scale.details({}, {10**8: "above --most 9"})
    assert found == {"sizes": {}, "not_run": {"100000000": "above --most 9"}}


def test_every_stage_does_its_work_whole_and_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imagenet_prep.crop import plan as crop_plan

    monkeypatch.setattr(crop_plan, "_bytes", crop_plan._bytes)  # is put back
    for parts in (1, 3):
        folder = tmp_path / str(parts)
        folder.mkdir()
        found: dict[str, dict[str, Any]] = {}
        for process in PROCESSES.values():
            found |= dict(process(Case(600, parts, folder)))
        assert set(found) == STAGES
        assert found["listing: labels, order, crop names"]["count"] == 600
        counts = {found[name]["count"] for name in STAGES if "journal" in name or "plan" in name}
        assert len(counts) == 1
        assert counts == {600} if parts == 1 else 150 < counts.pop() < 250
        assert found["journal, written"]["bytes"] > 300 * 150
        assert {path.name for path in folder.iterdir()} == {
            "crop.sqlite" if parts == 1 else "crop.1-of-3.sqlite"
        }


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Records of a machine with two cores that crops ten images a second with both."""

    def write(name: str, *rows: tuple[str, float, str, int], **more: Any) -> None:
        keys = ("what", "ours", "unit", "n")
        found = [dict(zip(keys, row, strict=True)) for row in rows]
        value = {"machine": {"cores": 2}, "rows": found, "details": {}, **more}
        (tmp_path / f"bench-{name}.json").write_text(json.dumps(value))

    write("crop", ("crop, whole stage", 10.0, "images/s", 9))
    write("stats", ("stats, two workers", 20.0, "images/s", 9))
    write("build", ("build jpeg, two workers", 40.0, "images/s", 9), details={"mean_bytes": 1e4})
    write("loader", ("loader, uint8 from JPEG", 200.0, "images/s", 9))
    write(
        "plan",
        ("plan of a first run", 2.0, "seconds", 1_000_000),
        ("plan of a first run", 0.5, "gb", 1_000_000),
        ("a second run", 4.0, "seconds", 2_000_000),
    )
    return tmp_path


def test_costs_are_images_times_rates_per_core(records: Path) -> None:
    rates = scale_costs.read_rates(records)
    assert (rates.crop, rates.stats, rates.build, rates.load) == (5, 10, 20, 100)
    assert (rates.plan_s, rates.second_run_s, rates.plan_gb) == (2, 2, None)
    given = scale_costs.options(["--cores", "7", "--gpu-rate", "250", "--core-hour", "3"])
    found = scale_costs.column(360_000, 1_000, rates, given)
    assert found["core-hours, crop"] == "20.0"
    assert found["core-hours, statistics"] == "10.0"
    assert found["core-hours, betons"] == "5.0"
    assert found["hours on 7 cores"] == "5.00"
    assert found["crops, and again the betons"] == "3.6 GB"
    assert found["cores that feed one GPU"] == "2.5"
    assert found["plan's memory"] == "not measured"
    assert found["price, preparing"] == "105"


def test_the_projects_own_records_give_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert scale_costs.main([]) == 0
    assert "| images | 1,281,167 | 14,197,122 | 400,000,000 |" in capsys.readouterr().out
