"""tools/demo.py: its table, its choice of images, and stages that fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.kit.command import Running
from tools import demo


def test_another_source_clears_what_the_last_one_made(tmp_path: Path) -> None:
    demo.begin(tmp_path, "pets")
    (tmp_path / "cropped").mkdir()
    (tmp_path / "val.beton").touch()
    (tmp_path / "mine.txt").touch()
    demo.begin(tmp_path, "pets")
    assert (tmp_path / "val.beton").exists()
    demo.begin(tmp_path, "planes")
    assert {path.name for path in tmp_path.iterdir()} == {".source", "mine.txt"}


def test_the_table_has_a_line_per_stage_and_empty_unknowns(tmp_path: Path) -> None:
    rows = [demo.Row("crop", 2500, 3.25, 800.0, "fine"), demo.Row("train", 0, 60.0, 0.0, "best")]
    recorded = [
        {"what": "crop, two workers", "rival": "others", "ratio": 9.0},
        {"what": "crop, two workers", "rival": "stock Pillow", "ratio": 1.502},
    ]
    (tmp_path / "bench-crop.json").write_text(json.dumps({"rows": recorded}))
    assert demo.table(rows, tmp_path).splitlines() == [
        "stage     images   seconds  images/s  recorded speed      result",
        "crop       2,500       3.2       800  1.5 x stock Pillow  fine",
        "train                 60.0                                best",
        "total                 63.2",
    ]


def test_every_stage_with_a_rival_is_in_the_records() -> None:
    assert [stage for stage in demo.RIVALS if not demo.over_rival(stage)] == []
    assert demo.over_rival("sample") == ""


def test_images_to_predict_are_whole_and_of_different_classes(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
        (tmp_path / name / "broken-text.jpg").touch()
        (tmp_path / name / "one.jpg").touch()
    found = demo.three_images(tmp_path)
    assert found == [str(tmp_path / name / "one.jpg") for name in "acd"]
    assert demo.three_images(tmp_path / "a") == []


def test_a_failing_stage_ends_the_demo_with_status_and_message(tmp_path: Path) -> None:
    words = ["tools/demo.py", "--src", tmp_path / "none", "--dst", tmp_path]
    result = Running([sys.executable, *words]).end()
    assert result.status == 2
    assert "no such folder" in result.err
    assert "Traceback" not in result.err


def test_a_killed_stage_is_named_and_is_no_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(demo, "command_line", lambda words: killed)
    with pytest.raises(demo.StageError, match="trainer run was ended by SIGKILL") as caught:
        demo.run_stage(["trainer", "run"])
    assert caught.value.status == 137
