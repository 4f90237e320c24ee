"""Several processes over gloo against one, and against themselves when one of them is lost."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imagenet_prep.core.errors import ToolError
from tests.kit.command import REPOSITORY, python
from tests.kit.short_run import PLAIN, PLAIN_SPEC, SPEC, train_short
from trainer.checkpoint import Checkpoint, load_checkpoint
from trainer.data import find_data
from trainer.device import Precision
from trainer.distributed.world import World
from trainer.inference.evaluate import Evaluation, evaluate_beton, evaluation_batches, evaluation_of
from trainer.inference.judge import evaluate
from trainer.network.alexnet import build
from trainer.report.metrics import read_metrics
from trainer.training.folder import RunFolder

if TYPE_CHECKING:
    from tests.trainer.conftest import Sample

EPOCHS = 3
# Three ranks of three: 25 images are 9, 9 and 7 (3 + 2 + 2).
RECIPE = (
    f"run --network plain --epochs {EPOCHS} --batch-size 3 --lr 1e-3 --average 0.9 --crop-size 56 "
    "--start-size 67 --lighting 0.1 --warmup-epochs 0.5 --checkpoint-every 2 --device cpu "
    "--precision float32 --jobs 1 --out run"
).split()[1:]
# Two ranks make five steps an epoch.
_RANDOM = random.Random(20121204)
MOMENTS = [
    (number, _RANDOM.randrange(2), f"{_RANDOM.randint(1, 14)}.{_RANDOM.randint(1, 90)}")
    for number in range(int(os.environ.get("FAULT_MOMENTS", "3")))
]
ONE_IMAGE = 100 / 25 + 1e-9  # in percent: near a tie rounding decides
GONE = re.compile(r"trainer: rank \d of 3: another process has ended; see .* --resume\n")
SILENT = re.compile(r"trainer: rank \d of 3: another process did not answer for 30 s .*--resume\n")


@dataclasses.dataclass(frozen=True)
class Job:
    """The files of a job; ``rank_run`` names them."""

    folder: Path
    ranks: int

    @property
    def run(self) -> Path:
        return self.folder / "disk0" / "run"

    @property
    def last(self) -> Checkpoint:
        return load_checkpoint(self.run / "last.pt")

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for row in read_metrics(self.run) if row["kind"] == "epoch"]

    def output(self, rank: int, stream: str) -> str:
        text = (self.folder / f"{rank}.{stream}").read_text()
        # Without progress lines, of which there are as many as the machine has time for.
        return re.sub(r"(?m)^(epoch \d+/\d+|validation): \d+ of \d+\n", "", text)

    @property
    def statuses(self) -> list[int]:
        return [int(self.output(rank, "status")) for rank in range(self.ranks)]


@pytest.fixture(scope="module")
def beton(small_beton: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.beton with the same images as val.beton beside it."""
    folder = tmp_path_factory.mktemp("betons")
    for split in ("train", "val"):
        for suffix in (".beton", ".beton.json", ".stats.npz"):
            source = small_beton.path.with_name("train" + suffix)
            (folder / (split + suffix)).write_bytes(source.read_bytes())
    return folder / "train.beton"


@pytest.fixture(scope="module")
def jobs(beton: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """All runs of this file, by name."""
    folder = tmp_path_factory.mktemp("jobs")
    wanted = [
        ("three", 3, "", "", ""),
        ("norms", 3, "--network short", "", ""),
        ("killed", 3, "", "SIGKILL,1,6", ""),
        ("killed-again", 3, "--resume", "", "killed"),
        ("asked", 3, "", "SIGTERM,2,4", ""),
        ("asked-again", 1, "--resume --force --batch-size 9", "", "asked"),
        ("silent", 3, "--timeout 30", "SIGSTOP,2,5", ""),
        ("two", 2, "", "", ""),
        ("hung-up", 2, "", "SIGHUP,0,4", ""),
        ("usr1", 2, "", "SIGUSR1,1,4", ""),
        ("usr2", 1, "", "SIGUSR2,0,4", ""),
        ("limit", 2, "--epochs 100000 --time-limit 1s", "", ""),
    ]
    for number, rank, moment in MOMENTS:
        wanted.append((f"moment{number}", 2, "", f"SIGKILL,{rank},{moment}", ""))
        wanted.append((f"moment{number}-again", 2, "--resume", "", f"moment{number}"))
    made = [
        {
            "folder": str(folder / name),
            "ranks": ranks,
            "words": [*RECIPE, "--beton", str(beton), *words.split()],
            "strike": strike,
            "after": after and str(folder / after),
            "beside": name == "silent",
        }
        for name, ranks, words, strike, after in wanted
    ]
    (folder / "jobs.json").write_text(json.dumps(made))
    program([], str(folder / "jobs.json"))
    return {name: Job(folder / name, ranks) for name, ranks, *_ in wanted}


def program(before: list[str], *words: str, **environment: str) -> str:
    """rank_run in a process of its own, which has to succeed -> its stdout."""
    return python(*before, "-m", "tests.kit.rank_run", *words, **environment)


def assert_same_bits(ours: Checkpoint, theirs: Checkpoint) -> None:
    """Weights, their average and the optimiser's memory."""
    assert ours.average is not None
    assert theirs.average is not None
    for first, second in ((ours.model, theirs.model), (ours.average, theirs.average)):
        assert [name for name in second if not torch.equal(first[name], second[name])] == []
    assert ours.optimizer is not None
    assert theirs.optimizer is not None
    for number, state in theirs.optimizer["state"].items():
        for name, value in state.items():
            assert torch.equal(ours.optimizer["state"][number][name], value), (number, name)
    assert ours.progress["step"] == theirs.progress["step"]
    assert ours.progress["errors"] == theirs.progress["errors"]


def world(rank: int, ranks: int) -> World:
    made = World()
    made.rank, made.ranks = rank, ranks
    return made


def test_weights_make_the_mean_of_ranks_the_mean_over_images() -> None:
    # 25 images for two ranks of five: twice 5 + 5, then 3 + 2.
    first, second = (list(world(rank, 2).weights(25, 5, 1)) for rank in range(2))
    assert first == [1.0, 1.0, 1.2]
    assert second == [1.0, 1.0, 0.8]
    # A rank with one image cannot normalise a batch: none takes that step.
    assert [list(world(rank, 2).weights(13, 5, 2))[-1] for rank in range(2)] == [0.0, 0.0]
    assert list(itertools.islice(world(0, 1).weights(25, 5, 2), 3)) == [1.0, 1.0, 1.0]


def test_three_ranks_train_as_one_process_with_the_same_batch(
    jobs: dict[str, Job], beton: Path, tmp_path: Path
) -> None:
    three = jobs["three"]
    assert three.statuses == [0, 0, 0]
    config = dataclasses.replace(PLAIN, batch_size=9, epochs=EPOCHS)
    train_short(config, beton, tmp_path / "one")
    theirs = load_checkpoint(tmp_path / "one" / "last.pt")
    start = build(dataclasses.replace(PLAIN_SPEC, classes=3), config.seed).state_dict()
    for name, tensor in theirs.model.items():
        # As a whole: AdamW moves a weight whose gradient is rounding alone as far as any other.
        moved, apart = (tensor - start[name]).norm(), (three.last.model[name] - tensor).norm()
        assert apart < 0.1 * moved, name
    rows = [row for row in read_metrics(tmp_path / "one") if row["kind"] == "epoch"]
    assert len(rows) == len(three.rows) == EPOCHS
    for first, second in zip(three.rows, rows, strict=True):
        assert first["lr"] == second["lr"]
        for key in ("val_top1_error", "train_top1_error"):
            assert abs(first[key] - second[key]) <= ONE_IMAGE, key
        for key in ("val_loss", "train_loss"):
            assert first[key] == pytest.approx(second[key], rel=1e-4), key
    # One process goes on with what three have left only when it is forced to.
    with pytest.raises(ToolError, match="3 processes there and 1 here"):
        train_short(config, beton, three.run, resume=True)


def test_ranks_together_evaluate_each_image_as_one_process(
    beton: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, config = find_data(beton), dataclasses.replace(PLAIN, batch_size=4)
    model = build(dataclasses.replace(SPEC, classes=len(data.classes)), 5)
    torch.nn.init.normal_(model.classifier[-1].weight)  # type: ignore[arg-type]
    precision = Precision(torch.device("cpu"), "float32")

    def evaluated(ranks: int) -> Evaluation:
        parts = []
        for rank in range(ranks):
            batches = evaluation_batches(
                beton, data.stats, model.spec, config, rank=rank, ranks=ranks
            )
            with batches:
                parts.append(evaluate(model, batches, precision, lambda _: None))
        together = world(0, ranks)
        monkeypatch.setattr(together, "gathered", lambda _: parts)
        return evaluation_of(together.joined(parts[0]), len(data.classes))

    alone = evaluated(1)
    for ranks in (2, 3):
        found = evaluated(ranks)
        assert found.result.images == alone.result.images == 25
        assert found.result.top1_error == alone.result.top1_error
        assert found.result.top5_error == alone.result.top5_error
        assert found.confusion.tolist() == alone.confusion.tolist()
        assert found.judged.indices.tolist() == alone.judged.indices.tolist() == list(range(25))
        assert found.result.loss == pytest.approx(alone.result.loss, rel=1e-6)


def test_sums_over_ranks_are_exact_for_any_sharing_of_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Counts that float32 cannot hold, and losses that it would round.
    big = float(2**30 + 1)
    parts = [torch.tensor([0.1, big, 1.0, 3.0]).double() for _ in range(3)]
    together = world(1, 3)
    monkeypatch.setattr(together, "gathered", lambda _: parts)
    parts[0][1] = parts[1][1] = parts[2][1] = big
    found = together.summed(parts[1])
    assert found.dtype == torch.float64
    assert found.tolist()[1:] == [3 * big, 3.0, 9.0]
    assert found.tolist()[0] == sum(part.tolist()[0] for part in parts)


def test_ranks_have_equal_running_statistics_in_evaluation(
    jobs: dict[str, Job], beton: Path
) -> None:
    norms = jobs["norms"]
    alone, _ = evaluate_beton(
        norms.run / "last.pt", beton, device="cpu", batch_size=None, precision="float32",
        jobs=1, progress=lambda *_: None,
    )  # fmt: skip
    assert norms.rows[-1]["val_loss"] == pytest.approx(alone.result.loss, rel=1e-5)
    assert abs(norms.rows[-1]["val_top1_error"] - alone.result.top1_error) <= ONE_IMAGE


def test_the_images_of_a_step_are_printed_and_stored(jobs: dict[str, Job]) -> None:
    norms = jobs["norms"]
    line = norms.output(0, "out").splitlines()[0]
    assert line == "preset small, network short, to run; 3 processes, 9 images in a step"
    stored = json.loads((norms.run / "config.json").read_text())
    assert (stored["total_batch"], stored["ranks"]) == (9, 3)
    # The schedule falls linearly: the last step has a ninth of it left.
    assert norms.rows[-1]["lr"] == pytest.approx(0.001 / 9)


def test_only_rank_0_writes_and_speaks(jobs: dict[str, Job]) -> None:
    for name in ("three", "killed", "asked"):
        job = jobs[name]
        assert (job.run / "last.pt").exists()
        for rank in (1, 2):
            assert list((job.folder / f"disk{rank}").iterdir()) == [], name
            assert job.output(rank, "out") == "", name
    assert [jobs["three"].output(rank, "err") for rank in range(3)] == ["", "", ""]


@pytest.mark.parametrize("name", ["three", "two"])
def test_a_ranks_time_is_split_into_data_communication_steps(
    jobs: dict[str, Job], name: str
) -> None:
    job = jobs[name]
    names = {"wait_share", "communication_share", "step_share"}
    for row in job.rows:
        assert row["by_rank"].keys() == names
        for key, shares in row["by_rank"].items():
            assert len(shares) == job.ranks
            assert all(0 <= share <= 1 for share in shares)
            assert row[key] == pytest.approx(sum(shares) / job.ranks)
        # What is left of rank 0's time is writing, of the others' preparing what is written.
        totals = [sum(shares) for shares in zip(*row["by_rank"].values(), strict=True)]
        assert all(0 < total <= 1 + 1e-9 for total in totals)
        assert min(row["by_rank"]["communication_share"]) > 0
    epochs = [line for line in job.output(0, "out").splitlines() if line.startswith("epoch")]
    percents = r"\(\d+\.\d" + r" \d+\.\d" * (job.ranks - 1) + r"\)"
    for line in epochs:
        assert re.search(rf"% waiting for data {percents}, .* % in communication {percents}", line)
    events = EventAccumulator(str(job.run))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert names <= tags
    assert {f"{key}/rank{rank}" for key in names for rank in range(job.ranks)} <= tags


def test_a_killed_rank_ends_the_others_and_resumes_to_same_bits(
    jobs: dict[str, Job],
) -> None:
    killed = jobs["killed"]
    assert killed.statuses == [1, -9, 1]
    assert GONE.fullmatch(killed.output(0, "err"))
    assert GONE.fullmatch(killed.output(2, "err"))
    assert killed.last.progress["epochs_done"] == 1  # struck in the second epoch's last step
    again = jobs["killed-again"]
    assert again.statuses == [0, 0, 0]
    place = "trainer: run: continues in epoch 2 of 3, after step 5\n"
    assert [again.output(rank, "err") for rank in range(3)] == [place, "", ""]
    assert_same_bits(again.last, jobs["three"].last)


def test_a_silent_rank_ends_the_others_within_the_timeout(jobs: dict[str, Job]) -> None:
    silent = jobs["silent"]
    assert silent.statuses == [1, 1, -9]
    for rank in (0, 1):
        assert SILENT.fullmatch(silent.output(rank, "err")) or GONE.fullmatch(
            silent.output(rank, "err")
        )
    assert any(SILENT.fullmatch(silent.output(rank, "err")) for rank in (0, 1))
    assert load_checkpoint(silent.run / "last.pt").progress["epochs_done"] == 1
    assert not list(silent.run.glob(".*.tmp"))


def test_a_stop_on_one_rank_ends_all_and_others_may_continue(
    jobs: dict[str, Job],
) -> None:
    asked = jobs["asked"]
    assert asked.statuses == [143, 143, 143]
    partial = asked.last.partial
    assert partial is not None
    assert (partial["step"], partial["loader"]["position"]) == (5, 18)
    again = jobs["asked-again"]
    assert again.statuses == [0]
    # The two steps of three ranks count in the epoch that one process has ended.
    second = again.rows[1]
    assert round(second["train_top1_error"] * 25 / 100, 9).is_integer()
    assert second["train_loss"] == pytest.approx(jobs["three"].rows[1]["train_loss"], rel=1e-3)


def test_torchrun_restarts_after_a_lost_rank_with_the_same_bits(
    jobs: dict[str, Job], beton: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = [*RECIPE[:-1], str(run), "--beton", str(beton)]
    before = ["-m", "torch.distributed.run", "--standalone", "--max-restarts", "1"]
    printed = program([*before, "--nproc-per-node", "2"], *words, STRIKE="SIGKILL,1,8")
    # Once for each start; the restart has found last.pt without --resume.
    assert printed.count("preset small, network plain") == 2
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("epoch")] == [
        *("1/3", "2/3", "3/3")
    ]
    assert_same_bits(load_checkpoint(run / "last.pt"), jobs["two"].last)
    assert [row["epoch"] for row in read_metrics(run) if row["kind"] == "epoch"] == [1, 2, 3]


def test_two_ranks_killed_at_any_moment_end_with_the_same_bits(jobs: dict[str, Job]) -> None:
    for number, rank, *_ in MOMENTS:
        again = jobs[f"moment{number}-again"]
        if jobs[f"moment{number}"].statuses[rank] == -9:  # else the run was over before
            assert again.statuses == [0, 0], (number, again.output(0, "err"))
        assert_same_bits(again.last, jobs["two"].last)


@pytest.mark.parametrize(
    ("name", "status"), [("hung-up", 129), ("usr1", 138), ("usr2", 140), ("limit", 124)]
)
def test_signals_and_time_limit_end_all_ranks_with_a_checkpoint(
    jobs: dict[str, Job], name: str, status: int
) -> None:
    job = jobs[name]
    assert job.statuses == [status] * job.ranks
    cause = "the time limit" if name == "limit" else "a signal"
    assert f"stopped by {cause} after step" in job.output(0, "err")
    if name != "limit":
        assert job.last.partial is not None
        assert job.last.partial["step"] == 5  # the step after the signal is finished


def test_ranks_end_with_a_checkpoint_when_torchrun_dies(beton: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*RECIPE[:-1], str(run), "--beton", str(beton), "--epochs", "100000"]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "tests.kit.rank_run", *words),
        ],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert any(line.startswith("epoch   1/") for line in process.stdout)
    process.send_signal(signal.SIGUSR1)  # a scheduler's warning, which torchrun dies of
    _, errors = process.communicate(timeout=300)  # until the ranks have closed them too
    with RunFolder(run):
        pass  # nobody holds it
    assert "stopped by a signal after step" in errors
    assert load_checkpoint(run / "last.pt").partial is not None, errors
