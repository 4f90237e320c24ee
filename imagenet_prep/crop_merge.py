"""The parts of a crop -> one: their journals become the journal of a whole run.

The crops of the parts lie in one folder, written there by machines that share a disk or copied
together; no source is looked at. The journal gets the bytes that one run would have written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imagenet_prep.artifacts import JOURNAL_NAME, ToolError
from imagenet_prep.crop_plan import Outcomes
from imagenet_prep.journal import End, Part, journal_of, part_journals, unfinished_name
from imagenet_prep.journal_merge import Rewriting, last_lines, whole_end

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
    _check_all_there(cropped, found, parts)
    ends = [whole_end(path) for path in found.values()]
    of = _of(cropped, ends)
    outcomes = Outcomes()
    with Rewriting(cropped / JOURNAL_NAME) as journal:
        for line in last_lines([journal.path, *found.values()]):
            journal.keep(line)
            entry = None if line.is_plain else line.entry
            if entry is not None:
                outcomes.add(entry)
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


def _different(cropped: Path) -> ToolError:
    return ToolError(
        f"{cropped}: its parts were made from different lists of sources; run imagenet-prep crop "
        "--part for each of them again, it does what is missing"
    )
