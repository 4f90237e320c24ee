"""What tests expect of errors: their codes, and words that their messages must have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from imagenet_prep.core.errors import ToolError, UsageError


@contextlib.contextmanager
def fails(code: str, *words: str, usage: bool = False) -> Iterator[None]:
    """The block must raise a ``ToolError`` (or a ``UsageError``) with this code, in one line."""
    with pytest.raises(UsageError if usage else ToolError) as caught:
        yield
    assert caught.value.code == code, caught.value
    assert "\n" not in caught.value.message
    for word in words:
        assert word in caught.value.message
