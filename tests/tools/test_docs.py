"""The generated documents are up to date, links have targets, and README stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import docs

PAGES = [docs.REPOSITORY / "README.md", *sorted(docs.DOCS.glob("*.md"))]


def test_generated_pages_are_up_to_date() -> None:
    for path, text in docs.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run make docs"


def test_every_command_has_its_help_in_the_page() -> None:
    page = (docs.DOCS / "cli.md").read_text(encoding="utf-8")
    for name in ("imagenet-prep crop", "imagenet-prep build", "trainer run", "trainer eval"):
        assert f"### {name}\n\n```text\nUsage: {name} [OPTIONS]" in page


def test_error_codes_are_collected_with_their_messages() -> None:
    codes = docs.error_codes()
    assert codes["metrics.damaged"].startswith("<path>: line <number> is damaged")
    assert {"metrics.missing", "metrics.unreadable"} <= set(codes)  # of one conditional


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_readme_has_at_most_6_kilobytes() -> None:
    assert len((docs.REPOSITORY / "README.md").read_bytes()) <= 6000
