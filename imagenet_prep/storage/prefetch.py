"""Pictures behind URLs are fetched while the one before them is cropped.

A server takes tens of milliseconds to answer, a crop takes five: one after the other, a
worker would mostly wait. What is fetched ahead is kept in the process until it is read, or
until others are fetched; whoever reads what is not there reads it as ever.
"""

from __future__ import annotations

from collections.abc import Iterable

from imagenet_prep.storage.byte_range import Place
from imagenet_prep.storage.remote import Call
from imagenet_prep.storage.urls import is_url

_LARGEST_BYTES = 16 << 20
_coming: dict[Place, Call] = {}


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
    for place in places:
        _coming[place] = Call(place.read)


def read(place: Place) -> bytes:
    """As ``place.read``, sooner if it was fetched. Raises OSError."""
    call = _coming.pop(place, None) if _coming else None
    data: bytes = place.read() if call is None else call.result()
    return data
