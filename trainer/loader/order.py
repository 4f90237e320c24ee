"""The order of an epoch and its batches: pure functions of seed, epoch, ranks and position.

One order for all ranks: batch b of W ranks with batches of B is positions [b W B, (b+1) W B)
of it, of which rank r takes the r-th B. So W ranks with batches of B see together what one
process sees with batches of W B, and an epoch that goes on at position p is ``order[p:]``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.core.errors import UsageError
from trainer.hashing import words

ORDERS = ("shuffle", "pages", "sequential")
# The numbers of the draws of samples and pages; the others are in ``draws``.
_ORDER, _PAGE = 7, 10


def epoch_order(seed: int, epoch: int, samples: int) -> NDArray[np.uint64]:
    """The order of an epoch: the sample indices sorted by their hash, a seeded permutation."""
    keys = words(seed, epoch, np.arange(samples, dtype=np.uint64), _ORDER)
    return np.argsort(keys, kind="stable").astype(np.uint64)


def sample_order(
    kind: str, seed: int, epoch: int, pages: NDArray[np.int64], pages_at_once: int
) -> NDArray[np.uint64]:
    """One of ORDERS -> the sample indices (N,) uint64 of an epoch.

    ``pages`` (N,) is on which page, counted through all files, each sample lies. ``shuffle``
    is a seeded permutation of all; ``pages`` a permutation of the pages, of which
    ``pages_at_once`` are then shuffled together: reading touches no more of the files at a
    time, so a set beyond memory is read from end to end once; ``sequential`` is the order of
    the files. Only ``pages`` depends on how samples are shared out to pages and files.
    """
    count = len(pages)
    if kind == "sequential":
        return np.arange(count, dtype=np.uint64)
    if kind == "shuffle":
        return epoch_order(seed, epoch, count)
    numbers, page = np.unique(pages, return_inverse=True)
    place = np.empty(len(numbers), np.int64)
    place[np.argsort(words(seed, epoch, numbers, _PAGE), kind="stable")] = np.arange(len(numbers))
    group = place[page] // pages_at_once
    shuffled = epoch_order(seed, epoch, count)
    by_group: NDArray[np.uint64] = shuffled[np.argsort(group[shuffled], kind="stable")]
    return by_group


def rank_batches(
    order: NDArray[np.uint64], batch_size: int, rank: int, ranks: int, drop_last: bool = False
) -> list[NDArray[np.uint64]]:
    """The order (or what is left of it) -> the batches of one of ``ranks`` processes.

    Every sample goes to exactly one rank and all ranks have the same number of batches,
    none of them empty: what is left for the last step is shared out evenly, the first
    ranks taking one more. If that is less than one for each, the last two steps are shared
    out together. With ``drop_last`` only full batches are left. UsageError when there are
    fewer samples than ranks.
    """
    whole, rest = divmod(len(order), batch_size * ranks)
    if drop_last:
        rest = 0
    if 0 < rest < ranks and (whole == 0 or batch_size == 1):
        raise UsageError(
            "loader.too_many_ranks",
            f"{len(order)} samples cannot be shared by {ranks} ranks with batches of "
            f"{batch_size}; use fewer ranks or larger batches",
        )
    last = [rest] if rest else []
    if 0 < rest < ranks:
        whole -= 1
        both = batch_size * ranks + rest
        last = [both - both // 2, both // 2]
    step = batch_size * ranks
    batches = [order[b * step + rank * batch_size :][:batch_size] for b in range(whole)]
    start = whole * step
    for count in last:
        shares = [count // ranks + (r < count % ranks) for r in range(ranks)]
        first = start + sum(shares[:rank])
        batches.append(order[first : first + shares[rank]])
        start += count
    return batches


def step_ends(count: int, batch_size: int, ranks: int, drop_last: bool = False) -> list[int]:
    """Samples in an epoch -> the position in the order after each of its steps."""
    order = np.arange(count, dtype=np.uint64)
    sizes = [rank_batches(order, batch_size, rank, ranks, drop_last) for rank in range(ranks)]
    return [int(n) for n in np.cumsum([sum(map(len, step)) for step in zip(*sizes, strict=True)])]
