"""Many small tuples in sorted order, in a few bytes each: lists for a hundred million sources.

A list of a million sources as Python objects takes half a gigabyte. Here they are sorted and
compressed a thousand at a time as they come, and unpacked a thousand at a time as they are
read, which costs less than making the objects did. Nothing of it is ever written anywhere.
"""

from __future__ import annotations

import heapq
import marshal
import zlib
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")

BLOCK = 1 << 10
"""Tuples that are unpacked together."""
RUN = 1 << 17
"""Tuples that are sorted together; as many wait unpacked while a list is made."""
_FAST = 1  # the level of compression: more of it takes far more time than it saves memory
_first = itemgetter(0)


class _Run(NamedTuple):
    """Sorted tuples: the first and last of what they are sorted by, and the packed blocks."""

    first: Any
    last: Any
    blocks: list[bytes]


class Packed(Generic[T]):
    """A list that is only added to, and read from its beginning in the order of its items.

    ``plain`` makes of an item a tuple of nothing but str, bytes, int, float and None, sorted
    by its first element; ``item`` makes the item of that again. Equal ones stay in the order
    in which they came.
    """

    def __init__(
        self, plain: Callable[[T], tuple[Any, ...]], item: Callable[[tuple[Any, ...]], T]
    ) -> None:
        self._plain = plain
        self._item = item
        self._count = 0
        self._open: list[tuple[Any, ...]] = []
        self._runs: list[_Run] = []

    def append(self, item: T) -> None:
        """Adds one item."""
        self._add(self._plain(item))

    def _add(self, row: tuple[Any, ...]) -> None:
        self._open.append(row)
        self._count += 1
        if len(self._open) >= RUN:
            self._seal()

    def extend(self, items: Iterable[T]) -> None:
        """Adds items."""
        for item in items:
            self.append(item)

    def _seal(self) -> None:
        """Packs what has come since the last time."""
        found = sorted(self._open, key=_first)
        self._open = []
        if found:
            blocks = [_packed(found[at : at + BLOCK]) for at in range(0, len(found), BLOCK)]
            self._runs.append(_Run(found[0][0], found[-1][0], blocks))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        """The items in order; none may be added while they are read."""
        return map(self._item, self.rows())

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """What ``plain`` made of the items, in order."""
        self._seal()
        return _in_order(self._runs)

    @property
    def bytes(self) -> int:
        """How much memory the packed items take."""
        return sum(len(block) for run in self._runs for block in run.blocks)


def _packed(items: list[tuple[Any, ...]]) -> bytes:
    return zlib.compress(marshal.dumps(items), _FAST)


def _items(run: _Run) -> Iterator[tuple[Any, ...]]:
    for block in run.blocks:
        yield from marshal.loads(zlib.decompress(block))


def _in_order(runs: list[_Run]) -> Iterator[tuple[Any, ...]]:
    """Sorted runs -> all of them sorted. Only runs that overlap are merged."""
    ordered = sorted(range(len(runs)), key=lambda number: runs[number].first)
    at = 0
    while at < len(ordered):
        together, last = [ordered[at]], runs[ordered[at]].last
        at += 1
        while at < len(ordered) and runs[ordered[at]].first <= last:
            together.append(ordered[at])
            last = max(last, runs[ordered[at]].last)
            at += 1
        if len(together) == 1:
            yield from _items(runs[together[0]])
        else:
            # Of equal ones that of the earlier run comes first.
            found = [_items(runs[number]) for number in sorted(together)]
            yield from heapq.merge(*found, key=_first)
