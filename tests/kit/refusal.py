"""An expected error: its code, and words that its message must have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from imagenet_prep.core.errors import ToolError


@contextlib.contextmanager
def refusal(code: str, *words: str, kind: type[ToolError] = ToolError) -> Iterator[None]:
    """Asserts that the block raises a ``kind`` with this code, in one line with these words."""
    with pytest.raises(kind) as caught:
        yield
    assert caught.value.code == code, caught.value
    assert "\n" not in caught.value.message
    for word in words:
        assert word in caught.value.message
