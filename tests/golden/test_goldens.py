"""What was decided once stays: every golden in this folder equals what is made now.

``python -m tests.golden.blessing NAME`` writes one anew, when a change is meant.
"""

from __future__ import annotations

import pytest

from tests.golden.blessing import CASES, FOLDER, NEED_DATA, read


def test_every_golden_has_a_case_and_every_case_a_golden() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(CASES)


@pytest.mark.parametrize("name", sorted(CASES))
def test_what_is_made_is_what_was_blessed(name: str, request: pytest.FixtureRequest) -> None:
    if name in NEED_DATA:
        request.getfixturevalue("shared_data")  # skips where it is absent
    made, blessed = CASES[name](), read(name)
    changed = [key for key in made.keys() | blessed.keys() if made.get(key) != blessed.get(key)]
    assert changed == [], f"changed: {sorted(changed)}; bless it only if that is meant"
