"""What statistics cover: parts make the whole, and no picture counts twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_prep.dataset.manifest import add_digests, source_digest
from imagenet_prep.stats import coverage
from imagenet_prep.stats.coverage import covering, merge, part_of

DIGEST = coverage.list_digest(["train/a/1.JPEG", "train/a/2.JPEG"])
OTHER = coverage.list_digest(["train/b/1.JPEG"])


@given(total=st.integers(1, 200), data=st.data())
def test_parts_are_the_whole_without_overlap_and_of_nearly_one_size(
    total: int, data: st.DataObject
) -> None:
    parts = data.draw(st.integers(1, total))
    bounds = [part_of(total, number, parts) for number in range(1, parts + 1)]
    covered = [index for first, last in bounds for index in range(first, last)]
    assert covered == list(range(total))
    sizes = [last - first for first, last in bounds]
    assert max(sizes) - min(sizes) <= 1


@given(parts=st.integers(1, 12), data=st.data())
def test_merging_the_parts_in_any_order_and_grouping_gives_the_whole(
    parts: int, data: st.DataObject
) -> None:
    total = 50
    lines = [covering(*part_of(total, k, parts), total, DIGEST) for k in range(1, parts + 1)]
    lines = data.draw(st.permutations(lines))
    cut = data.draw(st.integers(0, parts))
    groups = [merge(group) for group in (lines[:cut], lines[cut:]) if group]
    assert merge(groups) == covering(0, total, total, DIGEST)
    assert coverage.lacking(merge(groups)) == 0


def test_what_lacks_is_counted_and_neighbours_are_joined() -> None:
    found = merge([covering(4, 6, 10, DIGEST), covering(0, 2, 10, DIGEST)])
    assert len(found) == 2 and coverage.lacking(found) == 6
    assert merge([found, covering(2, 4, 10, DIGEST)]) == covering(0, 6, 10, DIGEST)


def test_whole_lists_become_the_list_of_all_their_pictures() -> None:
    both = coverage.list_digest(["train/b/1.JPEG", "train/a/2.JPEG", "train/a/1.JPEG"])
    assert merge([covering(0, 2, 2, DIGEST), covering(0, 1, 1, OTHER)]) == covering(0, 3, 3, both)


@pytest.mark.parametrize(
    ("first", "second", "twice"),
    [((0, 5), (4, 8), "1 picture would"), ((0, 9), (2, 4), "2 pictures"), ((0, 9), (0, 9), "9 ")],
)
def test_a_picture_in_two_of_them_is_refused(
    first: tuple[int, int], second: tuple[int, int], twice: str
) -> None:
    for pair in ((first, second), (second, first)):
        with pytest.raises(ValueError, match=rf"^{twice}.*count twice"):
            merge([covering(*run, 9, DIGEST) for run in pair])


def test_the_same_range_of_another_list_is_another() -> None:
    assert len(merge([covering(0, 1, 2, DIGEST), covering(0, 1, 2, OTHER)])) == 2


def test_one_that_says_nothing_makes_the_sum_say_nothing() -> None:
    assert merge([covering(0, 2, 2, DIGEST), ()]) == ()


@pytest.mark.parametrize(
    "line", ["", "0-1/2", f"1-1/2 {DIGEST}", f"0-3/2 {DIGEST}", f"0-1/2 {DIGEST[1:]}", "x" * 90]
)
def test_text_that_is_no_coverage_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not readable"):
        merge([(line,)])


@pytest.mark.parametrize(("number", "parts", "total"), [(0, 2, 9), (3, 2, 9), (1, 4, 3)])
def test_parts_that_cannot_be_are_refused(number: int, parts: int, total: int) -> None:
    with pytest.raises(ValueError, match="part"):
        part_of(total, number, parts)


def test_source_digests_of_parts_add_up_to_that_of_the_whole() -> None:
    pairs = [(f"train/a/{index}.JPEG", f"{index:064x}") for index in range(20)]
    parts = [source_digest(pairs[:3]), source_digest(pairs[3:17]), source_digest(pairs[17:])]
    assert add_digests(*parts) == add_digests(*reversed(parts)) == source_digest(pairs)
    assert add_digests(source_digest([]), parts[0]) == parts[0]
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        add_digests("ab")
