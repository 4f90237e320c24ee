"""The recipes: from raw images to a record, errors for missing data, selected images."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagenet_prep.core.errors import ToolError, UsageError
from tests.conftest import jpeg_bytes, smooth_pixels
from tests.kit.command import REPOSITORY
from tests.kit.sources import WNIDS, train_tar, val_tar
from tools import demo
from tools.demo import StageError
from tools.recipes import record as recipe_record
from tools.recipes import run as recipe_run
from tools.recipes.book import RECIPES
from tools.recipes.options import options
from tools.recipes.prepare import Prepared
from tools.recipes.sets import SETS, Choice, Listed, choose, source_of

SMALLEST = (
    "--epochs", "1", "--seeds", "3", "--size", "240", "--device", "cpu", "--jobs", "1", "--",
    "--batch-size", "4", "--network", "tiny-recipe",
)  # fmt: skip


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The recipe's stages run in this process, with a network that trains in moments; gives the
    list of their commands."""
    from imagenet_prep.cli.main import run as prep
    from trainer.cli.main import run_trainer
    from trainer.network.alexnet import NETWORKS, NetworkSpec

    NETWORKS["tiny-recipe"] = NetworkSpec(
        input_size=67, widths=(8, 8, 8, 8, 8), hidden=(16, 16), pooled=1, norm="batch", init="he",
        input_scale=1 / 64,
    )  # fmt: skip
    ran: list[list[str]] = []

    def stage(words: list[str], *_: object) -> tuple[dict[str, Any], float]:
        ran.append(words)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            status = {"imagenet-prep": prep, "trainer": run_trainer}[words[0]](words[1:])
        assert status == 0, words
        return json.loads(out.getvalue().splitlines()[-1]), 0.0

    monkeypatch.setattr(demo, "run_stage", stage)
    yield ran
    del NETWORKS["tiny-recipe"]


def test_a_recipe_goes_from_raw_images_to_its_record_once(
    make_raw: Callable[..., Path],
    tmp_path: Path,
    stages: list[list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw, record = make_raw(train=4, val=3), tmp_path / "record.jsonl"
    words = ["cat-fish", "--raw", str(raw), "--out", str(tmp_path / "out")]
    words += ["--record", str(record), *SMALLEST]
    assert recipe_run.main(words) == 0
    assert "reached by" in capsys.readouterr().out
    (run,) = recipe_record.read(record)
    assert (run.header["preset"], run.side, run.seeds) == ("cat-fish", "ours", (3,))
    assert run.header["pictures"]["train"] == 8
    assert run.header["pictures"]["val"] == 6
    assert [row["epoch"] for row in run.epochs] == [1]
    (seed,) = run.result["seeds"]
    assert seed["top1"] == pytest.approx(100 - run.epochs[0]["val_top1_error"], abs=0.01)
    assert str(tmp_path) not in record.read_text()
    for chart in (record.with_suffix(".png"), tmp_path / "out/cat-fish/seed-3/grid.png"):
        with Image.open(chart) as image:
            assert image.format == "PNG"
    assert [ran[1] for ran in stages] == ["prepare", "run", "eval"]
    # Once more: nothing is trained, and the record does not grow.
    before = record.read_bytes()
    assert recipe_run.main(words) == 0
    assert [ran[1] for ran in stages[3:]] == ["prepare"]
    assert "it had this run already" in capsys.readouterr().out
    assert record.read_bytes() == before


def test_imagenets_recipe_takes_the_archives_and_five_views(
    tmp_path: Path, stages: list[list[str]]
) -> None:
    raw, record = tmp_path / "archives", tmp_path / "record.jsonl"
    raw.mkdir()
    images = [jpeg_bytes(smooth_pixels(250, 300, number)) for number in range(9)]
    members = {wnid: {f"{wnid}_{n}.JPEG": images[3 * at + n] for n in range(2)}
               for at, wnid in enumerate(WNIDS)}  # fmt: skip
    train_tar(raw, members)
    val_tar(raw, images[:3])
    words = ["imagenet", "--theirs", "--raw", str(raw), "--out", str(tmp_path / "out")]
    assert recipe_run.main([*words, "--record", str(record), *SMALLEST]) == 0
    (run,) = recipe_record.read(record)
    assert (run.side, run.header["preset"]) == ("theirs", "tutorial-imagenet")
    assert (run.header["pictures"]["train"], run.header["pictures"]["val"]) == (6, 3)
    assert run.result["views_top1"]["mean"] >= 0
    assert [ran[ran.index("--views") + 1] for ran in stages if ran[1] == "eval"] == ["1", "5"]


def test_betons_alone_train_both_sides_one_after_the_other(
    make_raw: Callable[..., Path],
    tmp_path: Path,
    stages: list[list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw, folder, record = make_raw(), tmp_path / "betons", tmp_path / "record.jsonl"
    both = ["cat-fish", "--betons", str(folder), "--ours", "--theirs"]
    make = [*both, "--prepare-only", "--raw", str(raw), "--out", str(tmp_path / "made")]
    assert recipe_run.main([*make, "--size", "240", "--per-class", "3"]) == 0
    assert "tools/recipes.sh cat-fish --betons" in capsys.readouterr().out
    # As on another machine: the folder was moved there, and nothing else.
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    for gone in (raw, folder, tmp_path / "made"):
        shutil.rmtree(gone)
    assert not [path for path in moved.rglob("*") if path.is_symlink()]
    stages.clear()
    both[2] = str(moved)
    words = [*both, "--out", str(tmp_path / "out"), "--record", str(record)]
    smallest = [*SMALLEST[:4], *SMALLEST[6:]]  # without --size
    assert recipe_run.main([*words, *smallest]) == 0
    assert [ran[1] for ran in stages] == ["run", "eval"] * 2
    ours, theirs = recipe_record.read(record)
    assert (ours.side, theirs.side) == ("ours", "theirs")
    for run in (ours, theirs):
        assert run.header["pictures"]["train"] == 6
        assert run.header["options"][:4] == ["--per-class", "3", "--size", "240"]
        command = run.header["command"]
        assert command.startswith("tools/recipes.sh cat-fish --betons elsewhere")
        options(shlex.split(command)[1:])  # is no usage error


@pytest.fixture
def betons(
    make_raw: Callable[..., Path], tmp_path: Path, stages: list[list[str]]
) -> tuple[Path, list[str]]:
    """A folder of betons for our side of cat-fish, and the command that made it."""
    folder = tmp_path / "betons"
    words = ["cat-fish", "--prepare-only", "--raw", str(make_raw()), "--betons", str(folder)]
    words += ["--size", "64", "--out", str(tmp_path / "made")]
    assert recipe_run.main(words) == 0
    stages.clear()
    return folder, words


def error_of(words: list[str], betons: Path) -> str:
    """The error code of a recipe that trains from ``betons``."""
    given = options([*words, "--betons", str(betons), "--out", str(betons / "out")])
    with pytest.raises(ToolError) as error:
        recipe_run.run_recipe(given)
    return error.value.code


def test_a_folder_of_betons_is_of_one_recipe_side_and_selection(
    betons: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, made = betons
    assert error_of(["cats-dogs"], folder) == "recipe.other_betons"
    assert error_of(["cat-fish", "--theirs"], folder) == "recipe.side_not_prepared"
    assert error_of(["cat-fish"], tmp_path) == "file.missing"
    for option in ("--raw", "--classes", "--size"):
        with pytest.raises(UsageError) as error:
            options(["cat-fish", "--betons", str(folder), option, "1"])
        assert error.value.code == "recipe.betons_are_prepared"
    # The same command again changes nothing; the other side is added; another selection is not.
    before = {path: path.read_bytes() for path in folder.rglob("*.beton*")}
    assert recipe_run.main([*made, "--theirs"]) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert set(json.loads((folder / "recipe.json").read_text())["sides"]) == {"ours", "theirs"}
    with pytest.raises(UsageError) as other:
        recipe_run.run_recipe(options([*made, "--per-class", "2"]))
    assert other.value.code == "recipe.other_betons"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("train.beton", "recipe.betons_damaged"),
        ("val.beton.rows", "recipe.betons_damaged"),
        ("train.stats.npz", "recipe.betons_damaged"),
        ("val.beton.json", "manifest.damaged"),
    ],
)
def test_a_damaged_beton_is_an_error_before_training(
    name: str, code: str, betons: tuple[Path, list[str]], stages: list[list[str]]
) -> None:
    folder, _ = betons
    (path,) = folder.rglob(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert error_of(["cat-fish"], folder) == code
    assert stages == []


def test_betons_of_another_build_are_an_error(
    betons: tuple[Path, list[str]], tmp_path: Path, make_raw: Callable[..., Path]
) -> None:
    folder, made = betons
    other = tmp_path / "other"
    words = [*made, "--raw", str(make_raw(train=5, name="more")), "--out", str(tmp_path / "again")]
    words[words.index("--betons") + 1] = str(other)
    assert recipe_run.main(words) == 0
    (of_other,) = (path for path in other.iterdir() if path.is_dir())
    shutil.copytree(of_other, folder / of_other.name, dirs_exist_ok=True)
    assert error_of(["cat-fish"], folder) == "recipe.betons_damaged"


def test_a_stages_output_is_shown_and_returned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # More on stdout than a pipe holds, before the words on stderr end.
    code = (
        "import sys; print('trainer: stuck', file=sys.stderr, flush=True); "
        "print('x' * 200_000); print('{}'); print('end', file=sys.stderr)"
    )
    monkeypatch.setattr(demo, "command_line", lambda _: [sys.executable, "-c", code])
    heard: list[str] = []
    assert demo.run_stage(["trainer", "run"], heard.append)[0] == {}
    assert heard == ["trainer: stuck", "end"]
    assert "trainer: stuck" in capsys.readouterr().err


_STAGE = """
import pathlib, signal, sys, time
heard = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: heard.append(number))
print("ready", file=sys.stderr, flush=True)
until = time.monotonic() + 600
while len(heard) < 2 and time.monotonic() < until:
    time.sleep(0.01)
pathlib.Path(sys.argv[1]).write_text(f"{heard}")
"""
_TERMINAL = """
import sys
from tools import demo
demo.command_line = lambda _: [sys.executable, "-c", *sys.argv[1:]]
demo.run_stage(["trainer", "run"], lambda _: None, 600.0)
"""


def test_ctrl_c_in_a_terminal_asks_a_stage_once_with_each_signal(tmp_path: Path) -> None:
    # A second SIGINT would end a training run before its checkpoint.
    with subprocess.Popen(
        [sys.executable, "-c", _TERMINAL, _STAGE, str(tmp_path / "heard")], cwd=REPOSITORY,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as shell:  # fmt: skip
        assert shell.stderr is not None
        assert shell.stderr.readline() == "ready\n"
        os.killpg(shell.pid, signal.SIGINT)
        shell.communicate(timeout=700)
    heard = (tmp_path / "heard").read_text()
    assert heard == f"{[int(signal.SIGINT), int(signal.SIGTERM)]}"


def test_a_run_with_other_options_or_images_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[list[str]] = []
    folder = tmp_path / "out/cat-fish/seed-0"

    def stop(words: list[str], listen: Callable[[str], None], _: float) -> None:
        begun.append(words)
        listen("epoch 1/6: 4 of 8")
        listen("trainer: after 200 steps the network predicts class 0 for everything; try")
        listen(f"trainer: {folder}: interrupted after step 200; continue")
        listen("trainer: interrupted; a run continues with --resume")
        raise StageError(130)

    monkeypatch.setattr(demo, "run_stage", stop)
    prepared = Prepared(tmp_path / "train.beton", tmp_path / "val.beton", "abc", {})
    first = ["cat-fish", "--out", str(tmp_path / "out")]

    def begin(words: list[str], what: Prepared) -> None:
        given = options(words)
        recipe_run.train(given, given.recipe.ours, what, 0)

    with pytest.raises(StageError):
        begin(first, prepared)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (notice,) = json.loads((folder.parent / "seed-0.json").read_text())["notices"]
    assert notice.startswith("after 200 steps the network predicts")
    for other, what in (
        ([*first, "--epochs", "2"], prepared),
        (first, dataclasses.replace(prepared, digest="abd")),
    ):
        with pytest.raises(UsageError, match="holds a run with other options"):
            begin(other, what)
    with pytest.raises(StageError):
        begin(first, prepared)
    with pytest.raises(StageError):
        begin([*first, "--epochs", "2", "--overwrite"], prepared)
    assert ["--resume" in words for words in begun] == [False, True, False]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_missing_data_is_one_line_with_what_to_download(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [name, "--raw", str(tmp_path), "--out", str(tmp_path / "out"), "--preset", "small"]
    assert recipe_run.main(words) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert SETS[RECIPES[name].raw].download in message
    assert SETS[RECIPES[name].raw].content in message


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["cats"], "unknown recipe 'cats'"),
        (["cat-fish", "--preset", "nothing"], "--preset nothing: does not exist"),
        (["cat-fish", "--preset", "small", "--ours", "--theirs"], "--preset is for one side"),
    ],
)
def test_wrong_usage_is_one_error(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe_run.main(words) == 2
    assert reason in capsys.readouterr().err


def pets(folder: Path, count: int = 6, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """Flat files named by class, as Kaggle has them."""
    for split in splits:
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                path = folder / split / f"{name}.{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(jpeg_bytes(smooth_pixels(40, 50, 10 * number + label)))
    return folder


def listed(source: Path) -> list[Listed]:
    """The rows of a list."""
    rows = [line.split(",") for line in source.read_text().splitlines()]
    assert rows[0] == ["path", "label", "split"]
    return [Listed(*row) for row in rows[1:]]


def test_cats_and_fish_come_from_two_sets(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    pets(raw / "cats-dogs")
    for split in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            folder = raw / "imagenette2" / split / wnid
            folder.mkdir(parents=True)
            (folder / f"{wnid}_1.JPEG").write_bytes(jpeg_bytes(smooth_pixels(40, 50, 3)))
    source = source_of("cat-fish", raw, tmp_path / "work", Choice(per_class=2))
    found = listed(source.src)
    counts = {(p.label, p.split): 0 for p in found}
    for one in found:
        counts[one.label, one.split] += 1
        assert (tmp_path / "work" / one.path).is_file()
    assert counts == {
        ("cat", "train"): 2, ("cat", "val"): 6, ("fish", "train"): 1, ("fish", "val"): 1,
    }  # fmt: skip


def test_the_downloaded_layout_is_used_if_all_is_taken(
    make_raw: Callable[..., Path], tmp_path: Path
) -> None:
    raw = make_raw()
    for split in ("train", "val"):
        (raw / split / "ant").rename(raw / split / "n01440764")
    source = source_of("imagenette", raw, tmp_path / "work", Choice())
    assert (source.src, source.layout) == (raw, "folders")
    assert source.classes is not None
    assert "n01440764\ttench" in source.classes.read_text().splitlines()


def made(train: int, val: int = 0) -> list[Listed]:
    """That many images of two classes."""
    return [
        Listed(f"set/{split}/{label}/{number}.jpg", label, split)
        for split, count in (("train", train), ("val", val))
        for label in ("a", "b")
        for number in range(count)
    ]


def test_a_smaller_choice_is_part_of_a_larger_one_in_any_order() -> None:
    few = choose(made(20, 9), Choice(3, 2))
    more = choose(reversed(made(20, 9)), Choice(5, 4))
    assert set(few) < set(more)
    of_b = [p.split for p in few if p.label == "b"]
    assert (of_b.count("train"), of_b.count("val")) == (3, 2)


def test_without_validation_other_images_are_held_out() -> None:
    for choice, wanted in ((Choice(), (16, 4)), (Choice(5), (5, 5)), (Choice(5, 2), (5, 2))):
        found = choose(made(20), choice)
        of_a = [p for p in found if p.label == "a"]
        assert tuple(sum(p.split == s for p in of_a) for s in ("train", "val")) == wanted
        assert len({p.path for p in found}) == len(found)


def test_a_class_that_cannot_be_divided_is_named() -> None:
    with pytest.raises(ToolError, match="class a: 1 images are too few for training"):
        choose(made(1), Choice())


def test_real_sets_are_recognised(shared_data: Path, tmp_path: Path) -> None:
    for name in ("cat-fish", "tiny-imagenet", "imagenette", "fashion-mnist", "cats-dogs"):
        source = source_of(name, shared_data, tmp_path / name, Choice())
        assert source.src.exists(), name
    tiny = source_of("tiny-imagenet", shared_data, tmp_path / "t", Choice(4, 1, 20))
    found = listed(tiny.src)
    assert sum(p.split == "train" for p in found) == 80
    assert tiny.classes is not None
    assert tiny.classes.read_text().startswith("n01443537\tgoldfish")
