"""Images behind URLs are fetched while the one before them is cropped.

A server takes tens of milliseconds to answer, a crop takes five: one after the other, a
worker would mostly wait. What is fetched ahead is kept in the process until it is read, or
until others are fetched; whatever was not fetched is read at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from imagenet_prep.storage.byte_range import Place
from imagenet_prep.storage.remote import AT_ONCE
from imagenet_prep.storage.urls import is_url

_LARGEST_BYTES = 16 << 20
_coming: dict[Place, Future[bytes]] = {}
_pools: dict[int, ThreadPoolExecutor] = {}
"""By process: the threads of a pool do not go into a forked process."""


def worth_fetching(places: Iterable[Place]) -> tuple[Place, ...]:
    """Those of the places that are behind a URL and not too large to be kept."""
    return tuple(
        place
        for place in places
        if is_url(place.file)
        and not place.form  # arrays are kept by themselves
        and (not place.seen or place.stamp()[0] <= _LARGEST_BYTES)
    )


def fetch(places: Iterable[Place]) -> None:
    """Begins to read these, and forgets what was fetched before."""
    _coming.clear()
    pool = _pools.setdefault(os.getpid(), ThreadPoolExecutor(AT_ONCE))
    _coming.update((place, pool.submit(place.read)) for place in places)


def read(place: Place) -> bytes:
    """As ``place.read``, sooner if it was fetched. Raises OSError."""
    coming = _coming.pop(place, None)
    return place.read() if coming is None else coming.result()
