"""What tests expect of errors: their codes, not their wording."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from imagenet_prep.core.errors import ToolError


@contextlib.contextmanager
def fails(code: str, text: str = "", *, kind: type[ToolError] = ToolError) -> Iterator[None]:
    """The block raises an error with this code, and with ``text`` somewhere in its message."""
    with pytest.raises(kind) as caught:
        yield
    assert caught.value.code == code, str(caught.value)
    assert text in str(caught.value)
