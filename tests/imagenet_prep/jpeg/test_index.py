"""The row index: what it holds, joining, its file, and damage of every kind."""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_prep.core.errors import ToolError
from imagenet_prep.jpeg import core, index
from imagenet_prep.jpeg.index import Index, index_images, join, load_index, save_index
from tests.kit.command import python
from tests.kit.errors import fails
from tests.kit.jpegs import content, encoded, host_batch, made

SOURCE = bytes(range(32))


def indexed(images: list[bytes]) -> Index:
    return host_batch(images).indexed


def equal(a: Index, b: Index) -> bool:
    names = [field.name for field in dataclasses.fields(Index)]
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def test_entries_begin_behind_the_headers_and_end_at_the_end() -> None:
    pixels = content(np.random.default_rng(0), 40, 50, 4)
    data = encoded(pixels, quality=90)
    found = indexed([data])
    image = found.images[0]
    assert (image["width"], image["height"], image["status"]) == (50, 40, core.OK)
    assert len(found.positions) == len(found.predictors) == 4  # three MCU rows and the end
    scan = data.index(b"\xff\xda")
    assert found.positions[0] == 8 * (scan + 2 + 12)
    assert len(data) - 2 == -(-found.positions[-1] // 8)
    assert not found.predictors[0].any()


def test_joining_does_not_depend_on_the_parts() -> None:
    progressive = encoded(content(np.random.default_rng(0), 20, 20, 4), progressive=True)
    images = [*made(30, seed=9, largest=40), progressive, b"no JPEG", *made(5, seed=1, largest=40)]
    whole = indexed(images)
    assert whole.images["status"][[30, 31]].tolist() == [core.NOT_BASELINE, core.NOT_JPEG]
    for cuts in ([0, 1, 37], [0, 10, 11, 31, 37], [0, 30, 37]):
        parts = [indexed(images[a:b]) for a, b in itertools.pairwise(cuts)]
        assert equal(join(parts), whole)
    assert index.fault(whole) == ""


def test_sets_of_tables_beyond_the_most_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    images = made(12, seed=9, largest=40)
    whole = indexed(images)
    assert len(whole.specs) > 2
    monkeypatch.setattr(index, "MAX_SETS", 2)
    few = join([whole])
    assert len(few.specs) == len(few.quants) == 2
    assert set(few.images["status"].tolist()) == {core.OK, core.TABLES}
    assert index.fault(few) == ""


def test_raw_images_have_no_rows() -> None:
    jpeg = made(1, seed=2, smallest=20)[0]
    found = host_batch([bytes(9 * 11 * 3), jpeg], [(9, 11), (0, 0)]).indexed
    assert found.images["mode"][0] == core.RAW
    assert found.images["row"].tolist() == [0, 0]
    assert index.fault(found) == ""


def test_file_gives_back_what_went_in(tmp_path: Path) -> None:
    path = tmp_path / "a.rows"
    whole = indexed(made(20, largest=40))
    save_index(path, whole, SOURCE)
    assert equal(load_index(path, SOURCE), whole)
    again = tmp_path / "b.rows"
    save_index(again, load_index(path), SOURCE)
    assert again.read_bytes() == path.read_bytes()


def test_index_takes_180_bytes_for_a_crop(tmp_path: Path) -> None:
    crops = [encoded(content(np.random.default_rng(i), 256, 256, 4), quality=90) for i in range(20)]
    save_index(tmp_path / "a.rows", indexed(crops), SOURCE)
    assert (tmp_path / "a.rows").stat().st_size <= 20 * 200 + 2000


def test_other_and_unreadable_files_have_codes(tmp_path: Path) -> None:
    path = tmp_path / "a.rows"
    save_index(path, indexed(made(3)), SOURCE)

    def code(path: Path, source: bytes = SOURCE) -> str:
        with pytest.raises(ToolError) as caught:
            load_index(path, source)
        return caught.value.code

    assert code(path, bytes(32)) == "rows.other"
    assert code(tmp_path / "none") == "rows.unreadable"
    data = path.read_bytes()
    for damage in (b"", data[:50], data[:-1], data + b"\0", data[:200] + b"\1" + data[201:]):
        path.write_bytes(damage)
        assert code(path) == "rows.damaged"


FAULTS: dict[str, tuple[str, str | None, Any]] = {
    "status": ("images", "status", 200),
    "mode": ("images", "mode", 9),
    "row": ("images", "row", 1 << 40),
    "tables": ("images", "huffman", 60_000),
    "height": ("images", "height", 9000),
    "no width": ("images", "width", 0),
    "position": ("positions", None, -5),
    "late position": ("positions", None, 1 << 30),
    "predictor": ("predictors", None, 30_000),
    "codes": ("specs", None, 255),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_every_number_is_checked(tmp_path: Path, kind: str) -> None:
    whole = indexed(made(6, seed=4, smallest=20))
    name, field, value = FAULTS[kind]
    array = getattr(whole, name).copy()
    (array[field] if field else array.reshape(-1))[0] = value
    save_index(tmp_path / "a.rows", dataclasses.replace(whole, **{name: array}), SOURCE)
    with fails("rows.damaged"):
        load_index(tmp_path / "a.rows", SOURCE)


def test_damage_never_leads_outside_of_memory(tmp_path: Path) -> None:
    """JPEG_FUZZ=10000 for a long run."""
    count = os.environ.get("JPEG_FUZZ", "150")
    cache = str(tmp_path / "cache")  # code with bounds checks is other code
    found = python(
        "-m", "tests.kit.jpeg_fuzz", count, "7", NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=cache
    )
    assert "accepted" in found


def test_index_without_images() -> None:
    empty = index_images(np.zeros(8, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert len(empty.images) == len(empty.positions) == 0
    assert index.fault(join([empty, empty])) == ""
