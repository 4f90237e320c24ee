"""The parts of a run on several ranks by themselves: exchange, meeting, launch, command line."""

from __future__ import annotations

import json
import threading
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.futures import Future

from imagenet_prep.core.errors import ToolError
from trainer.cli.run import run
from trainer.distributed import torchrun as launch
from trainer.distributed.gradients import Exchange
from trainer.distributed.rendezvous import meet
from trainer.distributed.world import World


@dataclass
class Bucket:
    """A bucket of gradients as DistributedDataParallel hands it over."""

    number: int
    last: bool
    values: Tensor = field(default_factory=lambda: torch.tensor([2.0, 4.0, 6.0]))

    def index(self) -> int:
        return self.number

    def is_last(self) -> bool:
        return self.last

    def buffer(self) -> Tensor:
        return self.values

    def gradients(self) -> list[Tensor]:
        return [self.values[1:], self.values[:1]]


class Wire:
    """All-reduces that arrive when they are told to, and a clock that is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[Tensor] = []
        self.futures: list[Future[Any]] = []
        self.now = 0.0
        monkeypatch.setattr(torch.distributed, "all_reduce", self.all_reduce)
        monkeypatch.setattr("trainer.distributed.gradients.time.perf_counter", lambda: self.now)

    def all_reduce(self, tensor: Tensor, *, async_op: bool) -> Wire:
        assert async_op
        self.sent.append(tensor)
        self.futures.append(Future())
        return self

    def get_future(self) -> Future[Any]:
        return self.futures[-1]

    def arrive(self, *, at: float) -> None:
        """Everything that is under way arrives, doubled as if two ranks had sent the same."""
        self.now = at
        for tensor, future in zip(self.sent, self.futures, strict=True):
            future.set_result([tensor.mul_(2)])
        self.sent, self.futures = [], []


def test_only_time_after_backwards_own_work_is_communication(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wire, found = Wire(monkeypatch), Exchange(2, cuda=False)
    wire.now = 1.0
    found._reduce(Bucket(0, last=False))
    wire.arrive(at=5.0)  # beside backward
    wire.now = 6.0
    found._reduce(Bucket(1, last=True))
    wire.arrive(at=6.5)
    assert found.seconds() == 0.5
    assert found.seconds() == 0.5
    wire.now = 10.0
    found._reduce(Bucket(0, last=True))
    wire.arrive(at=12.0)
    assert found.seconds() == 2.5


def test_each_gradient_is_exchanged_alone_and_becomes_the_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wire, bucket = Wire(monkeypatch), Bucket(0, last=True, values=torch.tensor([2.0, 4.0, 1.01]))
    mean = Exchange(2, cuda=False)._reduce(bucket)
    assert [len(tensor) for tensor in wire.sent] == [2, 1]
    wire.arrive(at=1.0)
    assert mean.wait() is bucket.values
    assert bucket.values.tolist() == torch.tensor([2.0, 4.0, 1.01]).tolist()


def test_an_exchange_that_fails_raises_where_backward_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: Future[Any]) -> Any:
        raise RuntimeError("gloo: Connection closed by peer")

    wire = Wire(monkeypatch)
    monkeypatch.setattr(Wire, "get_future", lambda wire: wire.futures[-1].then(fail))
    mean = Exchange(2, cuda=False)._reduce(Bucket(0, last=True))
    wire.arrive(at=1.0)
    with pytest.raises(RuntimeError, match="closed by peer"):
        mean.wait()


def names(store: Any, ranks: int) -> list[str]:
    """What each of the ranks that meet in ``store`` finds under the others' name."""
    found: dict[int, Any] = {}

    def join(rank: int) -> None:
        found[rank] = meet(store, rank, ranks, 30)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(ranks)]
    for thread in reversed(threads):  # rank 0 comes last
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    found[0].set("name", uuid.uuid4().hex)
    return [found[rank].get("name").decode() for rank in range(ranks)]


def test_ranks_meet_in_a_store_that_is_full_of_an_earlier_start() -> None:
    store = HashStore()
    first = names(store, 3)
    store.set("hello/2", "a word of a process that died before it heard the answer")
    second = names(store, 3)
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] != second[0]


def test_a_rank_that_nobody_joins_ends_with_an_error() -> None:
    alone = World()
    alone.ranks, alone.timeout_s = 2, 0.05
    message = "rank 0 of 2: another process did not answer for 0.05 s"
    with pytest.raises(ToolError, match=message), alone.answering():
        meet(HashStore(), 0, 2, alone.timeout_s)


def test_only_transport_errors_of_several_ranks_are_translated() -> None:
    alone, one_of_two = World(), World()
    one_of_two.ranks = 2
    for world, text in ((alone, "gloo: Connection closed by peer"), (one_of_two, "a wrong shape")):
        with pytest.raises(RuntimeError, match=text), world.answering():
            raise RuntimeError(text)
    with pytest.raises(ToolError, match="another process has ended"), one_of_two.answering():
        raise RuntimeError("gloo: Connection closed by peer")


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of a rank that torchrun has started."""
    told = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0", "RANK": "0"}
    for name, value in (
        told | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_MAX_RESTARTS": "3"}
    ).items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def begin(folder: Path, **changes: str) -> None:
    """Leaves the config.json of a run that this launch began, but for ``changes``."""
    named = launch.launch()
    assert named is not None
    (folder / "config.json").write_text(json.dumps({"launch": named | changes}))


def test_a_restart_continues_what_its_own_launch_began(
    torchrun: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not launch.continues(tmp_path)  # killed before there was anything
    begin(tmp_path)
    assert launch.continues(tmp_path)  # whatever the count of restarts: hosts differ in it
    torchrun.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert launch.continues(tmp_path)
    begin(tmp_path, agent="another torchrun")
    assert not launch.continues(tmp_path)  # every launch without an id is called none
    torchrun.delenv("TORCHELASTIC_RUN_ID")
    assert not launch.continues(tmp_path)


def test_a_named_launch_may_move_rank_0_to_another_host(
    torchrun: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torchrun.setenv("TORCHELASTIC_RUN_ID", "job 7")
    begin(tmp_path, agent="another torchrun")
    assert not launch.continues(tmp_path)  # a first start: the run is an older one
    torchrun.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert launch.continues(tmp_path)
    begin(tmp_path, agent="another torchrun", id="job 6")
    assert not launch.continues(tmp_path)
    (tmp_path / "config.json").write_text('{"launch": null}')
    assert not launch.continues(tmp_path)


def error_of(*words: str) -> str:
    """``trainer run`` with these words -> its error message."""
    ended = CliRunner().invoke(run, ["--beton", "train.beton", *words])
    return str(ended.exception)


def test_a_restart_does_not_continue_an_older_run(
    torchrun: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "last.pt").touch()
    begin(tmp_path, agent="another torchrun")
    torchrun.setenv("TORCHELASTIC_RESTART_COUNT", "3")
    assert f"{tmp_path}: already holds a run (config.json); continue it with --resume" in error_of(
        "--out", str(tmp_path)
    )


@pytest.mark.parametrize("option", ["--overwrite", "--resume"])
@pytest.mark.usefixtures("torchrun")
def test_a_restart_overwrites_nothing_of_its_own_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str
) -> None:
    (tmp_path / "last.pt").touch()
    told: list[Any] = []
    monkeypatch.setattr("trainer.cli.run._train", lambda *words: told.append(words[-1]))
    error_of("--out", str(tmp_path), "--overwrite")
    begin(tmp_path)
    error_of("--out", str(tmp_path), option)
    assert [given.resume for given in told] == [False, True]


@pytest.mark.usefixtures("torchrun")
def test_restarts_need_a_folder_that_they_find_again() -> None:
    assert error_of() == "torchrun --max-restarts needs --out, to find the run again"


def test_the_timeout_has_no_effect_with_one_process() -> None:
    assert error_of("--timeout", "60").startswith("--timeout has no effect with one process; start")


def test_ranks_on_one_machine_share_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    several = World()
    several.ranks = 3
    assert several.jobs(None) == 2
    assert several.jobs(5) == 5
    assert World().jobs(None) is None
