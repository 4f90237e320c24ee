"""The parts of a crop -> one: their journals become the journal of a whole run.

The crops of the parts lie in one folder, written there by machines that share a disk or copied
together; no source is looked at. The journal gets the bytes that one run would have written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagenet_prep.core.errors import ToolError
from imagenet_prep.crop.journal_io import Rewriting, last_lines, whole_end
from imagenet_prep.crop.plan import Outcomes
from imagenet_prep.dataset.classes import load_classes
from imagenet_prep.dataset.journal import (
    End,
    Entry,
    Part,
    journal_of,
    part_journals,
    unfinished_name,
)
from imagenet_prep.dataset.names import JOURNAL_NAME
from imagenet_prep.sources.names import safe_part

_SHOWN = 8


@dataclass(frozen=True)
class MergeReport:
    """What was merged: so many parts, and what became of their sources."""

    parts: int
    ok: int
    failed: int
    reasons: dict[str, int]
    seconds: float


def merge_parts(cropped: Path) -> MergeReport:
    """Merges the journals of all parts in ``cropped``, which then is as of one run.

    Raises UsageError or ToolError with one sentence when the folder has no parts, when one is
    missing or unfinished, or when they were made from different lists of sources.
    """
    start = time.perf_counter()
    found = part_journals(cropped)
    if not found:
        raise ToolError(
            f"{journal_of(cropped)}: is that of a whole run, and there are no parts beside it"
        )
    parts = min(found).parts
    whole = cropped / JOURNAL_NAME
    if _merged_before(whole, found, parts):
        journals, of = [whole], whole_end(whole).sources
    else:
        _check_all_there(cropped, found, parts)
        of = _of(cropped, [whole_end(path) for path in found.values()])
        # What a journal of a whole run says, that is there already, is not of these parts.
        journals = [cropped / f"{JOURNAL_NAME}.none", *found.values()]
    outcomes, settings = Outcomes(), set()
    folders = [(name, safe_part(name)) for name in load_classes(cropped).names]
    with Rewriting(cropped / JOURNAL_NAME) as journal:
        for line in last_lines(journals):
            journal.keep(line)
            entry = line.entry
            if entry is None or not _has_class(entry, folders):
                raise _other_classes(cropped)
            settings.add(entry.settings)
            outcomes.add(entry)
        if len(settings) > 1:
            raise ToolError(
                f"{cropped}: its parts were cropped with different settings; run imagenet-prep "
                "crop --part for each of them again with the same ones, it does what is missing"
            )
        if journal.total != of:
            raise _different(cropped)
        journal.end(complete=True)
    for path in found.values():
        path.unlink()
    return MergeReport(
        parts=parts,
        ok=of - outcomes.failed,
        failed=outcomes.failed,
        reasons=dict(outcomes.reasons.most_common()),
        seconds=time.perf_counter() - start,
    )


def _merged_before(whole: Path, found: Mapping[Part, Path], parts: int) -> bool:
    """Whether an earlier merge was stopped while it removed the journals of the parts."""
    if len(found) >= parts or not whole.is_file():
        return False
    if {whole_end(path).of for path in found.values()} != {whole_end(whole).sources}:
        return False
    return all(_holds(whole, path) for path in found.values())


def _holds(whole: Path, part: Path) -> bool:
    """Whether every line of a part is in the journal of the whole; both come sorted."""
    lines = (line.text for line in last_lines([whole]))
    return all(line.text in lines for line in last_lines([part]))


def _check_all_there(cropped: Path, found: Mapping[Part, Path], parts: int) -> None:
    if any(part.parts != parts for part in found):
        raise ToolError(
            f"{cropped}: has parts of {parts} and of {max(part.parts for part in found)}; delete "
            "the journals of those that do not belong there"
        )
    unfinished = [part for part in found if (cropped / unfinished_name(part)).exists()]
    lacking = [
        number
        for number in range(1, parts + 1)
        if Part(number, parts) not in found or Part(number, parts) in unfinished
    ]
    if lacking:
        shown = ", ".join(map(str, lacking[:_SHOWN])) + (" ..." if len(lacking) > _SHOWN else "")
        raise ToolError(
            f"{cropped}: of {parts} parts {len(lacking)} are missing or not finished ({shown}); "
            "run imagenet-prep crop --part for each of them"
        )


def _of(cropped: Path, ends: list[End]) -> int:
    of = {end.of for end in ends}
    total = sum(end.sources for end in ends)
    if of != {total}:
        raise _different(cropped)
    return total


def _has_class(entry: Entry, folders: Sequence[tuple[str, str]]) -> bool:
    """Whether the entry's label is that of the class folder that its crop is in."""
    parts = entry.crop.split("/")
    return 0 <= entry.label < len(folders) and len(parts) > 2 and parts[1] in folders[entry.label]


def _other_classes(cropped: Path) -> ToolError:
    return ToolError(
        f"{cropped}: its parts have different classes or labels; run imagenet-prep crop --part for "
        "each of them again, from the same sources with the same --classes"
    )


def _different(cropped: Path) -> ToolError:
    return ToolError(
        f"{cropped}: its parts were made from different lists of sources; run imagenet-prep crop "
        "--part for each of them again, it does what is missing"
    )
