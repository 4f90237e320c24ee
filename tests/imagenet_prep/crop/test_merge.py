"""A crop in parts: each its own run, together the bytes of one."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imagenet_prep.cli.main import run
from imagenet_prep.core.errors import ToolError, quiet
from imagenet_prep.crop import run as crop_stage
from imagenet_prep.crop.merge import merge_parts
from imagenet_prep.crop.run import CropReport, run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.dataset.journal import Part, part_journals
from tests.kit.errors import fails
from tests.kit.journal import journal_rows, list_crops, tree

SMALL = CropSettings(size=32)
PARTS = 3


def cropped(src: Path, dst: Path, part: Part | None = None, **options: Any) -> CropReport:
    return run_crop(src, dst, SMALL, jobs=1, progress=quiet, part=part, **options)


def in_parts(src: Path, dst: Path) -> list[CropReport]:
    return [cropped(src, dst, Part(number, PARTS)) for number in range(1, PARTS + 1)]


@pytest.fixture
def raw(make_raw: Callable[..., Path]) -> Path:
    """Sixteen good images and a broken one."""
    root = make_raw(train=6, val=2)
    (root / "train" / "ant" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much")
    return root


@pytest.fixture
def whole(raw: Path, tmp_path: Path) -> dict[str, bytes]:
    """What one run makes of them."""
    cropped(raw, tmp_path / "whole")
    return tree(tmp_path / "whole")


def test_parts_are_disjoint_and_of_similar_size() -> None:
    for parts in (1, 2, 3, 8, 64):
        counts = [0] * parts
        for index in range(6400):
            crop = f"train/n{index % 7}/n{index}.JPEG"
            has = [n for n in range(1, parts + 1) if Part(n, parts).has(crop)]
            assert len(has) == 1
            counts[has[0] - 1] += 1
            if index > 400 and parts == 64:
                break
        if parts < 64:
            assert max(counts) < 6400 / parts * 1.15 and min(counts) > 6400 / parts * 0.85


def test_parts_on_one_disk_merge_to_the_bytes_of_one_run(
    raw: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    dst = tmp_path / "cropped"
    reports = in_parts(raw, dst)
    assert sum(report.ok for report in reports) == 16
    assert sum(report.failed for report in reports) == 1
    assert sorted(part_journals(dst)) == [Part(number, PARTS) for number in (1, 2, 3)]
    merged = merge_parts(dst)
    assert (merged.parts, merged.ok, merged.failed) == (3, 16, 1)
    assert list(merged.reasons) == list(
        reports[0].reasons | reports[1].reasons | reports[2].reasons
    )
    assert tree(dst) == whole


def test_parts_copied_together_merge(raw: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    dst = tmp_path / "together"
    for number in (2, 3, 1):
        own = tmp_path / f"disk{number}"
        cropped(raw, own, Part(number, PARTS))
        shutil.copytree(own, dst, dirs_exist_ok=True)
    merge_parts(dst)
    assert tree(dst) == whole


def test_a_whole_run_takes_over_what_the_parts_have_made(
    raw: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    dst = tmp_path / "cropped"
    cropped(raw, dst, Part(1, PARTS))
    cropped(raw, dst, Part(3, PARTS))
    done = len(tree(dst)) - 3
    report = cropped(raw, dst)
    assert report.skipped == done and report.ok == 16 - done
    assert tree(dst) == whole
    assert cropped(raw, dst).tried == 0


def test_a_stopped_part_continues_and_leaves_the_others_alone(
    raw: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dst = tmp_path / "cropped"
    cropped(raw, dst, Part(1, PARTS))
    other = dst / "train/ant/.1-of-3.9-ab-1.tmp"
    other.write_bytes(b"part 1 on another machine is writing this")
    own = dst / "train/ant/.2-of-3.9-ab-1.tmp"
    own.write_bytes(b"a killed run of part 2 left this")
    real, tried = crop_stage._crop_one, []

    def killed_at_the_second(*task: Any) -> Any:
        tried.append(task)
        if len(tried) == 2:
            raise KeyboardInterrupt
        return real(*task)

    monkeypatch.setattr(crop_stage, "_crop_one", killed_at_the_second)
    monkeypatch.setattr(crop_stage, "CHUNK", 1)
    with pytest.raises(KeyboardInterrupt):
        cropped(raw, dst, Part(2, PARTS))
    monkeypatch.undo()
    assert other.exists() and not own.exists()
    with fails("merge.parts_missing", "2 are missing or not finished (2, 3)"):
        merge_parts(dst)
    assert cropped(raw, dst, Part(2, PARTS)).skipped == 1
    cropped(raw, dst, Part(3, PARTS))
    other.unlink()
    merge_parts(dst)
    assert tree(dst) == whole


def test_parts_of_changed_sources_are_refused_until_run_again(raw: Path, tmp_path: Path) -> None:
    dst = tmp_path / "cropped"
    in_parts(raw, dst)
    shutil.copy(raw / "train/ant/ant0.jpg", raw / "train/ant/more.jpg")
    gone = raw / "train/bee/bee1.jpg"
    gone.unlink()
    shutil.copy(raw / "train/ant/ant0.jpg", raw / "train/ant/again.jpg")
    cropped(raw, dst, Part(2, PARTS))
    with fails("merge.other_sources"):
        merge_parts(dst)
    assert sum(report.tried for report in in_parts(raw, dst)) <= 2
    merge_parts(dst)
    cropped(raw, tmp_path / "fresh")
    assert tree(dst) == tree(tmp_path / "fresh")


def test_a_merge_that_was_killed_before_its_end_is_done_again(
    raw: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    dst = tmp_path / "cropped"
    in_parts(raw, dst)
    shutil.copytree(dst, tmp_path / "copy")
    merge_parts(dst)
    for name in ("crop.1-of-3.sqlite", "crop.3-of-3.sqlite"):  # the parts are removed last
        shutil.copy(tmp_path / "copy" / name, dst / name)
        merge_parts(dst)
        assert tree(dst) == whole


def test_merge_does_not_roll_back_into_the_new_journal(
    raw: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    dst, killed = tmp_path / "cropped", tmp_path / "killed"
    in_parts(raw, dst)
    run_crop(raw, killed, replace(SMALL, quality=30), jobs=1)
    with contextlib.closing(sqlite3.connect(killed / "crop.sqlite", isolation_level=None)) as run:
        run.execute("PRAGMA cache_size = 1")
        run.execute("BEGIN")
        run.execute("UPDATE source SET remark = hex(randomblob(900))")
        for name in ("crop.sqlite", "crop.sqlite-journal"):
            shutil.copy(killed / name, dst / name)
        run.execute("ROLLBACK")
    assert (dst / "crop.sqlite-journal").stat().st_size > 4096
    merge_parts(dst)
    assert tree(dst) == whole


def test_one_part_beside_an_older_whole_run_is_not_merged(raw: Path, tmp_path: Path) -> None:
    dst, other = tmp_path / "cropped", tmp_path / "other"
    cropped(raw, dst)
    run_crop(raw, other, replace(SMALL, quality=30), jobs=1, part=Part(1, PARTS))
    shutil.copytree(other, dst, dirs_exist_ok=True)
    with fails("merge.parts_missing", "of 3 parts 2 are missing or not finished (2, 3)"):
        merge_parts(dst)


def test_the_parts_count_and_not_an_older_whole_run(raw: Path, tmp_path: Path) -> None:
    dst, new = tmp_path / "cropped", tmp_path / "new"
    cropped(raw, dst)
    settings = replace(SMALL, quality=30)
    for number in range(1, PARTS + 1):
        run_crop(raw, new, settings, jobs=1, part=Part(number, PARTS))
    shutil.copytree(new, dst, dirs_exist_ok=True)
    merge_parts(dst)
    run_crop(raw, tmp_path / "whole", settings, jobs=1)
    assert tree(dst) == tree(tmp_path / "whole")


def test_parts_with_other_labels_or_settings_are_refused(raw: Path, tmp_path: Path) -> None:
    reverse = tmp_path / "reverse.txt"
    reverse.write_text("bee\nant\n")
    for name, settings, classes, code in (
        ("labels", SMALL, reverse, "merge.other_classes"),
        ("settings", replace(SMALL, quality=30), None, "merge.other_settings"),
    ):
        dst, other = tmp_path / name, tmp_path / f"{name}-other"
        for number in (1, 2):
            cropped(raw, dst, Part(number, PARTS))
        run_crop(raw, other, settings, classes=classes, jobs=1, part=Part(3, PARTS))
        (other / "classes.txt").unlink(missing_ok=True)
        shutil.copytree(other, dst, dirs_exist_ok=True)
        with fails(code):
            merge_parts(dst)
        assert not (dst / "crop.sqlite").exists()


def test_parts_and_whole_runs_are_not_mixed_up(raw: Path, tmp_path: Path) -> None:
    dst = tmp_path / "cropped"
    cropped(raw, dst, Part(1, PARTS))
    with fails("crop.other_parts", usage=True):
        cropped(raw, dst, Part(1, 2))
    with fails("crop.parts_not_merged"):
        list_crops(dst, "train")
    (raw / "train/cat").mkdir()
    shutil.copy(raw / "train/ant/ant0.jpg", raw / "train/cat/1.jpg")
    with fails("crop.other_classes"):
        cropped(raw, dst, Part(2, PARTS))
    cropped(raw, tmp_path / "other")
    with fails("crop.made_whole", usage=True):
        cropped(raw, tmp_path / "other", Part(1, 2))
    with fails("merge.no_parts"):
        merge_parts(tmp_path / "other")


def test_two_parts_may_run_at_once_but_no_whole_run_beside_them(raw: Path, tmp_path: Path) -> None:
    dst = tmp_path / "cropped"
    asked: list[int] = []

    def meanwhile(what: str, done: int, total: int) -> None:
        if not asked:
            asked.append(done)
            cropped(raw, dst, Part(2, PARTS))
            for part in (None, Part(1, PARTS)):
                with fails("crop.busy"):
                    cropped(raw, dst, part)

    run_crop(raw, dst, SMALL, jobs=1, part=Part(1, PARTS), progress=meanwhile)
    cropped(raw, dst, Part(3, PARTS))
    assert merge_parts(dst).ok == 16


def test_a_part_without_sources_is_whole(make_raw: Callable[..., Path], tmp_path: Path) -> None:
    raw, dst = make_raw(train=1, val=0), tmp_path / "cropped"
    reports = [cropped(raw, dst, Part(number, 20)) for number in range(1, 21)]
    assert sorted({report.ok for report in reports}) in ([0, 1], [0, 1, 2], [0, 2])
    assert merge_parts(dst).ok == 2


def test_a_part_whose_sources_all_fail_is_whole(
    make_raw: Callable[..., Path], tmp_path: Path
) -> None:
    raw, dst = make_raw(train=1, val=0), tmp_path / "cropped"
    for path in sorted(raw.rglob("*.jpg"))[1:]:
        path.write_bytes(b"no image")
    for number in range(1, 5):
        run_crop(raw, dst, SMALL, jobs=1, max_failures=None, part=Part(number, 4))
    assert merge_parts(dst).failed == 1


def test_a_damaged_part_is_not_merged(raw: Path, tmp_path: Path) -> None:
    dst = tmp_path / "cropped"
    in_parts(raw, dst)
    path = dst / "crop.2-of-3.sqlite"
    data, rows = path.read_bytes(), journal_rows(path)
    for wrong in (data[:-5], data[: len(data) // 2], bytes(len(data)), b""):
        path.write_bytes(wrong)
        with pytest.raises(ToolError, match=r"crop\.2-of-3\.sqlite: ") as caught:
            merge_parts(dst)
        assert caught.value.code in ("crop.journal_damaged", "crop.journal_incomplete")
        assert not (dst / "crop.sqlite").exists()
    path.write_bytes(data)
    with contextlib.closing(sqlite3.connect(path)) as part:
        part.execute("DELETE FROM source WHERE key = ?", (rows[0]["key"],))
        part.commit()
    with fails("crop.journal_incomplete"):
        merge_parts(dst)


def test_the_commands(
    raw: Path, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dst = tmp_path / "cropped"
    arguments = ["crop", "--src", str(raw), "--dst", str(dst), "--size", "32", "--jobs", "1"]
    assert run([*arguments, "--part", "1/2"]) == 0
    assert run(["merge", str(dst)]) == 1
    assert "of 2 parts 1 are missing or not finished (2)" in capsys.readouterr().err
    assert run([*arguments, "--part", "2/2"]) == 0
    assert run(["failures", str(dst)]) == 0
    assert "train/ant/broken.jpg\t" in capsys.readouterr().out
    assert run(["merge", str(dst)]) == 0
    assert "2 parts in" in capsys.readouterr().out
    assert tree(dst) == whole
    assert run([*arguments, "--part", "3/2"]) == 2
