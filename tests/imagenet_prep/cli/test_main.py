"""The command line of imagenet-prep: results, error messages, exit statuses, and Ctrl-C."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagenet_prep.cli import main as cli
from imagenet_prep.cli import options
from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset.manifest import load_manifest
from imagenet_prep.dataset.statistics import load_stats
from tests.kit.command import (
    PREP,
    REPOSITORY,
    Running,
    command_line,
    descendants,
    one_message,
    python,
)
from tests.kit.journal import journal_rows

COMMANDS = [
    "sample",
    "crop",
    "merge",
    "failures",
    "stats",
    "build",
    "index",
    "verify",
    "prepare",
    "info",
]
FAILURES = "crop.too_many_failures"
NOTICE = re.compile(
    r"^(?:layout|note:) .*\n|^crop: \d+ of \d+\n", re.MULTILINE
)  # crop: a slow machine
Capture = pytest.CaptureFixture[str]


def answer(capsys: Capture, *arguments: object) -> dict[str, Any]:
    """The one JSON object on stdout of a command that must succeed."""
    assert cli.run([*map(str, arguments), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


def complaint(capsys: Capture, status: int, *arguments: object) -> str:
    """What a command prints on stderr when it ends with ``status``."""
    assert cli.run([*map(str, arguments)]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return NOTICE.sub("", captured.err)


@pytest.fixture
def raw(make_raw: Callable[..., Path]) -> Path:
    """Small images in splits, and a file that is none."""
    root = make_raw(train=3, val=1)
    (root / "train" / "ant" / "empty.jpg").write_bytes(b"")
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(capsys: Capture, command: str) -> None:
    assert cli.run([command, "--help"]) == 0
    assert f"Example: imagenet-prep {command}" in capsys.readouterr().out


def test_the_list_of_commands_cuts_no_text_off(capsys: Capture) -> None:
    assert cli.run(["--help"]) == 0
    rows = capsys.readouterr().out.partition("Commands:")[2].splitlines()
    assert len([row for row in rows if row.endswith(".")]) == len(COMMANDS)
    assert not [row for row in rows if row.endswith("...")]


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys; from imagenet_prep.cli.main import run; "
        "assert run(['--help']) == 0 and run(['crop', '--help']) == 0 and run(['--version']) == 0; "
        "heavy = {'PIL', 'numpy', 'joblib', 'torch', 'ffcv', 'numba', 'matplotlib', 'tqdm'}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    assert "imagenet-prep, version" in python("-c", code)


def test_the_three_stages_and_their_json(capsys: Capture, raw: Path, tmp_path: Path) -> None:
    cropped, out = tmp_path / "cropped", tmp_path / "out"
    one = ("--jobs", 1)
    first = answer(capsys, "crop", "--src", raw, "--dst", cropped, "--size", 64, *one)
    assert (first["ok"], first["failed"], first["skipped"]) == (8, 1, 0)
    assert first["reasons"] == {"empty file": 1}
    assert first["seconds"] > 0 and first["images_per_second"] > 0
    again = answer(capsys, "crop", "--src", raw, "--dst", cropped, "--size", 64, *one)
    assert (again["ok"], again["failed"], again["skipped"]) == (0, 1, 8)

    plot = tmp_path / "stats.png"
    figures = answer(capsys, "stats", "--src", cropped, "--image", plot, *one)
    assert (figures["images"], figures["size"]) == (6, 64)
    assert figures["out"] == str(cropped / "stats.npz")
    assert {len(figures[key]) for key in ("channel_mean", "channel_std", "eigenstdev")} == {3}
    assert plot.read_bytes().startswith(b"\x89PNG")

    built = answer(capsys, "build", "--src", cropped, "--dst", out, *one)
    assert [(Path(b["path"]).name, b["samples"]) for b in built["betons"]] == [
        ("train.beton", 6),
        ("val.beton", 2),
    ]
    manifest = load_manifest(out / "train.beton")
    assert manifest.digest == built["betons"][0]["digest"]
    assert load_stats(out / "train.stats.npz").count == 6


def test_prepare_puts_everything_into_one_folder(
    capsys: Capture, raw: Path, tmp_path: Path
) -> None:
    dst = tmp_path / "made"
    value = answer(capsys, "prepare", "--src", raw, "--dst", dst, "--size", 32, "--jobs", 1)
    assert value["crop"]["ok"] == 8 and value["stats"]["size"] == 32
    assert sorted(path.name for path in dst.iterdir()) == [
        "cropped",
        "prepared.json",
        "train.beton",
        "train.beton.json",
        "train.beton.rows",
        "train.stats.npz",
        "val.beton",
        "val.beton.json",
        "val.beton.rows",
        "val.stats.npz",
    ]
    sheet = tmp_path / "sheet.png"
    about = answer(capsys, "info", dst / "train.beton", "--image", sheet)
    assert (about["what"], about["samples"], about["size"]) == ("beton", 6, 32)
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert answer(capsys, "info", dst / "cropped" / "stats.npz")["images"] == 6
    crops = answer(capsys, "info", dst / "cropped")
    assert (crops["ok"], crops["failed"], crops["finished"]) == (8, 1, True)
    assert crops["splits"] == {"train": 6, "val": 2}


def _touch(file: Path) -> None:
    os.utime(file, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda dst, raw: (dst / "train.beton.rows").unlink(), ()),
        (lambda dst, raw: _touch(dst / "val.beton"), ()),
        (lambda dst, raw: _touch(dst / "cropped" / "stats.npz"), ()),
        (lambda dst, raw: min((raw / "train").glob("*/*.*")).unlink(), ()),
        (lambda dst, raw: (dst / "prepared.json").write_text("{}"), ()),
        (lambda dst, raw: (dst / "prepared.json").write_text("["), ()),
        (lambda dst, raw: None, ("--format", "raw")),
    ],
)
def test_prepare_again_works_only_where_something_changed(
    capsys: Capture,
    raw: Path,
    tmp_path: Path,
    change: Callable[[Path, Path], object],
    options: tuple[str, ...],
) -> None:
    dst = tmp_path / "made"
    asked = ("prepare", "--src", raw, "--dst", dst, "--size", 32, "--jobs", 1)
    first = answer(capsys, *asked)
    made_at = (dst / "train.beton").stat().st_mtime_ns
    again = answer(capsys, *asked)
    assert (first["up_to_date"], again["up_to_date"]) == (False, True)
    assert (dst / "train.beton").stat().st_mtime_ns == made_at
    assert again["betons"] == first["betons"]
    assert again["stats"]["channel_mean"] == first["stats"]["channel_mean"]
    change(dst, raw)
    changed = answer(capsys, *asked, *options)
    assert not changed["up_to_date"]
    assert (dst / "train.beton").stat().st_mtime_ns > made_at
    assert answer(capsys, "verify", dst / "train.beton")["good"]


def test_results_for_people_have_counts_reasons_and_speed(
    capsys: Capture, raw: Path, tmp_path: Path
) -> None:
    arguments = ["prepare", "--src", str(raw), "--dst", str(tmp_path), "--size", "32"]
    assert cli.run([*arguments, "--jobs", "1"]) == 0
    captured = capsys.readouterr()
    assert "8 cropped, 0 up to date, 1 failed; 2 classes: " in captured.out
    assert "1  empty file" in captured.out
    assert "6 crops of 32 x 32 px" in captured.out
    assert "6 samples" in captured.out and "val.beton" in captured.out
    assert NOTICE.sub("", captured.err) == ""
    assert cli.run([*arguments, "--jobs", "1"]) == 0
    assert f"up to date: {tmp_path / 'cropped' / 'stats.npz'}, " in capsys.readouterr().out


def test_info_alone_lists_what_is_installed(capsys: Capture) -> None:
    value = answer(capsys, "info")
    assert value["what"] == "installation" and value["cpus"] >= 1
    assert set(value["formats"]) == {"webp", "avif", "jpeg_2000", "tiff"}
    assert "littlecms2" in value["libraries"] and {"JPEG", "PNG"} <= set(value["reads"])
    assert "numpy" in value["versions"]
    assert cli.run(["info"]) == 0
    assert "libjpeg" in capsys.readouterr().out


def test_stock_pillow_is_warned_of_once(
    capsys: Capture, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.__version__", "12.1.1")
    arguments = ["prepare", "--src", str(raw), "--dst", str(tmp_path), "--size", "32"]
    assert cli.run([*arguments, "--jobs", "1", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("stock Pillow 12.1.1") == 1
    json.loads(captured.out)
    monkeypatch.setattr("PIL.__version__", "12.1.1.post0")
    assert options.is_pillow_simd()


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (("crop", "--src", "{}/none", "--dst", "{}/x"), 2, "source.missing"),
        (("crop", "--src", "{}/raw", "--dst", "{}/raw/x"), 2, "crop.places_overlap"),
        (("crop", "--src", "{}/raw", "--dst", "{}/x", "--max-failures", 0), 1, FAILURES),
        (("prepare", "--src", "{}/raw", "--dst", "{}/file.beton"), 2, "crop.no_folder"),
        (("crop", "--dst", "{}/x"), 2, "usage"),
        (("stats", "--src", "{}/empty"), 1, "crop.no_journal"),
        (("info", "{}/empty"), 2, "info.unknown"),
        (("info", "--image", "{}/x.png"), 2, "info.image"),
    ],
)
def test_an_error_is_one_message_and_json(
    capsys: Capture,
    raw: Path,
    tmp_path: Path,
    arguments: tuple[object, ...],
    status: int,
    code: str,
) -> None:
    (tmp_path / "file.beton").write_text("not a beton")
    (tmp_path / "empty").mkdir()
    filled = [str(argument).replace("{}", str(tmp_path)) for argument in arguments]
    text = complaint(capsys, status, *filled)
    assert cli.run([*filled, "--json"]) == status
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == code and error["message"]
    assert text.splitlines()[-1].endswith(error["message"])
    assert code == "usage" or text == f"imagenet-prep: {error['message']}\n"


@pytest.mark.parametrize(
    "arguments",
    [("crop", "--src", "a", "--dst", "b", "--size", 0), ("crop",), ("nonsense",), ("stats", "--x")],
)
def test_wrong_options_are_wrong_usage(capsys: Capture, arguments: tuple[object, ...]) -> None:
    assert "Usage: imagenet-prep" in complaint(capsys, 2, *arguments)


def test_build_wants_statistics_of_these_crops(capsys: Capture, raw: Path, tmp_path: Path) -> None:
    for size in (32, 48):
        folder = tmp_path / f"c{size}"
        answer(capsys, "crop", "--src", raw, "--dst", folder, "--size", size, "--jobs", 1)
    dst = tmp_path / "out"
    missing = complaint(capsys, 1, "build", "--src", tmp_path / "c32", "--dst", dst)
    assert "statistics file is missing" in missing
    answer(capsys, "stats", "--src", tmp_path / "c48", "--jobs", 1)
    foreign = tmp_path / "c48" / "stats.npz"
    printed = complaint(
        capsys, 1, "build", "--src", tmp_path / "c32", "--dst", dst, "--stats", foreign
    )
    assert printed.count("\n") == 1
    assert not list(dst.glob("*.beton"))


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.JPEG"), 1, "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "x: Permission denied"),
        (ToolError("workers.died", "use fewer --jobs"), 1, "fewer --jobs"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_faults_of_the_machine_get_one_message(
    capsys: Capture,
    raw: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    message: str,
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("imagenet_prep.crop.run.run_crop", fail)
    printed = complaint(capsys, status, "crop", "--src", raw, "--dst", tmp_path / "x")
    assert message in printed


def test_a_reader_that_leaves_is_no_error_message(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "imagenet_prep", "crop", "--help"],
        cwd=REPOSITORY,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.stderr == "" and done.returncode == 1


@pytest.mark.parametrize("closed", ["<&- >&-", "2>&-", "<&- >&- 2>&-", ">/dev/full"])
def test_closed_and_full_streams_give_no_traceback(closed: str) -> None:
    command = f"{sys.executable} -m imagenet_prep info --json no.beton {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize("locale", ["C", "de_DE.ISO-8859-1"])
def test_names_are_the_same_in_any_locale(raw: Path, tmp_path: Path, locale: str) -> None:
    (raw / "val/bee/café.jpg").write_bytes(b"some words")
    dst = tmp_path / "ÿ"
    command = [sys.executable, "-m", "imagenet_prep", "crop", "--size", "32", "--jobs", "1"]
    place = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    arguments = ["--src", str(raw), "--dst", str(dst)]
    done = subprocess.run(
        [*command, *arguments], cwd=REPOSITORY, env=os.environ | place, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert "val/bee/café.jpg" in {row["key"] for row in journal_rows(dst / "crop.sqlite")}


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)  # between two looks; the test's own time limit ends a wait in vain


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_end_all_processes_crops_are_whole(
    number: signal.Signals, status: int, make_raw: Callable[..., Path], tmp_path: Path
) -> None:
    raw = make_raw(train=1, val=0)
    data = (raw / "train/ant/ant0.jpg").read_bytes()
    for index in range(3000):
        (raw / f"train/ant/{index}.jpg").write_bytes(data)
    dst = tmp_path / "cropped"
    command = ["crop", "--src", raw, "--dst", dst, "--size", 224, "--jobs", 2]
    running = Running([*PREP, *command])
    process = running.process
    until(lambda: process.poll() is not None or len(list(dst.rglob("*.JPEG"))) > 50)
    workers = descendants(process.pid)
    # Ctrl-C goes to all processes of a terminal, SIGTERM to the one that was started.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    ended = running.end()
    assert one_message(ended, status) == "imagenet-prep: interrupted; the same command continues"
    assert ended.out == "" and workers
    until(lambda: not any(map(command_line, workers)))  # their semaphores' tracker ends after them
    sizes = {row["crop"]: row["crop_bytes"] for row in journal_rows(dst / "crop.sqlite")}
    assert 0 < len(sizes) < 3001
    for crop, size in sizes.items():
        assert (dst / crop).stat().st_size == size
    for crop in dst.rglob("*.JPEG"):
        assert crop.read_bytes().endswith(b"\xff\xd9"), crop


def test_failures_lists_the_sources_for_other_programs(
    capsys: Capture, raw: Path, tmp_path: Path
) -> None:
    (raw / "val" / "bee" / "words.jpg").write_bytes(b"some words")
    cropped = tmp_path / "cropped"
    answer(capsys, "crop", "--src", raw, "--dst", cropped, "--size", 32, "--jobs", 1)
    assert cli.run(["failures", str(cropped)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train/ant/empty.jpg\tempty file",
        "val/bee/words.jpg\tnot an image of a known format",
    ]
    value = answer(capsys, "failures", cropped, "--reason", "empty")
    assert value["reasons"] == {"empty file": 1}
    assert value["failures"] == [{"source": "train/ant/empty.jpg", "reason": "empty file"}]
    assert "no such folder" in complaint(capsys, 2, "failures", tmp_path / "none")


def test_names_with_line_breaks_stay_on_their_line(
    capsys: Capture, raw: Path, tmp_path: Path
) -> None:
    odd = "new\nli\tne\x1b[0m.jpg"
    (raw / "val" / "bee" / odd).write_bytes(b"some words")
    cropped = tmp_path / "cropped"
    answer(capsys, "crop", "--src", raw, "--dst", cropped, "--size", 32, "--jobs", 1)
    assert cli.run(["failures", str(cropped), "--reason", "known format"]) == 0
    line = "val/bee/new\\nli\\tne\\x1b[0m.jpg\tnot an image of a known format\n"
    assert capsys.readouterr().out == line
    value = answer(capsys, "failures", cropped, "--reason", "known format")
    assert value["failures"][0]["source"] == f"val/bee/{odd}"
    printed = complaint(capsys, 2, "crop", "--src", tmp_path / "no\nsuch", "--dst", cropped)
    assert printed.count("\n") == 1 and "no\\nsuch" in printed


def test_files_that_cannot_be_written_are_named(capsys: Capture, raw: Path, tmp_path: Path) -> None:
    cropped = tmp_path / "cropped"
    answer(capsys, "crop", "--src", raw, "--dst", cropped, "--size", 32, "--jobs", 1)
    printed = complaint(capsys, 2, "stats", "--src", cropped, "--out", tmp_path, "--jobs", 1)
    assert f"File '{tmp_path}' is a directory" in printed
    file = tmp_path / "file"
    file.write_text("")
    out = file / "stats.npz"
    printed = complaint(capsys, 2, "stats", "--src", cropped, "--out", out, "--jobs", 1)
    assert f"{file}: is not a folder" in printed
    answer(capsys, "stats", "--src", cropped, "--jobs", 1)
    printed = complaint(capsys, 2, "build", "--src", cropped, "--dst", file, "--jobs", 1)
    assert f"{file}: is not a folder" in printed
    assert not list(tmp_path.rglob(".*.tmp"))


def test_crop_options_reach_the_crops(capsys: Capture, raw: Path, tmp_path: Path) -> None:
    whole = (raw / "train" / "ant" / "ant0.jpg").read_bytes()
    (raw / "train" / "ant" / "cut.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    options = ("--size", 32, "--fit", "squash", "--filter", "area", "--truncated", "keep")
    value = answer(capsys, "crop", "--src", raw, "--dst", tmp_path / "a", *options, "--jobs", 1)
    assert value["ok"] == 9
    assert value["remarks"] == {"truncated JPEG, kept": 1}
    row = journal_rows(tmp_path / "a" / "crop.sqlite")[0]
    assert "fit=squash filter=area" in row["settings"]


def test_max_failures_is_a_number_or_none(capsys: Capture, raw: Path, tmp_path: Path) -> None:
    arguments = ("crop", "--src", raw, "--dst", tmp_path / "a", "--size", 32, "--max-failures")
    assert "more than the 0 that are allowed" in complaint(capsys, 1, *arguments, "0")
    assert answer(capsys, "failures", tmp_path / "a")["failed"] == 1
    assert "neither a number nor none" in complaint(capsys, 2, *arguments, "-1")
    assert cli.run([*map(str, arguments), "none"]) == 0
