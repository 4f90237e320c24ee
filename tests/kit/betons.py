"""Places in a beton file, and bytes changed there."""

from __future__ import annotations

from pathlib import Path

from imagenet_prep.beton import format as beton_format

METADATA = beton_format.METADATA_START
SAMPLE = beton_format.SAMPLE.itemsize
WILD = 2**64 - 8


def patch(path: Path, offset: int, content: bytes) -> None:
    """Writes ``content`` at ``offset`` of a file."""
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(content)


def number(value: int, size: int = 8) -> bytes:
    """A little-endian number of ``size`` bytes."""
    return value.to_bytes(size, "little")
