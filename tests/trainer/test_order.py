"""Orders and their shares: permutations, few pages at a time, every sample in one rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_prep.artifacts import UsageError
from trainer.order import ORDERS, rank_batches, sample_order, step_ends


@given(
    st.sampled_from(ORDERS),
    st.integers(0, 99),
    st.lists(st.integers(0, 9), min_size=1, max_size=300),
    st.integers(1, 5),
)
def test_every_order_holds_every_sample_once(
    kind: str, epoch: int, pages: list[int], at_once: int
) -> None:
    order = sample_order(kind, 7, epoch, np.array(pages), at_once)
    assert sorted(order.tolist()) == list(range(len(pages)))


@given(st.integers(0, 50), st.integers(1, 4))
def test_a_page_order_opens_few_pages_at_a_time(epoch: int, at_once: int) -> None:
    pages = np.repeat(np.arange(12), 20)
    seen = pages[sample_order("pages", 1, epoch, pages, at_once).astype(int)]
    for start in range(0, 12, at_once):
        group = seen[start * 20 : (start + at_once) * 20]
        assert len(set(group.tolist())) == min(at_once, 12 - start)
    if at_once > 1:  # and within the group they are mixed
        assert len(set(seen[:20].tolist())) > 1


def test_page_orders_differ_from_epoch_to_epoch_and_from_seed_to_seed() -> None:
    pages = np.repeat(np.arange(12), 20)
    orders = [
        sample_order("pages", seed, epoch, pages, 3).tolist()
        for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


@given(st.integers(1, 200), st.integers(2, 9), st.integers(1, 5))
def test_ranks_share_the_samples_in_steps_of_which_none_is_empty(
    count: int, batch: int, ranks: int
) -> None:
    order = np.arange(count, dtype=np.uint64)
    if count < ranks:
        with pytest.raises(UsageError, match="cannot be shared"):
            rank_batches(order, batch, 0, ranks)
        return
    parts = [rank_batches(order, batch, rank, ranks) for rank in range(ranks)]
    steps = list(zip(*parts, strict=True))
    assert np.concatenate([b for step in steps for b in step]).tolist() == order.tolist()
    assert all(1 <= len(b) <= batch for step in steps for b in step)
    assert all(max(map(len, step)) - min(map(len, step)) <= 1 for step in steps)
    ends = step_ends(count, batch, ranks)
    assert ends == [int(step[-1][-1]) + 1 for step in steps]
    # Whatever is left after a step is shared as it would have been.
    for number, end in enumerate(ends[:-1]):
        rest = rank_batches(order[end:], batch, 0, ranks)
        assert [b.tolist() for b in rest] == [b.tolist() for b in parts[0][number + 1 :]]


def test_batches_of_one_cannot_be_shared_unevenly() -> None:
    with pytest.raises(UsageError, match="larger batches"):
        rank_batches(np.arange(7, dtype=np.uint64), 1, 0, 3)


def test_one_process_takes_the_order_as_it_is() -> None:
    order = np.array([3, 1, 2, 0, 4], np.uint64)
    assert [b.tolist() for b in rank_batches(order, 2, 0, 1)] == [[3, 1], [2, 0], [4]]
