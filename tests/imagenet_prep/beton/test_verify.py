"""``verify``: every fault of a beton, its manifest and its statistics, with the samples hit."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from imagenet_prep.beton import format as beton_format
from imagenet_prep.beton.verify import Report, check_beton
from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset.manifest import pages_digest, save_manifest
from imagenet_prep.dataset.names import manifest_beside, stats_beside
from tests.kit.betons import METADATA, SAMPLE, WILD, number, patch

if TYPE_CHECKING:
    from tests.imagenet_prep.conftest import Made

PAGE = 1 << 21


def reasons(report: Report) -> dict[int, str]:
    return {damaged.index: damaged.reason for damaged in report.damaged}


@pytest.mark.parametrize("decode", [False, True])
def test_whole_beton_is_good(made_beton: Made, decode: bool) -> None:
    seen: list[tuple[str, int, int]] = []
    report = check_beton(
        made_beton.out, decode=decode, jobs=1, progress=lambda *step: seen.append(step)
    )
    assert report.good and not report.faults and not report.damaged
    assert (report.samples, report.pages, report.decoded) == (110, 4, 110 if decode else 0)
    assert seen[0] == ("verify", 0, 4) and seen[-1] == ("verify", 4, 4)


@pytest.mark.parametrize("jobs", [1, 2])
def test_damaged_page_names_all_the_samples_on_it_by_key(beton_copy: Made, jobs: int) -> None:
    patch(beton_copy.out, PAGE + 1234, b"\x55\xaa")
    table = beton_format.read_index(beton_copy.out).table
    hit = [index for index, ptr in enumerate(table["ptr"].tolist()) if PAGE <= ptr < 2 * PAGE]
    report = check_beton(beton_copy.out, jobs=jobs)
    assert report.faults == (f"page 1 (from byte {PAGE}) is not what was written",)
    assert 0 < len(hit) < 110
    assert [damaged.index for damaged in report.damaged] == hit
    assert [damaged.key for damaged in report.damaged] == list(beton_copy.manifest.keys[: len(hit)])
    assert set(reasons(report).values()) == {"is on page 1, which is not what was written"}


def test_swapped_pages_are_both_named(beton_copy: Made) -> None:
    content = beton_copy.out.read_bytes()
    patch(beton_copy.out, PAGE, content[2 * PAGE : 3 * PAGE] + content[PAGE : 2 * PAGE])
    report = check_beton(beton_copy.out, jobs=1)
    assert [fault[:6] for fault in report.faults] == ["page 1", "page 2"]
    assert len(report.damaged) == 110


@pytest.mark.parametrize(
    ("offset", "content", "index", "reason"),
    [
        (METADATA + SAMPLE, b"\2", 1, "is stored neither as JPEG nor raw"),
        (METADATA + SAMPLE * 2 + 5, number(WILD), 2, "lies elsewhere than the table has it"),
        (METADATA + SAMPLE * 2 + 16, number(3), 2, "has a label without a class"),
        (METADATA + SAMPLE * 2 + 16, number(WILD), 2, "has a label without a class"),
        (METADATA + SAMPLE * 2 + 16, number(2), 2, "is on page 0"),
        (-24 * 100, number(4), 10, "is not in its row of the table"),
        (-24 * 100 + 8, number(WILD), 10, "lies outside the data"),
        (-24 * 100 + 16, number(WILD), 10, "is empty or larger than a page"),
        (-24 * 100 + 16, number(PAGE), 10, "crosses its page"),
    ],
)
def test_fault_of_a_row_is_reported_with_its_sample_and_page(
    beton_copy: Made, offset: int, content: bytes, index: int, reason: str
) -> None:
    end = beton_copy.manifest.bytes if offset < 0 else 0
    patch(beton_copy.out, end + offset, content)
    report = check_beton(beton_copy.out, decode=True, jobs=1)
    page = (end + offset) // PAGE
    assert report.faults[-1].startswith(f"page {page} ")
    # All rows of this small file are on that page: each might be the one that was changed.
    assert len(report.damaged) == 110
    found = reasons(report)
    assert reason in found[index]
    assert f"is on page {page}, which is not what was written" in found[index]


def test_damaged_header_does_not_hide_what_else_is_damaged(beton_copy: Made) -> None:
    patch(beton_copy.out, 8, number(WILD))
    patch(beton_copy.out, 2 * PAGE, b"xx")
    report = check_beton(beton_copy.out, jobs=1)
    assert report.faults == (
        "its header is not that of the beton that its manifest describes",
        "page 0 (from byte 0) is not what was written",
        f"page 2 (from byte {2 * PAGE}) is not what was written",
    )


def forge(made: Made, offset: int, content: bytes) -> None:
    """Changes a beton's data page and makes the manifest agree, as a careless tool would."""
    patch(made.out, offset, content)
    data = made.out.read_bytes()
    pages = tuple(
        hashlib.sha256(data[start : start + PAGE]).hexdigest()
        for start in range(0, len(data), PAGE)
    )
    digest = pages_digest(pages)
    save_manifest(made.out, dataclasses.replace(made.manifest, pages=pages, digest=digest))


@pytest.mark.parametrize("jobs", [1, 2])
def test_images_that_do_not_decode_are_all_named(beton_copy: Made, jobs: int) -> None:
    table = beton_format.read_index(beton_copy.out).table
    bad = [3, 70]
    for index in bad:
        forge(beton_copy, int(table["ptr"][index]), b"\0\0\0")
    assert check_beton(beton_copy.out, jobs=1).good
    report = check_beton(beton_copy.out, decode=True, jobs=jobs)
    assert report.faults == () and report.decoded == 110
    assert [(d.index, d.key) for d in report.damaged] == [
        (index, beton_copy.manifest.keys[index]) for index in bad
    ]
    assert all("is not a JPEG" in d.reason for d in report.damaged)


def test_damage_inside_an_image_is_found_as_in_training(beton_copy: Made) -> None:
    place = beton_format.read_index(beton_copy.out).table[5]
    start, size = int(place["ptr"]), int(place["size"])
    forge(beton_copy, start + size // 2, bytes(size // 2 - 2))  # its last two bytes stay
    report = check_beton(beton_copy.out, decode=True, jobs=1)
    assert [(d.index, "is not a whole JPEG" in d.reason) for d in report.damaged] == [(5, True)]


def test_image_of_another_size_than_its_row_is_named(beton_copy: Made) -> None:
    path = beton_copy.cropped / beton_copy.manifest.keys[0]
    data = path.read_bytes()
    at = data.index(b"\xff\xc0")
    forge(beton_copy, PAGE + at + 5, number(95, 2)[::-1])
    report = check_beton(beton_copy.out, decode=True, jobs=1)
    assert reasons(report) == {0: "is 96x95 where the statistics are of 96x96"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"samples": 109, "keys": ("a",) * 109}, "describes no beton|header"),
        ({"size_px": 64}, "has another size than in the manifest"),
        ({"page_size_bytes": 1 << 22}, "describes no beton"),
        ({"page_size_bytes": 0}, "describes no beton"),
        ({"pages": ()}, "describes no beton"),
        ({"classes": ("ant", "bee")}, "has a label without a class"),
        ({"digest": "00"}, "has another digest"),
        ({"pages": ("00", "00", "00", "00")}, "page 0 "),
        ({"formats": {"jpeg": 109, "raw": 1}}, "other numbers of JPEG and raw samples"),
        ({"keys": ("a",) * 110}, "names a sample twice"),
        ({"stats_digest": "00"}, "statistics beside it, train.stats.npz, are not what"),
    ],
)
def test_manifest_of_another_beton_is_found(
    beton_copy: Made, changes: dict[str, Any], reason: str
) -> None:
    save_manifest(beton_copy.out, dataclasses.replace(beton_copy.manifest, **changes))
    report = check_beton(beton_copy.out, jobs=1)
    texts = [*report.faults, *reasons(report).values()]
    assert any(re.search(reason, text) for text in texts), texts


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (Path.unlink, "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "are not what was written"),
    ],
)
def test_statistics_that_are_gone_or_changed_are_a_fault(
    beton_copy: Made, change: Callable[[Path], None], reason: str
) -> None:
    change(stats_beside(beton_copy.out))
    report = check_beton(beton_copy.out, jobs=1)
    assert len(report.faults) == 1 and reason in report.faults[0]
    assert report.damaged == ()


def test_without_its_manifest_a_beton_is_not_looked_at(beton_copy: Made) -> None:
    manifest_beside(beton_copy.out).unlink()
    with pytest.raises(ToolError, match="manifest of a complete beton is missing"):
        check_beton(beton_copy.out, jobs=1)
