"""The layouts by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagenet_prep.core.errors import ToolError
from imagenet_prep.sources.scan import LAYOUTS, scan
from tests.kit.errors import fails
from tests.kit.sources import made


def test_every_layout_can_be_named_and_reports_what_it_misses(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for layout in LAYOUTS:
        with pytest.raises(ToolError, match="raw: "):
            _ = scan(tmp_path / "raw", layout=layout).sources
        with fails("source.missing", usage=True):
            scan(tmp_path / "none", layout=layout)


def test_a_layout_that_is_unknown_is_wrong_usage(tmp_path: Path) -> None:
    with fails("source.layout_unknown", usage=True):
        scan(tmp_path, layout="none")


def test_a_file_of_another_kind_is_no_source_for_any_layout(tmp_path: Path) -> None:
    path = made(tmp_path, "a.jpg") / "a.jpg"
    for layout in LAYOUTS:
        with pytest.raises(ToolError, match=r"a\.jpg"):
            scan(path, layout=layout)


def test_named_folders_leave_other_marks_alone(tmp_path: Path) -> None:
    src = made(tmp_path / "raw", "cat.1.jpg", "dog.1.jpg")
    assert scan(src, layout="folders").classes.names == ("raw",)
