"""A full disk, a destination that becomes read-only, too few open files, sources that change.

The disks are small file systems in memory, mounted in a name space of the process, which needs
no rights outside it.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.command import (
    PREP,
    Ended,
    Running,
    contents,
    crops_of,
    must,
    needs_namespaces,
    one_message,
    prep,
)
from tests.kit.journal import failures


def on_small_disk(place: Path, size: str, script: str) -> Ended:
    """Runs a shell script with a file system of ``size`` in memory mounted on ``place``."""
    place.mkdir(parents=True, exist_ok=True)
    mount = f"mount -t tmpfs -o size={size} none '{place}'"
    return Running(["unshare", "-rm", "bash", "-c", f"{mount} && {script}"]).end()


def shell(*arguments: object) -> str:
    return " ".join(f"'{word}'" for word in [*PREP, *map(str, arguments)])


@needs_namespaces
def test_a_full_disk_ends_the_crop_with_complete_crops(
    many: Path, whole: Path, tmp_path: Path
) -> None:
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    copy = f"status=$?; cp -a '{disk}/cropped' '{kept}'; exit $status"
    command = shell("crop", "--src", many, "--dst", disk / "cropped", "--jobs", 2)
    ended = on_small_disk(disk, "600k", f"{command}; {copy}")
    assert "No space left on device" in one_message(ended)
    expected, found = crops_of(whole / "cropped"), contents(kept)
    crops = [name for name in found if name.endswith(".JPEG")]
    assert crops
    assert all(found[name] == expected[name] for name in crops)
    # With more space, the same command continues.
    must("crop", "--src", many, "--dst", kept, "--jobs", 2)
    assert contents(kept) == expected


@needs_namespaces
@pytest.mark.parametrize("stage", ["stats", "build"])
def test_a_full_disk_leaves_neither_statistics_nor_betons(
    stage: str, whole: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    where = {"stats": ("--out", disk / "stats.npz"), "build": ("--dst", disk)}[stage]
    command = shell(stage, "--src", whole / "cropped", *where, "--jobs", 1)
    ended = on_small_disk(disk, "64k", f"{command}; status=$?; ls -A '{disk}'; exit $status")
    assert "No space left on device" in one_message(ended) or "are free" in one_message(ended)
    assert ended.out.strip() == ""


@needs_namespaces
def test_a_folder_that_becomes_read_only_ends_the_crop(
    many: Path, whole: Path, tmp_path: Path
) -> None:
    dst, frozen = tmp_path / "cropped", tmp_path / "frozen"
    dst.mkdir()
    frozen.mkdir()
    prepare = f"mount --bind '{dst}' '{frozen}' && mount -o remount,bind,ro '{frozen}'"
    wait = f"until [ -s '{dst}/crop.sqlite' ] || ! kill -0 $pid 2>/dev/null; do :; done"
    command = shell("crop", "--src", many, "--dst", dst, "--jobs", 2)
    # A process that opens the path after the second bind finds the same folder, read-only.
    freeze = f"mount --bind '{frozen}' '{dst}'"
    script = f"{prepare}; {command} & pid=$!; {wait}; {freeze}; wait $pid"
    ended = Running(["unshare", "-rm", "bash", "-c", script]).end()
    assert "Read-only file system" in one_message(ended)
    must("crop", "--src", many, "--dst", dst, "--jobs", 2)
    assert contents(dst) == crops_of(whole / "cropped")


@pytest.mark.parametrize(("stage", "files"), [("crop", 4), ("stats", 4), ("build", 6)])
def test_too_few_open_files_are_one_error(
    stage: str, files: int, many: Path, whole: Path, tmp_path: Path
) -> None:
    source = many if stage == "crop" else whole / "cropped"
    where = {"crop": "--dst", "stats": "--out", "build": "--dst"}[stage]
    words = [stage, "--src", str(source), where, str(tmp_path / f"{stage}.npz"), "--jobs", "2"]
    words += ["--format", "raw"] if stage == "build" else []
    # Limited inside the process: with four open files Python itself does not start.
    script = (
        "import resource, sys; from imagenet_prep.cli import main as cli; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files})); "
        f"sys.exit(cli.run({words!r}))"
    )
    ended = Running([sys.executable, "-c", script]).end()
    assert "Too many open files" in one_message(ended)
    assert not [path for path in tmp_path.rglob("*.npz") if path.is_file()]
    assert not list(tmp_path.rglob("*.beton*"))


def test_a_source_that_vanishes_meanwhile_is_one_failure(many: Path, tmp_path: Path) -> None:
    ended = _while_it_crops(many, tmp_path, "victim.unlink()")
    assert ended.status == 0, ended.err
    assert failures(tmp_path / "cropped") == {
        "val/bee/zz.jpg": "cannot be read: No such file or directory"
    }


def test_a_source_that_changes_meanwhile_is_done_again(many: Path, tmp_path: Path) -> None:
    change = "victim.write_bytes((raw / 'train/ant/1.jpg').read_bytes())"
    ended = _while_it_crops(many, tmp_path, change)
    assert ended.status == 0, ended.err
    raw, dst = tmp_path / "raw", tmp_path / "cropped"
    again = prep("crop", "--src", raw, "--dst", dst, "--jobs", 1, "--json")
    counts = json.loads(again.out)
    assert (counts["ok"], counts["skipped"], counts["failed"]) == (1, 240, 0)
    must("crop", "--src", raw, "--dst", tmp_path / "whole", "--jobs", 1)
    assert contents(dst) == contents(tmp_path / "whole")


def _while_it_crops(many: Path, tmp_path: Path, change: str) -> Ended:
    """Crops a copy of ``many`` and changes its last source after the first was cropped."""
    raw = tmp_path / "raw"
    shutil.copytree(many, raw)
    victim = raw / "val/bee/zz.jpg"
    shutil.copy(raw / "val/bee/0.jpg", victim)
    script = f"""
import sys
from pathlib import Path
from imagenet_prep.cli import main as cli
from imagenet_prep.crop import run as crop_stage
raw, victim = Path({str(raw)!r}), Path({str(victim)!r})
real = crop_stage._crop_one
def changing(*task):
    if not done:
        done.append(1)
        {change}
    return real(*task)
done = []
crop_stage._crop_one = changing
sys.exit(cli.run(["crop", "--src", str(raw), "--dst", {str(tmp_path / "cropped")!r},
                  "--jobs", "1", "--json"]))
"""
    return Running([sys.executable, "-c", script]).end()


def test_a_file_without_read_permission_is_one_failure(
    make_raw: Callable[..., Path], tmp_path: Path
) -> None:
    raw = make_raw(train=2, val=0)
    closed = raw / "train/ant/ant0.jpg"
    closed.chmod(0)
    try:
        closed.read_bytes()
    except PermissionError:
        pass
    else:
        pytest.skip("this user (root) may read every file")
    must("crop", "--src", raw, "--dst", tmp_path / "cropped", "--jobs", 1)
    assert failures(tmp_path / "cropped") == {
        "train/ant/ant0.jpg": "cannot be read: Permission denied"
    }
