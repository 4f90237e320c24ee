"""Files are published whole or not at all; JSON that cannot be read is one error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.files import publish, read_json, write_json
from tests.kit.errors import fails


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_publish_replaces_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    for text in ("one", "two"):
        with publish(target) as temporary:
            assert temporary.parent == target.parent
            temporary.write_text(text)
        assert target.read_text() == text
    assert names(target.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_publish_leaves_the_target_as_it_was_after_an_exception(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail() -> None:
        with publish(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_published_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with publish(tmp_path / "published"):
        pass
    modes = [(tmp_path / name).stat().st_mode for name in ("plain", "published")]
    assert modes[0] == modes[1]


def test_json_of_equal_values_has_equal_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"x": 1, "ü": [2]})
    write_json(tmp_path / "b", {"ü": [2], "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert "ü" in (tmp_path / "a").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [None, b"{", b"[1]", b"\xff\xfe", "folder"])
def test_read_json_names_the_file_and_the_remedy(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "value.json"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ToolError, match=r"value\.json.*the list.*do it again") as caught:
        read_json(path, "the list", "do it again", "list")
    assert caught.value.code == ("list.missing" if content is None else "list.damaged")


def test_a_folder_or_a_file_in_the_way_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with fails("file.is_folder", usage=True), publish(tmp_path):
        pass
    with fails("file.no_folder", usage=True), publish(tmp_path / "file" / "inner"):
        pass
