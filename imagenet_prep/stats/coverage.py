"""Which pictures of which list a set of statistics covers, so that none counts twice.

Pure. A list of crops is known by its length and by a digest of its paths, which adds up as
the source digest does. What is covered is text, one line for each run of neighbours in the
sorted list: ``first-last/total list``, from ``first`` up to and not including ``last``.
Lists that are covered from end to end are joined into one, the list of all their pictures: what
they were is not known of it any more, so a list that is merged into the sum again is not noticed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from imagenet_prep.dataset.manifest import add_digests, source_digest

Coverage = tuple[str, ...]
_LINE = re.compile(r"(\d{1,18})-(\d{1,18})/(\d{1,18}) ([0-9a-f]{64})")


def list_digest(keys: Iterable[str]) -> str:
    """The paths of a list of crops -> its digest, whatever their order."""
    return source_digest((key, "") for key in keys)


def part_of(total: int, number: int, parts: int) -> tuple[int, int]:
    """Part ``number`` (from 1) of ``parts`` of a list -> (first, last) index, without ``last``.

    The parts differ by one picture at most. Raises ValueError when the part has no picture.
    """
    if not 1 <= number <= parts:
        raise ValueError(f"part {number} of {parts} does not exist")
    if parts > total:
        raise ValueError(f"{total} pictures cannot be cut into {parts} parts")
    return total * (number - 1) // parts, total * number // parts


def covering(first: int, last: int, total: int, digest: str) -> Coverage:
    """The coverage of the pictures ``first`` up to ``last`` of the list of this digest."""
    return (f"{first}-{last}/{total} {digest}",)


def merge(coverages: Sequence[Coverage]) -> Coverage:
    """Several coverages -> that of all their pictures; of no knowledge where one has none.

    Raises ValueError when a picture is in two of them, or one is not such text.
    """
    runs: dict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
    for line in (line for coverage in coverages for line in coverage):
        first, last, total, digest = _parse(line)
        runs[total, digest].append((first, last))
    joined: list[tuple[int, str]] = []
    lines = []
    for (total, digest), found in runs.items():
        neighbours = _join(sorted(found))
        if neighbours == [(0, total)]:
            joined.append((total, digest))
        else:
            lines += [line for run in neighbours for line in covering(*run, total, digest)]
    if joined:
        total = sum(count for count, _ in joined)
        lines += covering(0, total, total, add_digests(*(digest for _, digest in joined)))
    return tuple(sorted(lines)) if all(coverages) else ()


def _parse(line: str) -> tuple[int, int, int, str]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError("its coverage is not readable")
    first, last, total = (int(number) for number in match.groups()[:3])
    if not first < last <= total:
        raise ValueError("its coverage is not readable")
    return first, last, total, match[4]


def _join(runs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted runs -> the same with neighbours joined."""
    joined = [runs[0]]
    for first, last in runs[1:]:
        if first < joined[-1][1]:
            common = min(last, joined[-1][1]) - first
            raise ValueError(f"{common} picture{'s' if common != 1 else ''} would count twice")
        if first == joined[-1][1]:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined


def lacking(coverage: Coverage) -> int:
    """How many pictures of the lists are not covered; 0 for the whole, or where it is unknown."""
    totals: dict[tuple[int, str], int] = defaultdict(int)
    for line in coverage:
        first, last, total, digest = _parse(line)
        totals[total, digest] += last - first
    return sum(total - covered for (total, _), covered in totals.items())
