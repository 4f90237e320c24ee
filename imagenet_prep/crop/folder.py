"""The folder of the crops: one run at a time, a marker while it is unfinished, temporary files.

A marker lies beside the journal of a run that is not finished, and is locked while the run lives,
so that the next stages do not take a part for the whole. The runs of different parts have
journals and markers of their own, and may share the folder from different machines.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.dataset.classes import Classes, load_classes, save_classes
from imagenet_prep.dataset.journal import (
    UNFINISHED_NAME,
    Part,
    part_journals,
    unfinished_name,
    unlockable,
)
from imagenet_prep.dataset.names import CLASSES_NAME, JOURNAL_NAME, SPLITS
from imagenet_prep.storage.location import Location, Url

_MARKER = re.compile(r"\.crop\.([1-9]\d*)-of-([1-9]\d*)\.unfinished")


def check_places(src: Location, dst: Path) -> None:
    """Raises UsageError where ``dst`` is not a folder, or one of the two lies in the other."""
    for place in (dst, *dst.parents):
        if place.exists() and not place.is_dir():
            raise UsageError(
                "crop.no_folder", f"{place}: is a file; name a folder for the crops as --dst"
            )
    if isinstance(src, Url):
        return
    source, target = src.resolve(), dst.resolve()
    if source == target or source.is_relative_to(target) or target.is_relative_to(source):
        raise UsageError(
            "crop.places_overlap",
            f"{dst}: the raw images in {src} and their crops must not lie in one another; name a "
            "folder beside it",
        )


@contextlib.contextmanager
def unfinished(dst: Path, part: Part | None, *, cluster: bool = False) -> Iterator[None]:
    """Marks ``dst`` as unfinished until the block ends well; one run of it, or of a part.

    Removes the temporary files that an earlier run left when it was killed, and those of workers
    of a ``cluster``, which may die without ending the run. Raises UsageError or ToolError where
    other crops are, another run is going on, or the disk has no locks.
    """
    marker = dst / unfinished_name(part)
    continued = marker.exists()
    _check_foreign(dst, part)
    with contextlib.ExitStack() as stack:
        others = [] if part else sorted(dst.glob(".crop.*-of-*.unfinished"))
        for each in (*others, marker):  # a whole run takes the place of all parts
            _lock(dst, each, stack)
        _check_locks(dst)
        if continued or others:
            _remove_temporaries(dst, part)
        try:
            yield
        except BaseException:
            _remove_temporaries(dst, part)  # of workers that were stopped
            raise
        if cluster:
            _remove_temporaries(dst, part)
        for done in (*others, marker):
            done.unlink()


def _check_foreign(dst: Path, part: Part | None) -> None:
    whole = (dst / UNFINISHED_NAME).exists() or (dst / JOURNAL_NAME).exists()
    markers = (_MARKER.fullmatch(path.name) for path in dst.glob(".crop.*.unfinished"))
    others = set(part_journals(dst)) | {Part(int(m[1]), int(m[2])) for m in markers if m}
    whole = whole or (dst / JOURNAL_NAME).exists()  # one of an earlier version was taken over
    if part is not None and whole:
        raise UsageError(
            "crop.made_whole",
            f"{dst}: holds crops that were made without --part; leave it out, or name a new folder",
        )
    if part is not None and any(other.parts != part.parts for other in others):
        raise UsageError(
            "crop.other_parts",
            f"{dst}: holds parts of {min(others).parts}, not of {part.parts}; name the same number "
            "of parts for all, or a new folder",
        )
    if whole or others or (dst / CLASSES_NAME).exists():
        return
    foreign = next((split for split in SPLITS if (dst / split).is_dir()), None)
    if foreign is not None:  # maybe raw images, which crops would replace
        raise UsageError(
            "crop.foreign_folder",
            f"{dst}: has a folder {foreign} that imagenet-prep crop did not make; name a new "
            "folder for the crops",
        )


def _lock(dst: Path, marker: Path, stack: contextlib.ExitStack) -> None:
    file = stack.enter_context(marker.open("ab"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ToolError(
            "crop.busy", f"{dst}: another imagenet-prep crop is writing there; wait for its end"
        ) from None
    except OSError:
        pass  # a file system without this kind of lock


def _check_locks(dst: Path) -> None:
    """ToolError where the disk has no locks of the kind that SQLite needs."""
    # In a file of its own: on NFS the other kind of lock, on the marker, would be in its way.
    with tempfile.TemporaryFile(prefix=".", suffix=".tmp", dir=dst) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise unlockable(dst, str(error.strerror)) from None


def temporary_mark(part: Part | None) -> str:
    """What the names of a run's temporary files begin with."""
    return f".{part}." if part else "."


def _remove_temporaries(dst: Path, part: Part | None) -> None:
    mark = temporary_mark(part)
    for top, folders, names in os.walk(dst):
        if Path(top) == dst:
            folders[:] = [name for name in folders if name in SPLITS]
            if part:
                continue  # a class list of another part, being written
        for name in names:
            if name.startswith(mark) and name.endswith(".tmp"):
                Path(top, name).unlink(missing_ok=True)


def keep_classes(dst: Path, classes: Classes, part: Part | None) -> None:
    """Writes the class list, which all parts have in common; ToolError if they do not."""
    if part is None or not (dst / CLASSES_NAME).exists():
        save_classes(dst, classes)
    elif load_classes(dst).names != classes.names:
        raise ToolError(
            "crop.other_classes",
            f"{dst}: its other parts have other classes; crop all parts from the same sources "
            "with the same --classes, or in a new folder",
        )
