"""Two hosts, as network namespaces, whose link is cut: the short form of the rehearsal."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.trainer.conftest import Sample

TOOL = Path(__file__).resolve().parents[3] / "tools" / "rehearse_hosts.py"
RECIPE = (
    "--network plain --batch-size 3 --crop-size 56 --warmup-epochs 0.5 --checkpoint-every 2 "
    "--device cpu --precision float32 --jobs 1"
)


def rehearsal(sample: Sample, *words: str, epochs: int) -> dict[str, Any]:
    """What happened; skips where there can be no namespaces."""
    ended = subprocess.run(
        [
            *(sys.executable, str(TOOL), "--json", "--direct", "--beton", str(sample.path)),
            *("--program", "tests.kit.rank_run", "--limit-s", "400"),
            *("--words", f"{RECIPE} --epochs {epochs}", *words),
        ],
        capture_output=True, text=True, timeout=850, check=False,
    )  # fmt: skip
    if ended.returncode == 2 and ended.stderr.startswith("rehearse_hosts: "):
        pytest.skip(ended.stderr.strip())
    assert ended.stdout, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    assert ended.returncode == found["status"]
    return found


def test_a_run_outlives_a_short_cut_of_the_link(small_beton: Sample) -> None:
    found = rehearsal(small_beton, "--cut-s", "2", "--timeout-s", "120", epochs=12)
    assert found["cut"], found
    assert found["statuses"] == [0, 0], found
    assert found["damaged"] == []
    assert found["written_by_host_2"] == []
    assert found["verdict"] == "the run was finished without a restart; every file is whole"


def test_a_cut_beyond_the_timeout_ends_each_host_with_one_error(small_beton: Sample) -> None:
    found = rehearsal(small_beton, "--cut-s", "300", "--timeout-s", "20", epochs=2000)
    assert found["ended_in_the_cut"], found
    assert found["statuses"] == [1, 1]
    for rank, lines in enumerate(found["output"]):
        (message,) = [line for line in lines if line.startswith("trainer: ")]
        assert message.startswith(
            f"trainer: rank {rank} of 2: another process did not answer for 20 s (--timeout)"
        )
        assert not any("Traceback" in line for line in lines)
    assert found["damaged"] == []
    assert found["verdict"] == "every process ended with one error message; every file is whole"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("rehearse_hosts", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_damaged_files_are_found(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "config.json").write_text('{"run": ')
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo')
    (tmp_path / "report.html").write_text("<html>")
    (tmp_path / ".best.pt.x.tmp").write_bytes(b"")
    found = tool.damaged(tmp_path)
    assert [Path(line.split(":")[0]).name for line in found[1:]] == ["last.pt", "report.html"]
    assert len(found) == 3  # a torn last line of the metrics is an ordinary thing


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({}, 0, "finished without a restart"),
        ({"cut": False}, 1, "did not come as far"),
        ({"damaged": ["last.pt: cut short"]}, 1, "damaged: last.pt: cut short"),
        ({"ended_by_themselves": False}, 1, "did not end by itself"),
        ({"statuses": [1, 1]}, 1, "more than one error message"),
        ({"statuses": [1, 1], "output": [["trainer: rank 0"], ["trainer: rank 1"]]}, 0, "with one"),
        ({"output": [["trainer: rank 0"], ["trainer: rank 1"]]}, 0, "after 1 restarts"),
    ],
)
def test_a_verdict_names_what_happened(
    tool: ModuleType, change: dict[str, Any], status: int, words: str
) -> None:
    good = {"cut": True, "damaged": [], "ended_by_themselves": True, "statuses": [0, 0]}
    found = tool.verdict(good | {"output": [[], []]} | change)
    assert found[0] == status
    assert words in found[1]
