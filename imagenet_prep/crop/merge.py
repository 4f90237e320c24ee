"""The parts of a crop -> one: their journals become the journal of a whole run.

The crops of the parts lie in one folder, written there by machines that share a disk or copied
together; no source is looked at.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imagenet_prep.containers.names import safe_part
from imagenet_prep.core.errors import ToolError
from imagenet_prep.crop.plan import count, remarks
from imagenet_prep.dataset.classes import load_classes
from imagenet_prep.dataset.journal import (
    Part,
    add_rows,
    attached,
    damaged,
    finish,
    finished,
    journal_of,
    opened,
    part_journals,
    replacing,
    unfinished_name,
)
from imagenet_prep.dataset.names import JOURNAL_NAME

_SHOWN = 8


@dataclass(frozen=True)
class MergeReport:
    """The number of parts, and of their crops and failures."""

    parts: int
    ok: int
    failed: int
    reasons: dict[str, int]
    seconds: float


def merge_parts(cropped: Path) -> MergeReport:
    """Merges the journals of all parts in ``cropped``, which then is as of one run.

    Raises UsageError or ToolError when the folder has no parts, when one is missing or
    unfinished, or when they were made from different lists of sources.
    """
    start = time.perf_counter()
    found = part_journals(cropped)
    if not found:
        raise ToolError(
            "merge.no_parts",
            f"{journal_of(cropped)}: is that of a whole run, and there are no parts beside it",
        )
    parts, whole = min(found).parts, cropped / JOURNAL_NAME
    if not _merged_before(whole, found, parts):
        _check_all_there(cropped, found, parts)
        of_all = _of_all(cropped, found)
        # A journal of a whole run that is there already is not of these parts: it is replaced.
        with replacing(whole) as journal:
            add_rows(journal, found.values())
            _check_rows(cropped, journal, of_all)
            finish(journal, of_all, of_all)
    for path in found.values():
        path.unlink()
    with opened(whole) as journal:
        total, _ = finished(journal, whole)
        reasons = remarks(journal, "failed")
    failed, seconds = sum(reasons.values()), time.perf_counter() - start
    return MergeReport(parts, total - failed, failed, reasons, seconds)


def _merged_before(whole: Path, found: Mapping[Part, Path], parts: int) -> bool:
    """Whether an earlier merge was stopped while it removed the journals of the parts."""
    if len(found) >= parts or not whole.is_file():
        return False
    with opened(whole) as journal:
        total, _ = finished(journal, whole)
        for path in found.values():
            with attached(journal, path) as part:
                of_all = journal.execute(f"SELECT of_all FROM {part}.finished").fetchall()
                other = f"SELECT * FROM {part}.source EXCEPT SELECT * FROM main.source"
                if of_all != [(total,)] or journal.execute(other).fetchone():
                    return False
    return True


def _check_all_there(cropped: Path, found: Mapping[Part, Path], parts: int) -> None:
    if any(part.parts != parts for part in found):
        raise ToolError(
            "merge.other_parts",
            f"{cropped}: has parts of {parts} and of {max(part.parts for part in found)}; delete "
            "the journals of those that do not belong there",
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
            "merge.parts_missing",
            f"{cropped}: of {parts} parts {len(lacking)} are missing or not finished ({shown}); "
            "run imagenet-prep crop --part for each of them",
        )


def _of_all(cropped: Path, found: Mapping[Part, Path]) -> int:
    """The number of sources of all parts, which each part's journal has; they must agree."""
    counts = []
    for path in found.values():
        with opened(path) as journal:
            (state,) = journal.execute("PRAGMA quick_check(1)").fetchone()
            if state != "ok":
                raise damaged(path, state)
            counts.append(finished(journal, path))
    total = sum(sources for sources, _ in counts)
    if {of_all for _, of_all in counts} != {total}:
        raise _different(cropped)
    return total


def _check_rows(cropped: Path, journal: sqlite3.Connection, of_all: int) -> None:
    """ToolError unless all rows are of one list of sources, with one set of classes and settings.

    The label of a row must be that of the class folder that its crop lies in.
    """
    folders = [(name, safe_part(name)) for name in load_classes(cropped).names]
    for label, crop in journal.execute(
        "SELECT label, min(crop) FROM source "
        "GROUP BY label, substr(crop, 1, length(split) + 1 + "
        "instr(substr(crop, length(split) + 2), '/'))"
    ):
        parts = crop.split("/")
        if not (0 <= label < len(folders) and len(parts) > 2 and parts[1] in folders[label]):
            raise ToolError(
                "merge.other_classes",
                f"{cropped}: its parts have different classes or labels; run imagenet-prep crop "
                "--part for each of them again, from the same sources with the same --classes",
            )
    if count(journal, "SELECT count(DISTINCT settings) FROM source") > 1:
        raise ToolError(
            "merge.other_settings",
            f"{cropped}: its parts were cropped with different settings; run imagenet-prep crop "
            "--part for each of them again with the same ones, it does what is missing",
        )
    if count(journal, "SELECT count(*) FROM source") != of_all:
        raise _different(cropped)


def _different(cropped: Path) -> ToolError:
    return ToolError(
        "merge.other_sources",
        f"{cropped}: its parts were made from different lists of sources; run imagenet-prep crop "
        "--part for each of them again, it does what is missing",
    )
