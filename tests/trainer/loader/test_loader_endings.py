"""How epochs end before their time: threads that are killed, Ctrl-C, files that are rewritten,
consumers that leave. The consumer hears of it, and nothing is left behind."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.kit.command import REPOSITORY
from tests.kit.loading import Sample, kept, open_betons, train
from trainer.loader.loader import BetonLoader


def kill(thread: threading.Thread, error: type[BaseException]) -> None:
    """Raises ``error`` in a running thread, wherever it is."""
    identity = ctypes.c_ulong(thread.ident or 0)
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, ctypes.py_object(error)) == 1


@pytest.mark.parametrize("error", [SystemExit, MemoryError, StopIteration])
def test_a_killed_thread_is_reported_with_file_and_sample(
    small_beton: Sample, error: type[BaseException]
) -> None:
    with train(small_beton, batch_size=1, batches_ahead=1) as batches:
        taken = []
        with pytest.raises(RuntimeError, match=f"was ended .* by {error.__name__}") as caught:
            for batch in batches:
                taken.append(int(batch.indices[0]))
                if len(taken) == 3:
                    live: Any = batches._live
                    while not live.ready.full():  # it works on a batch that comes after these
                        threading.Event().wait(0.001)
                    kill(live, error)
        assert isinstance(caught.value.__cause__, error)
        assert 3 <= len(taken) < 25
        text = str(caught.value)
        named = [i for i, key in enumerate(small_beton.manifest.keys) if f" {i}, {key}" in text]
        assert str(small_beton.path) in text
        assert named
        assert not set(named) & set(taken[:3])
        # The next epoch has a thread of its own.
        assert len(kept(batches)) == 25


def test_a_thread_that_ends_without_error_is_reported_with_file(
    small_beton: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.loader.iterator.Filler.run", lambda self: None)
    with (
        train(small_beton) as batches,
        pytest.raises(RuntimeError, match="without an error") as told,
    ):
        next(iter(batches))
    assert str(small_beton.path) in str(told.value)


def resident_bytes() -> int:
    """The process's own memory, without what it shares with others."""
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_leaving_80_epochs_early_leaks_no_thread_file_or_memory(
    full_beton: Sample,
) -> None:
    def leave(times: int) -> None:
        for number in range(times):
            for taken, _ in enumerate(batches):
                if taken == number % 3:
                    break

    # Batches of 2 x 256 x 256 x 3 float32, 1.5 MB: 200 rings would be 1.6 GB.
    with train(full_beton, batch_size=2, crop_size=256) as batches:
        leave(20)
        gc.collect()
        threads, memory = set(threading.enumerate()), resident_bytes()
        files = open_betons(full_beton.path.parent)
        leave(80)
        gc.collect()
        assert set(threading.enumerate()) <= threads  # those of other tests may end
        assert open_betons(full_beton.path.parent) == files
        assert resident_bytes() - memory < 64 * 2**20


def test_closing_closes_the_file_though_the_iterator_lives_on(small_beton: Sample) -> None:
    batches = train(small_beton, batch_size=2)
    before = open_betons(small_beton.path.parent)
    epoch = iter(batches)
    next(epoch)
    assert open_betons(small_beton.path.parent) == before + 1
    batches.close()
    assert open_betons(small_beton.path.parent) == before


# Takes three batches, prints that, and waits for one that its loader's thread does not finish.
WAITS = """
import sys
from pathlib import Path
from imagenet_prep.dataset.statistics import load_stats
from trainer.loader import train_loader

beton, stats = Path(sys.argv[1]), load_stats(Path(sys.argv[2]))
with train_loader(beton, stats, batch_size=1, crop_size=51, batches_ahead=1, jobs=1) as batches:
    made = []
    def check(indices):
        made.append(indices)
        if len(made) == 4:
            batches._live.ended.wait(600)
    batches._check = check
    for number, _ in enumerate(batches):
        if number == 2:
            print("waiting", flush=True)
"""


def test_ctrl_c_ends_a_consumer_that_waits_for_a_batch(small_beton: Sample) -> None:
    stats = small_beton.path.parent / "stats.npz"
    command = [sys.executable, "-c", WAITS, str(small_beton.path), str(stats)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"waiting\n"
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT
    assert b"KeyboardInterrupt" in errors


def test_an_epoch_is_left_by_an_error_of_the_consumers_own(small_beton: Sample) -> None:
    def fails(batches: BetonLoader) -> None:
        for _ in batches:
            raise ZeroDivisionError

    with train(small_beton, batch_size=2) as batches:
        with pytest.raises(ZeroDivisionError):
            fails(batches)
        gc.collect()
        assert batches._live is None
        assert len(kept(batches)) == 13
