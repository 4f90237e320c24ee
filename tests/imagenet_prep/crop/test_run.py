"""``crop`` on folders: the journal, restarts, changes, faults, and what list_crops believes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imagenet_prep.core.errors import quiet
from imagenet_prep.crop import run as crop_stage
from imagenet_prep.crop.decode import ImageError
from imagenet_prep.crop.run import CropReport, run_crop
from imagenet_prep.dataset.classes import load_classes
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.dataset.journal import UNFINISHED_NAME, Crops
from imagenet_prep.workers.processes import Local
from tests.conftest import jpeg_bytes, smooth_pixels
from tests.kit.errors import fails
from tests.kit.journal import failures, journal_rows, list_crops, tree

SMALL = CropSettings(size=32)


def cropped(src: Path, dst: Path, settings: CropSettings = SMALL, **options: Any) -> CropReport:
    options = {"jobs": 1, "max_failures": None, "progress": quiet, **options}
    return run_crop(src, dst, settings, **options)


def counts(report: CropReport) -> tuple[int, int, int]:
    return report.ok, report.failed, report.skipped


def journal(dst: Path) -> list[dict[str, Any]]:
    return journal_rows(dst / "crop.sqlite")


@pytest.fixture
def raw(make_raw: Callable[..., Path]) -> Path:
    """Four good images of train, two of val, and a broken one."""
    root = make_raw(train=2, val=1)
    (root / "train" / "ant" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much")
    return root


def test_every_source_is_cropped_or_failed_and_in_the_journal(raw: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    dst = tmp_path / "cropped"
    report = cropped(raw, dst, progress=lambda what, done, total: seen.append((done, total)))
    assert counts(report) == (6, 1, 0)
    [(failed, reason)] = failures(dst).items()
    assert report.reasons == {reason: 1}
    assert failed == "train/ant/broken.jpg"
    assert seen[0] == (0, 7) and seen[-1] == (7, 7)
    lines = {line["key"]: line for line in journal(dst)}
    assert len(lines) == 7
    line = lines["val/bee/bee0.jpg"]
    assert line["status"] == "ok" and line["label"] == 1 and line["crop"] == "val/bee/bee0.JPEG"
    assert line["bytes"] == (raw / "val/bee/bee0.jpg").stat().st_size
    assert (line["width"], line["height"], line["mode"]) == (110, 70, "RGB")
    assert line["crop_bytes"] == (dst / line["crop"]).stat().st_size
    assert lines["train/ant/broken.jpg"]["status"] == "failed"
    assert not (dst / "train/ant/broken.JPEG").exists()
    assert load_classes(dst).names == ("ant", "bee")


def test_list_crops_gives_the_good_ones_sorted_with_labels(raw: Path, tmp_path: Path) -> None:
    dst = tmp_path / "cropped"
    cropped(raw, dst)
    assert list_crops(dst, "train") == [
        ("train/ant/ant0.JPEG", 0),
        ("train/ant/ant1.JPEG", 0),
        ("train/bee/bee0.JPEG", 1),
        ("train/bee/bee1.JPEG", 1),
    ]
    assert Crops(dst).splits == ("train", "val")
    assert Crops(dst).settings == SMALL.text()
    with fails("crop.no_split"):
        list_crops(dst, "test")


def test_a_crop_that_is_gone_is_named_and_made_again(raw: Path, tmp_path: Path) -> None:
    dst = tmp_path / "cropped"
    cropped(raw, dst)
    before = list_crops(dst, "train")
    (dst / "train/bee/bee1.JPEG").unlink()
    with fails("crop.missing", "bee1.JPEG"):
        list_crops(dst, "train")
    assert list_crops(dst, "val")
    assert cropped(raw, dst).ok == 1
    assert list_crops(dst, "train") == before


def test_a_run_that_is_stopped_leaves_no_temporary_files(raw: Path, tmp_path: Path) -> None:
    dst = tmp_path / "cropped"
    cropped(raw, dst)

    def stop(what: str, done: int, total: int) -> None:
        (dst / "train/ant/.1-2.tmp").write_bytes(b"what a stopped worker leaves")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_crop(raw, dst, replace(SMALL, quality=50), jobs=1, progress=stop)
    assert not list(dst.rglob("*.tmp"))
    assert (dst / UNFINISHED_NAME).exists()


def test_a_second_run_does_nothing_and_counts_everything(raw: Path, tmp_path: Path) -> None:
    dst = tmp_path / "cropped"
    cropped(raw, dst)
    before = tree(dst)
    report = cropped(raw, dst)
    assert counts(report) == (0, 1, 6) and report.tried == 0
    assert tree(dst) == before


def test_only_what_changed_or_vanished_is_done_again(raw: Path, tmp_path: Path) -> None:
    dst = tmp_path / "cropped"
    cropped(raw, dst)
    whole = (raw / "train/ant/ant0.jpg").read_bytes()
    (raw / "train/ant/broken.jpg").write_bytes(whole)
    (raw / "train/ant/ant1.jpg").write_bytes(b"now it is text")
    (raw / "val/bee/bee0.jpg").unlink()
    (dst / "train/bee/bee0.JPEG").unlink()
    report = cropped(raw, dst)
    assert counts(report) == (2, 1, 3)
    assert not (dst / "val/bee/bee0.JPEG").exists()
    assert not (dst / "train/ant/ant1.JPEG").exists()
    assert "val/bee/bee0.jpg" not in {line["key"] for line in journal(dst)}


def test_a_new_class_moves_the_labels_of_crops_that_stay(raw: Path, tmp_path: Path) -> None:
    dst = tmp_path / "cropped"
    cropped(raw, dst)
    (raw / "train" / "aardvark").mkdir()
    (raw / "train/aardvark/1.jpg").write_bytes((raw / "train/ant/ant0.jpg").read_bytes())
    assert counts(cropped(raw, dst)) == (1, 1, 6)
    assert dict(list_crops(dst, "train"))["train/bee/bee0.JPEG"] == 2


def test_other_settings_do_everything_again(raw: Path, tmp_path: Path) -> None:
    dst = tmp_path / "cropped"
    told: list[str] = []
    for _ in range(2):
        cropped(raw, dst, notice=told.append)
    assert not told
    report = cropped(raw, dst, CropSettings(size=16), notice=told.append)
    assert told == [f"6 crops in {dst} have other settings and are made again"]
    assert counts(report) == (6, 1, 0)
    cropped(raw, tmp_path / "fresh", CropSettings(size=16))
    assert tree(tmp_path / "fresh") == tree(dst)


def test_the_result_does_not_depend_on_the_number_of_workers(raw: Path, tmp_path: Path) -> None:
    for index in range(8):  # more than a chunk, so that processes start
        (raw / f"train/bee/more{index}.txt.jpg").write_bytes(
            (raw / "train/bee/bee0.jpg").read_bytes()
        )
    cropped(raw, tmp_path / "one")
    assert counts(cropped(raw, tmp_path / "two", jobs=2)) == (14, 1, 0)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_killed_run_is_continued_to_the_same_result(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cropped(raw, tmp_path / "whole")
    dst = tmp_path / "cropped"
    real = crop_stage._crop_one
    tried: list[Any] = []

    def killed_at_the_fourth(*task: Any) -> Any:
        tried.append(task)
        if len(tried) == 4:
            raise KeyboardInterrupt
        return real(*task)

    monkeypatch.setattr(crop_stage, "_crop_one", killed_at_the_fourth)
    monkeypatch.setattr(crop_stage, "CHUNK", 1)
    with pytest.raises(KeyboardInterrupt):
        cropped(raw, dst)
    monkeypatch.undo()
    assert len(journal(dst)) == 3
    with fails("crop.unfinished"):
        list_crops(dst, "train")
    (dst / "train/ant/.1-2.tmp").write_bytes(b"half")  # a kill also leaves this
    assert counts(cropped(raw, dst)) == (4, 1, 2)
    assert tree(dst) == tree(tmp_path / "whole")


def test_a_damaged_journal_is_an_error_until_it_is_deleted(raw: Path, tmp_path: Path) -> None:
    dst = tmp_path / "cropped"
    cropped(raw, dst)
    before = tree(dst)
    data = (dst / "crop.sqlite").read_bytes()
    for damage in (b"no journal" * 1000, data[:4096], data[: len(data) // 2], data[:-1]):
        (dst / "crop.sqlite").write_bytes(damage)
        with fails("crop.journal_damaged", str(dst / "crop.sqlite")):
            list_crops(dst, "train")
        with fails("crop.journal_damaged"):
            cropped(raw, dst)
        (dst / UNFINISHED_NAME).unlink(missing_ok=True)
    (dst / "crop.sqlite").unlink()
    assert counts(cropped(raw, dst)) == (6, 1, 0)
    assert tree(dst) == before


def test_a_row_that_names_a_crop_outside_removes_nothing_there(raw: Path, tmp_path: Path) -> None:
    dst, outside = tmp_path / "cropped", tmp_path / "precious.JPEG"
    cropped(raw, dst)
    outside.write_bytes(b"not yours")
    with contextlib.closing(sqlite3.connect(dst / "crop.sqlite")) as connection:
        connection.execute("UPDATE source SET crop = '../precious.JPEG' WHERE label = 1")
        connection.commit()
    with fails("crop.journal_incomplete"):
        list_crops(dst, "train")
    assert counts(cropped(raw, dst)) == (3, 1, 3)
    assert outside.read_bytes() == b"not yours"


def test_a_disk_without_locks_is_one_error(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with fails("crop.journal_unlockable", "No locks available"):
        cropped(raw, tmp_path / "cropped")
    monkeypatch.undo()
    monkeypatch.setattr("imagenet_prep.dataset.journal._WAIT_S", 0.01)
    cropped(raw, tmp_path / "cropped")
    with contextlib.closing(sqlite3.connect(tmp_path / "cropped" / "crop.sqlite")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with fails("crop.journal_unlockable", "database is locked"):
            list_crops(tmp_path / "cropped", "train")


def test_a_crop_that_a_power_cut_emptied_is_made_again(raw: Path, tmp_path: Path) -> None:
    dst = tmp_path / "cropped"
    cropped(raw, dst)
    before = tree(dst)
    (dst / "val/bee/bee0.JPEG").write_bytes(b"")
    assert counts(cropped(raw, dst)) == (1, 1, 5)
    assert tree(dst) == before


def test_more_failures_than_allowed_stop_the_run(raw: Path, tmp_path: Path) -> None:
    with fails("crop.too_many_failures", "1 images could not be cropped, more than the 0"):
        cropped(raw, tmp_path / "cropped", max_failures=0)
    assert (tmp_path / "cropped" / UNFINISHED_NAME).exists()
    assert cropped(raw, tmp_path / "cropped", max_failures=1).failed == 1


def test_nothing_cropped_names_the_commonest_reason(tmp_path: Path) -> None:
    src = tmp_path / "raw"
    (src / "ant").mkdir(parents=True)
    for name, data in (("1.jpg", b""), ("2.jpg", b"text"), ("3.jpg", b"words")):
        (src / "ant" / name).write_bytes(data)
    with fails("crop.nothing_cropped", "2 of them: not an image"):
        cropped(src, tmp_path / "cropped")


def test_a_class_whose_images_all_failed_is_reported(raw: Path, tmp_path: Path) -> None:
    assert not cropped(raw, tmp_path / "cropped").failed_classes
    for path in (raw / "train" / "bee").iterdir():
        path.write_bytes(b"no image")
    report = cropped(raw, tmp_path / "cropped")
    assert report.failed_classes == ["train: all images of 1 classes failed: bee"]


def test_crops_outlive_the_disk_of_their_images(
    make_raw: Callable[..., Path], tmp_path: Path
) -> None:
    raw, dst, source = make_raw(train=2, val=1), tmp_path / "cropped", tmp_path / "list.csv"
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in raw.rglob("*.jpg")]
    source.write_text("\n".join(["path,label", *sorted(rows)]))
    assert counts(cropped(source, dst)) == (6, 0, 0)
    before = tree(dst)
    raw.rename(tmp_path / "away")
    with fails("crop.sources_missing", "all 6 source images"):
        cropped(source, dst)
    assert {k: v for k, v in tree(dst).items() if k != UNFINISHED_NAME} == before
    (tmp_path / "away").rename(raw)
    assert counts(cropped(source, dst)) == (0, 0, 6)
    # Where nothing was cropped there is nothing to keep: it is tried again.
    raw.rename(tmp_path / "away")
    for _ in range(2):
        with fails("crop.nothing_cropped"):
            cropped(source, tmp_path / "other")


def test_what_only_this_machine_cannot_decode_is_tried_again(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dst = tmp_path / "cropped"

    def lacks(*_: object) -> Any:
        raise ImageError("image.unsupported_here", "JPEG needs a package")

    with monkeypatch.context() as patch:
        patch.setattr(crop_stage, "crop_image", lacks)
        with fails("crop.nothing_cropped", "7 of them: JPEG needs a package"):
            cropped(raw, dst)
    assert counts(cropped(raw, dst)) == (6, 1, 0)


def test_an_unreadable_source_is_one_failure(raw: Path, tmp_path: Path) -> None:
    (raw / "train/ant/gone.jpg").symlink_to(tmp_path / "nothing")
    cropped(raw, tmp_path / "cropped")
    assert failures(tmp_path / "cropped")["train/ant/gone.jpg"].startswith("cannot be read: ")


@pytest.mark.parametrize(("src", "dst"), [("raw", "raw"), ("raw", "raw/out"), ("raw/train", "raw")])
def test_source_and_destination_must_not_lie_in_one_another(raw: Path, src: str, dst: str) -> None:
    before = tree(raw)
    with fails("crop.places_overlap", usage=True):
        cropped(raw.parent / src, raw.parent / dst)
    assert tree(raw) == before


def test_a_folder_of_other_images_is_no_destination(
    raw: Path, make_raw: Callable[..., Path]
) -> None:
    other = make_raw(name="other")
    before = tree(other)
    with fails("crop.foreign_folder", usage=True):
        cropped(raw, other)
    assert tree(other) == before


def test_a_file_is_no_destination(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with fails("crop.no_folder", usage=True):
        cropped(raw, tmp_path / "file")


def test_two_runs_at_a_time_are_refused(raw: Path, tmp_path: Path) -> None:
    dst = tmp_path / "cropped"

    def second(what: str, done: int, total: int) -> None:
        with fails("crop.busy"):
            cropped(raw, dst)

    assert cropped(raw, dst, progress=second).ok == 6


def test_a_folder_that_crop_did_not_make_has_no_crops(tmp_path: Path) -> None:
    with fails("crop.no_journal"):
        list_crops(tmp_path, "train")
    with fails("crop.no_folder", usage=True):
        list_crops(tmp_path / "none", "train")


def test_odd_files_all_get_an_outcome(shared_data: Path, tmp_path: Path) -> None:
    report = cropped(shared_data / "odd", tmp_path / "cropped")
    assert report.ok + report.failed == 174
    assert report.ok > 90 and report.reasons["empty file"] == 1


class Elsewhere:
    """Workers that are not this machine's, one of which dies while it writes; the work goes on."""

    count = 1
    died = False

    def __init__(self, left: Path) -> None:
        self._left = left

    def map(self, *work: Any) -> Iterator[Any]:
        for result in Local(1).map(*work):
            self._left.write_bytes(b"half")
            self.died = True
            yield result


def test_what_a_dead_worker_of_a_cluster_left_is_gone_at_the_end(raw: Path, tmp_path: Path) -> None:
    dst = tmp_path / "cropped"
    left = dst / "train/ant/.1-2.tmp"
    workers = Elsewhere(left)
    assert counts(cropped(raw, dst, jobs=workers)) == (6, 1, 0)
    assert workers.died
    assert not left.exists()
    assert not list(dst.rglob("*.tmp"))


def test_names_that_are_not_utf_8_are_cropped(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "ant"
    folder.mkdir(parents=True)
    try:
        with open(os.fsencode(folder) + b"/caf\xe9.jpg", "wb") as file:  # noqa: PTH123
            file.write(jpeg_bytes(smooth_pixels(40, 50, 1)))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    for tried in (1, 0):
        report = run_crop(tmp_path / "raw", tmp_path / "cropped", CropSettings(size=16), jobs=1)
        assert (report.tried, report.failed) == (tried, 0)
    assert (tmp_path / "cropped/train/ant/caf\\xe9.JPEG").is_file()
