"""The order of an epoch: every sample once, few pages at a time, shared out by a stated rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from imagenet_prep.core.errors import UsageError
from trainer.loader.order import ORDERS, rank_batches, sample_order, step_ends

COUNTS = st.integers(1, 200)
SIZES = st.integers(1, 20)
SEEDS = st.integers(0, 2**63)
# A change of the hash or of the rule changes every run's batches: a decision, not an accident.
PINNED = {
    "shuffle": [10, 5, 4, 2, 1, 6, 0, 7, 11, 3, 9, 8],
    "pages": [5, 4, 6, 7, 3, 8, 10, 2, 1, 0, 11, 9],
}


def on_pages(count: int, per_page: int) -> NDArray[np.int64]:
    """The page of each sample of a file whose data begin on its second page."""
    return 1 + np.arange(count) // per_page


@st.composite
def shares(draw: st.DrawFn) -> tuple[NDArray[np.uint64], int, int]:
    """(an order, batch size, ranks) that can be shared out."""
    ranks, size = draw(st.integers(1, 5)), draw(st.integers(2, 9))
    count = draw(st.integers(ranks, 150))
    return sample_order("shuffle", 0, 0, on_pages(count, 7), 1), size, ranks


def steps(order: NDArray[np.uint64], size: int, ranks: int) -> list[list[list[int]]]:
    """For each step the batches of all ranks."""
    of_ranks = [rank_batches(order, size, rank, ranks) for rank in range(ranks)]
    return [[batch.tolist() for batch in step] for step in zip(*of_ranks, strict=True)]


@settings(deadline=None)
@given(st.sampled_from(ORDERS), SEEDS, st.integers(0, 99), COUNTS, SIZES, SIZES)
def test_every_order_has_every_sample_once(
    kind: str, seed: int, epoch: int, count: int, per_page: int, at_once: int
) -> None:
    order = sample_order(kind, seed, epoch, on_pages(count, per_page), at_once)
    assert order.dtype == np.uint64
    assert sorted(order.tolist()) == list(range(count))


@settings(deadline=None)
@given(SEEDS, st.integers(0, 99), COUNTS, SIZES, SIZES)
def test_page_wise_order_finishes_pages_before_it_opens_others(
    seed: int, epoch: int, count: int, per_page: int, at_once: int
) -> None:
    pages = on_pages(count, per_page)
    order = sample_order("pages", seed, epoch, pages, at_once)
    left = pages[order.astype(np.int64)].tolist()
    seen: set[int] = set()
    while left:
        # The pages that come next; all their samples come before any other page's.
        group: set[int] = set()
        for page in left:
            if page not in group and len(group) == at_once:
                break
            group.add(page)
        size = sum(pages.tolist().count(page) for page in group)
        assert set(left[:size]) == group
        assert not group & seen
        seen |= group
        left = left[size:]


def test_the_page_wise_order_mixes_pages_and_the_samples_in_them() -> None:
    pages = on_pages(6000, 100)
    order = sample_order("pages", 5, 0, pages, 10).astype(np.int64)
    first = order[:1000]
    assert len(set(pages[first].tolist())) == 10
    # Neighbours in the order are as often on one page as drawing would make them: 1 in 10.
    same = (pages[order[1:]] == pages[order[:-1]]).mean()
    assert 0.08 < same < 0.12
    groups = [sorted(set(pages[order[i : i + 1000]].tolist())) for i in range(0, 6000, 1000)]
    assert all(np.ptp(group) > 10 for group in groups)


def test_all_pages_at_once_are_the_plain_shuffle() -> None:
    pages = on_pages(50, 4)
    whole = sample_order("pages", 1, 2, pages, 1000)
    assert whole.tolist() == sample_order("shuffle", 1, 2, pages, 1).tolist()
    assert sample_order("sequential", 1, 2, pages, 1).tolist() == list(range(50))


@pytest.mark.parametrize("kind", ["shuffle", "pages"])
def test_orders_differ_between_epochs_and_seeds(kind: str) -> None:
    pages = on_pages(60, 6)
    made = {tuple(sample_order(kind, s, e, pages, 3).tolist()) for s in range(5) for e in range(5)}
    assert len(made) == 25


def test_the_orders_are_pinned() -> None:
    pages = on_pages(12, 3)
    found = {kind: sample_order(kind, 7, 3, pages, 2).tolist() for kind in PINNED}
    assert found == PINNED


@settings(deadline=None)
@given(shares())
def test_ranks_partition_the_order_in_as_many_batches_each(
    case: tuple[NDArray[np.uint64], int, int],
) -> None:
    order, size, ranks = case
    found = steps(order, size, ranks)
    assert [i for step in found for batch in step for i in batch] == order.tolist()
    lengths = [len(batch) for step in found for batch in step]
    assert 1 <= min(lengths) <= max(lengths) <= size
    for step in found:
        # Ranks wait for each other: none has more than one sample more than another.
        assert max(map(len, step)) - min(map(len, step)) <= 1


@settings(deadline=None)
@given(shares())
def test_a_step_of_all_ranks_is_the_batch_of_one_process(
    case: tuple[NDArray[np.uint64], int, int],
) -> None:
    order, size, ranks = case
    together = [[i for batch in step for i in batch] for step in steps(order, size, ranks)]
    alone = [batch.tolist() for batch in rank_batches(order, size * ranks, 0, 1)]
    # The rule of the remainder may divide the last two steps otherwise.
    few = 0 < len(order) % (size * ranks) < ranks
    kept = len(alone) - (2 if few else 0)
    assert together[:kept] == alone[:kept]
    assert len(together) == len(alone)


@settings(deadline=None)
@given(shares(), st.data())
def test_what_is_left_after_a_step_is_shared_out_as_before(
    case: tuple[NDArray[np.uint64], int, int], data: st.DataObject
) -> None:
    order, size, ranks = case
    ends = step_ends(len(order), size, ranks)
    whole = steps(order, size, ranks)
    done = data.draw(st.integers(0, len(ends)))
    left: Any = steps(order[ends[done - 1] if done else 0 :], size, ranks)
    assert left == whole[done:]
    assert ends[-1] == len(order)


def test_fewer_samples_than_ranks_are_refused() -> None:
    with pytest.raises(UsageError, match="2 samples cannot be shared by 3 ranks"):
        rank_batches(np.arange(2, dtype=np.uint64), 4, 0, 3)


def test_nothing_left_is_no_batch() -> None:
    assert rank_batches(np.empty(0, np.uint64), 4, 1, 2) == []
    assert step_ends(0, 4, 2) == []
