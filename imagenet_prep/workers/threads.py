"""Items and a function -> results, over threads of this process.

For work that waits, reads, writes or hashes, all of which let other threads run: they start
in no time, and nothing has to be copied between them. What computes in Python goes through
``parallel``.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 4  # items per thread: enough that none ever waits for the consumer


def map_in_threads(
    function: Callable[[T], R], items: Iterable[T], *, jobs: int
) -> Generator[R, None, None]:
    """``function`` of every item, in their order, with ``jobs`` threads; 1: in this one, lazily.

    ``items`` is read only a little ahead of the results. An exception of ``function`` or of
    ``items`` is raised here. However the iteration ends, no thread outlives it: what has
    begun is finished, what has not is forgotten.
    """
    if jobs == 1:
        yield from map(function, items)
        return
    from concurrent.futures import ThreadPoolExecutor

    source = iter(items)
    pool = ThreadPoolExecutor(jobs)
    try:
        begun = itertools.islice(source, jobs * _AHEAD)
        pending = deque(pool.submit(function, item) for item in begun)
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in itertools.islice(source, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
