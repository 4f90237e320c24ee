"""The row index is made where it is missing, kept, and not taken from another build."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from imagenet_prep.dataset.manifest import save_manifest
from imagenet_prep.dataset.shards import find_betons
from imagenet_prep.jpeg.index import Index, rows_beside
from tests.kit.loading import Sample
from trainer.loader.rows import open_rows


@pytest.fixture
def copy(small_beton: Sample, tmp_path: Path) -> Path:
    path = tmp_path / "train.beton"
    shutil.copyfile(small_beton.path, path)
    save_manifest(path, small_beton.manifest)
    return path


def rows(path: Path, told: list[tuple[str, int, int]] | None = None) -> Index:
    told = [] if told is None else told
    return open_rows(find_betons(path), 2, lambda *what: told.append(what))


def test_a_missing_index_is_made_with_progress_and_kept(copy: Path) -> None:
    told: list[tuple[str, int, int]] = []
    made = rows(copy, told)
    assert told[-1] == ("row index", 25, 25)
    assert rows_beside(copy).exists()
    again: list[tuple[str, int, int]] = []
    kept = rows(copy, again)
    assert again == []
    np.testing.assert_array_equal(kept.images, made.images)
    np.testing.assert_array_equal(kept.positions, made.positions)
    assert (made.images["status"] == 0).all()


@pytest.mark.parametrize("content", [b"", b"no index", None])
def test_a_damaged_index_or_another_files_is_made_again(
    copy: Path, full_beton: Sample, content: bytes | None
) -> None:
    whole = rows(copy)
    if content is None:
        rows(full_beton.path)
        shutil.copyfile(rows_beside(full_beton.path), rows_beside(copy))
    else:
        rows_beside(copy).write_bytes(content)
    np.testing.assert_array_equal(rows(copy).positions, whole.positions)


def test_an_index_that_cannot_be_kept_is_used_all_the_same(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("imagenet_prep.dataset.rows.publish", refused)
    assert len(rows(copy).images) == 25
    assert not rows_beside(copy).exists()
