"""The same pixels for any number of threads, also for more than this machine has cores."""

from __future__ import annotations

from tests.kit.command import python
from tests.kit.loading import Sample

# numba and the loader count cores; both are told that there are four.
DIGEST = """
import hashlib, os, sys
from pathlib import Path

os.sched_getaffinity = lambda process: {0, 1, 2, 3}
from imagenet_prep.dataset.statistics import load_stats
from trainer.loader import train_loader

beton, stats = Path(sys.argv[1]), load_stats(Path(sys.argv[2]))
for jobs in (1, 2, 4):
    with train_loader(
        beton, stats, batch_size=8, crop_size=51, out_size=40, view="resized", jobs=jobs
    ) as batches:
        found = hashlib.sha256()
        for batch in batches:
            found.update(batch.images.numpy().tobytes() + batch.indices.numpy().tobytes())
    print(batches._backend.decoder.jobs, found.hexdigest())
"""


def test_one_two_and_four_threads_give_the_same_bits(small_beton: Sample) -> None:
    stats = small_beton.path.parent / "stats.npz"
    printed = python("-c", DIGEST, small_beton.path, stats, NUMBA_NUM_THREADS="4")
    lines = [line.split() for line in printed.splitlines()]
    assert [jobs for jobs, _ in lines] == ["1", "2", "4"]
    assert len({digest for _, digest in lines}) == 1
