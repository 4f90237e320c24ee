"""The crops in a folder, as the stages after ``crop`` read them from its journal."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.dataset.journal_file import (
    REMEDY,
    SCHEMA,
    add_rows,
    connected,
    finished,
    incomplete,
    opened,
)
from imagenet_prep.dataset.names import JOURNAL_NAME, SPLITS

UNFINISHED_NAME = ".crop.unfinished"
_PART_NAME = re.compile(r"crop\.([1-9]\d{0,5})-of-([1-9]\d{0,5})\.sqlite")


class Part(NamedTuple):
    """Part ``number`` (from 1) of ``parts`` of the sources, cropped by a run of its own.

    A source belongs to a part by its crop's name alone: one more or less moves no other, and
    every machine decides alike.
    """

    number: int
    parts: int

    def __str__(self) -> str:
        return f"{self.number}-of-{self.parts}"

    def has(self, crop: str) -> bool:
        """Whether the source of this crop belongs to this part."""
        digest = hashlib.sha256(crop.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8]) % self.parts == self.number - 1


def journal_name(part: Part | None) -> str:
    """The name of the journal of a whole run, or of a part's."""
    return f"crop.{part}.sqlite" if part else JOURNAL_NAME


def unfinished_name(part: Part | None) -> str:
    """The name of the marker beside that journal."""
    return f".crop.{part}.unfinished" if part else UNFINISHED_NAME


def part_journals(cropped: Path) -> dict[Part, Path]:
    """The journals of parts in a folder, sorted; journals of earlier versions are taken over."""
    old = {*cropped.glob("crop.jsonl"), *cropped.glob("crop.*-of-*.jsonl")}
    if old:
        from imagenet_prep.dataset.journal_legacy import take_over

        take_over(sorted(old))
    matches = ((_PART_NAME.fullmatch(path.name), path) for path in cropped.glob("crop.*.sqlite"))
    found = {Part(int(match[1]), int(match[2])): path for match, path in matches if match}
    return dict(sorted(found.items()))


@contextlib.contextmanager
def all_rows(cropped: Path) -> Iterator[sqlite3.Connection]:
    """A journal with the rows of a folder, also where a run or a merge is still to be done."""
    parts = [*part_journals(cropped).values()]
    if not parts:
        with opened(journal_of(cropped)) as journal:
            yield journal
        return
    with contextlib.closing(connected(None)) as journal:
        journal.executescript(SCHEMA)
        add_rows(journal, [path for path in (cropped / JOURNAL_NAME, *parts) if path.exists()])
        yield journal


def journal_of(cropped: Path) -> Path:
    """The journal in a folder; UsageError or ToolError when ``crop`` did not make that."""
    if not cropped.is_dir():
        what = "is a file, not a folder" if cropped.exists() else "no such folder"
        raise UsageError("crop.no_folder", f"{cropped}: {what}; name one that crop made")
    parts, journal = part_journals(cropped), cropped / JOURNAL_NAME
    if journal.is_file():
        return journal
    if parts:
        raise ToolError(
            "crop.parts_not_merged",
            f"{cropped}: was cropped in parts that have not been merged; run imagenet-prep merge "
            f"{cropped} when all of them are there",
        )
    raise ToolError(
        "crop.no_journal",
        f"{cropped}: was not made by imagenet-prep crop (it has no {JOURNAL_NAME}); name its "
        "--dst, or run it first",
    )


def _finished(cropped: Path) -> Path:
    journal = journal_of(cropped)
    if (cropped / UNFINISHED_NAME).exists():
        raise ToolError(
            "crop.unfinished",
            f"{cropped}: imagenet-prep crop has not finished there; run the same command again, "
            "it continues",
        )
    return journal


class Crops:
    """The crops of a folder that ``crop`` has finished.

    ``splits`` are those of train, val and test that have crops, ``counts`` how many each;
    ``settings`` is the text of the settings that all were made with, None if they differ;
    ``failed_labels`` are by split the classes whose images all failed.
    Raises UsageError or ToolError when the folder was not made by ``crop``, when that did not
    finish, or when its journal is damaged.
    """

    def __init__(self, cropped: Path) -> None:
        self.folder = cropped
        self._journal = _finished(cropped)
        with opened(self._journal) as journal:
            finished(journal, self._journal)
            found = journal.execute(
                "SELECT split, settings, count(*) FROM source WHERE status = 'ok' GROUP BY 1, 2"
            ).fetchall()
            self.failed_labels = failed_labels(journal)
        settings = {row[1] for row in found}
        self.settings = settings.pop() if len(settings) == 1 else None
        counts = {split: sum(row[2] for row in found if row[0] == split) for split in SPLITS}
        self.counts = {split: count for split, count in counts.items() if count}
        self.splits = tuple(self.counts)

    def of(self, split: str) -> list[tuple[str, int]]:
        """(crop path relative to the folder, label) of those of ``split``, sorted.

        Raises ToolError when the split has no crops, or one of them is no longer there.
        """
        return list(self.rows(split))

    def rows(self, split: str, *, there: bool = True) -> Iterator[tuple[str, int]]:
        """As ``of``, streamed from the disk; with ``there`` False the crops are not looked for."""
        if split not in self.counts:
            raise ToolError(
                "crop.no_split",
                f"{self.folder}: has no crops of the split {split}; crop its images first",
            )
        before, folder = "", f"{self.folder}/"
        with opened(self._journal) as journal:
            for crop, label in journal.execute(
                "SELECT crop, label FROM source WHERE status = 'ok' AND split = ? ORDER BY crop",
                (split,),
            ):
                if crop == before or not is_inside(crop):
                    raise incomplete(self._journal)
                if there and not os.path.isfile(folder + crop):  # noqa: PTH113 - a million of them
                    raise ToolError(
                        "crop.missing", f"{folder}{crop}: is missing or cannot be reached; {REMEDY}"
                    )
                before = crop
                yield crop, label


def failed_labels(journal: sqlite3.Connection) -> dict[str, list[int]]:
    """Split -> the labels of the classes of which every image failed, sorted."""
    found: dict[str, list[int]] = {}
    for split, label in journal.execute(
        "SELECT split, label FROM source GROUP BY 1, 2 HAVING max(status = 'ok') = 0 ORDER BY 1, 2"
    ):
        found.setdefault(split, []).append(label)
    return found


def is_inside(path: str) -> bool:
    """Whether a relative path stays below the folder that it is relative to."""
    return bool(path) and path[0] != "/" and not (".." in path and ".." in path.split("/"))
