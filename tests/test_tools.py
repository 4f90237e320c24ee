"""The scripts behind `make`: the demo's stages and table, the search for system packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import demo

REPOSITORY = Path(__file__).resolve().parent.parent


def fake_command(folder: Path, name: str, text: str) -> None:
    """Puts a shell script into ``folder``."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A folder for PATH in which only the shell's own helpers are."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "cat", "env", "id", "printf"):
        (folder / name).symlink_to(shutil.which(name) or pytest.fail(f"{name} is missing"))
    return folder


def run_system_deps(path: Path) -> subprocess.CompletedProcess[str]:
    """tools/system_deps.sh with nothing but ``path`` on PATH."""
    bash = shutil.which("bash") or pytest.fail("bash is missing")
    return subprocess.run(
        [bash, str(REPOSITORY / "tools" / "system_deps.sh")],
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
        cwd=path.parent,
        check=False,
    )


def test_without_a_package_manager_one_message_names_every_way(bare_path: Path) -> None:
    result = run_system_deps(bare_path)
    assert result.returncode == 1
    assert result.stdout == ""
    for word in ("libopencv-dev", "Fedora", "macOS", "conda", "there is no apt-get"):
        assert word in result.stderr


def test_nothing_missing_is_silent_and_calls_no_package_manager(bare_path: Path) -> None:
    for name in ("c++", "cc", "pkg-config", "python3", "uv"):
        fake_command(bare_path, name, "exit 0")
    fake_command(bare_path, "apt-get", "echo called >&2; exit 1")
    result = run_system_deps(bare_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_only_what_is_missing_is_installed_and_then_found(bare_path: Path) -> None:
    for name in ("c++", "cc", "python3", "uv", "apt-cache"):
        fake_command(bare_path, name, "exit 0")
    fake_command(bare_path, "pkg-config", f'[ "$2" != opencv4 ] || [ -e {bare_path}/installed ]')
    # As root apt-get is called itself, otherwise through sudo.
    fake_command(bare_path, "sudo", 'shift; [ "$1" = true ] || exec "$@"')
    fake_command(bare_path, "apt-get", f'echo "$@" >> {bare_path}/installed')
    result = run_system_deps(bare_path)
    assert result.returncode == 0
    calls = (bare_path / "installed").read_text().splitlines()
    assert len(calls) == 1
    assert calls[0].endswith("install -y --no-install-recommends libopencv-dev")


def test_a_failing_apt_get_is_tried_again_with_new_lists_and_then_explained(
    bare_path: Path,
) -> None:
    for name in ("c++", "cc", "python3", "uv", "apt-cache"):
        fake_command(bare_path, name, "exit 0")
    fake_command(bare_path, "pkg-config", "exit 1")
    fake_command(bare_path, "sudo", 'shift; [ "$1" = true ] || exec "$@"')
    fake_command(bare_path, "apt-get", f'echo "$4" >> {bare_path}/calls; [ "$4" = update ]')
    result = run_system_deps(bare_path)
    assert result.returncode == 1
    assert (bare_path / "calls").read_text().split() == ["install", "update", "install"]
    assert "apt-get failed" in result.stderr


def test_another_source_clears_what_the_last_one_made(tmp_path: Path) -> None:
    demo.begin(tmp_path, "pets")
    (tmp_path / "cropped").mkdir()
    (tmp_path / "val.beton").touch()
    (tmp_path / "mine.txt").touch()
    demo.begin(tmp_path, "pets")
    assert (tmp_path / "val.beton").exists()
    demo.begin(tmp_path, "planes")
    assert {path.name for path in tmp_path.iterdir()} == {".source", "mine.txt"}


def test_the_table_has_a_line_per_stage_and_leaves_unknowns_empty() -> None:
    rows = [demo.Row("crop", 2500, 3.25, 800.0, "fine"), demo.Row("train", 0, 60.0, 0.0, "best")]
    assert demo.table(rows).splitlines() == [
        "stage     images   seconds  images/s  result",
        "crop       2,500       3.2       800  fine",
        "train                 60.0            best",
        "in all                63.2",
    ]


def test_pictures_to_predict_are_of_different_classes_and_not_broken(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
        (tmp_path / name / "broken-text.jpg").touch()
        (tmp_path / name / "one.jpg").touch()
    found = demo.three_pictures(tmp_path)
    assert found == [str(tmp_path / name / "one.jpg") for name in "acd"]
    assert demo.three_pictures(tmp_path / "a") == []


def test_a_failing_stage_ends_the_demo_with_its_status_and_sentence(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "tools/demo.py", "--src", str(tmp_path / "none"), "--dst", str(tmp_path)],
        cwd=REPOSITORY,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "no such folder" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_killed_stage_is_named_with_a_status_that_is_not_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(demo, "command_line", lambda words: killed)
    with pytest.raises(demo.StageError, match="trainer run was ended by SIGKILL") as caught:
        demo.run_stage(["trainer", "run"])
    assert caught.value.status == 137


def test_a_stage_without_json_is_an_error_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo, "command_line", lambda words: [sys.executable, "-c", "print('hm')"])
    with pytest.raises(demo.StageError, match="printed no JSON object"):
        demo.run_stage(["trainer", "run"])
