"""Every golden in this folder equals what the code computes now.

``python -m tests.golden.bless NAME`` writes one again, after an intended change.
"""

from __future__ import annotations

import json

import pytest

from tests.golden.bless import FOLDER, NAMES, computed


def test_every_golden_has_cases_and_the_reverse() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_golden_is_unchanged(name: str) -> None:
    made = computed(name)
    if made is None:
        pytest.skip("its data (../shared/data) is not on this machine")
    kept = json.loads((FOLDER / f"{name}.json").read_text())
    changed = sorted(key for key in made.keys() | kept.keys() if made.get(key) != kept.get(key))
    assert changed == []
