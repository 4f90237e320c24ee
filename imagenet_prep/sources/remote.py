"""Images behind URLs whose server has not been asked about them yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from imagenet_prep.containers.source import Source
from imagenet_prep.core.errors import ToolError
from imagenet_prep.storage.location import Location
from imagenet_prep.storage.remote import AT_ONCE, in_parallel


def asked(src: Location, groups: Iterable[Sequence[Source]]) -> Iterator[list[Source]]:
    """The same groups, with what the servers report of images that were not listed with it.

    Raises ToolError where they report nothing of all images, or of many one after the other:
    then the server is the fault and not the images, and their crops are kept.
    """
    silent, answered = 0, False
    for group in groups:
        rest, known = iter(group), []
        while batch := list(islice(rest, 4 * AT_ONCE)):
            answers = in_parallel(_ask, [s for s in batch if s.place.needs_asking()])
            for source in batch:
                if source.place.needs_asking():
                    source, reason = next(answers)
                    silent, answered = (silent + 1, answered) if reason else (0, True)
                    if silent > AT_ONCE:
                        raise _silence(src, reason)
                known.append(source)
        yield known
    if silent and not answered:
        raise _silence(src, reason)


def _silence(src: Location, reason: str) -> ToolError:
    return ToolError(
        "remote.silent",
        f"{src}: no response from the image server ({reason}); check the addresses, the "
        "credentials and the network, or try again later",
    )


def _ask(source: Source) -> tuple[Source, str]:
    """A source with what its server reports, or the reason why that may fail."""
    place, reason = source.place.asked()
    return source._replace(seen=place.seen), reason
