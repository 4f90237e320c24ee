"""One raw image as it goes from the scan to the journal, and what a layout finds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from imagenet_prep.storage.byte_range import WHOLE, Place


class Source(NamedTuple):
    """One raw image.

    ``key`` names it, relative to the source; ``split`` is train, val or test; ``label`` is the
    position of ``class_name`` in the class list; ``crop`` is the path of its crop, relative to
    the destination. Its bytes are ``length`` (WHOLE: all) of ``file``, a path or URL, from
    ``offset``; ``form`` tells what they are and ``seen`` what a server reported of the file
    (``byte_range.Place``).

    A layout yields it without a label (-1) and with ``crop`` as the path below the split that
    still has the suffix of the image; ``scan`` sets both.
    """

    key: str
    split: str
    class_name: str
    label: int
    crop: str
    file: str
    offset: int = 0
    length: int = WHOLE
    form: str = ""
    seen: str = ""

    @property
    def place(self) -> Place:
        """Where its bytes lie."""
        return Place(*self[5:])

    @property
    def is_streamed(self) -> bool:
        """Whether it is cheap to read only in the order of ``file`` and ``offset``.

        Such images are read by one process, in that order, and handed to the workers.
        """
        return self.form.startswith("stream")

    def read(self) -> bytes:
        """The bytes of an image file. Raises OSError."""
        return self.place.read()

    def stamp(self) -> tuple[int, int]:
        """(bytes, mtime in ns or version) by which a change shows; (-1, -1): unknown."""
        return self.place.stamp()


def found(key: str, split: str, class_name: str, inside: str, place: Place) -> Source:
    """A source as a layout yields it; ``inside`` is its path below the split, with suffix."""
    # As Source(...) would, in half of the time: there may be millions.
    return tuple.__new__(Source, (key, split, class_name, -1, inside, *place))


@dataclass
class Finding:
    """What a layout finds.

    ``groups`` are read once, and a layout may still be searching then; only sources of one
    group can have equal names of crops. ``classes`` are the classes of each split, also those
    without images. ``order`` lists the classes by label where the layout defines it.
    ``readable`` maps classes to names for people, and may have more. ``notices`` grows while
    the groups are read. ``unasked``: the server has not been asked about some images yet.
    """

    groups: Iterable[Sequence[Source]]
    classes: Mapping[str, Collection[str]]
    order: Sequence[str] | None = None
    readable: Mapping[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    unasked: bool = False

    def number_labels(self) -> None:
        """Classes are numbers, and those are their labels; numbers without images count too."""
        numbers = [int(name) for names in self.classes.values() for name in names]
        self.order = [str(label) for label in range(max(numbers, default=-1) + 1)]


def in_memory(sources: Iterable[Source], notices: list[str] | None = None) -> Finding:
    """A finding of sources that are all there: one group, the classes as they occur."""
    every = list(sources)
    classes: dict[str, set[str]] = {}
    for source in every:
        classes.setdefault(source.split, set()).add(source.class_name)
    return Finding([every], classes, notices=notices or [])
