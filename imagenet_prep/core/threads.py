"""Items and a function -> results, with threads of this process.

For work that waits, reads, writes or hashes, all of which let other threads run: threads start
at once, and nothing is copied between them. What computes in Python goes to ``workers``.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_in_threads(
    function: Callable[[T], R], items: Iterable[T], *, jobs: int, ahead: int = 4
) -> Generator[R, None, None]:
    """``function`` of every item, in their order, with ``jobs`` threads; 1: in this one, lazily.

    ``items`` is read ahead of the results by ``ahead`` per thread. An exception of ``function``
    or of ``items`` is raised here. However the iteration ends, no thread outlives it: what has
    begun is finished, the rest is cancelled.
    """
    if jobs == 1:
        yield from map(function, items)
        return
    from concurrent.futures import ThreadPoolExecutor

    source, pool, caller = iter(items), ThreadPoolExecutor(jobs), threading.get_ident()
    try:
        pending = deque(pool.submit(function, x) for x in itertools.islice(source, jobs * ahead))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, x) for x in itertools.islice(source, 1))
            yield result
    finally:
        # An iteration that was dropped may be collected in another thread, also one of these.
        pool.shutdown(wait=threading.get_ident() == caller, cancel_futures=True)
