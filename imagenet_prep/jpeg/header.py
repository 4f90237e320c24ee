"""JPEG bytes -> the contents of their frame header, without decoding (ITU-T T.81, annex B)."""

from __future__ import annotations

from typing import NamedTuple

# Baseline, extended and progressive, with Huffman codes: what every decoder reads.
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA
# These have no length; decoders go on right behind them, so a frame header could hide there.
_BARE = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})


class Frame(NamedTuple):
    """Of a image: its size in pixels, and its components (1 grey, 3 colour, 4 CMYK)."""

    width: int
    height: int
    components: int


def jpeg_frame(data: bytes | bytearray | memoryview) -> Frame:
    """A whole JPEG, from its first marker to its last -> its Frame.

    Raises ValueError with the reason, as what "it" is or has: not a JPEG, cut short, or of a
    kind that not every decoder reads. The coded pixels themselves are not looked at.
    """
    if data[:3] != b"\xff\xd8\xff":
        raise ValueError("is not a JPEG")
    if data[-2:] != b"\xff\xd9":
        raise ValueError("is not a whole JPEG: it has no end")
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xFF:  # a filling byte
            at += 1
            continue
        length = data[at + 2] << 8 | data[at + 3]
        if marker in _FRAMES:
            return _frame(data[at + 4 : at + 2 + length])
        if marker in _OTHER_FRAMES:
            raise ValueError("is a JPEG with arithmetic coding, or lossless")
        if marker == _START_OF_SCAN or marker in _BARE or length < 2:
            break
        at += 2 + length
    raise ValueError("is not a whole JPEG: it has no frame header")


def _frame(header: bytes | bytearray | memoryview) -> Frame:
    if len(header) < 6 or len(header) != 6 + 3 * header[5]:
        raise ValueError("is not a whole JPEG: its frame header is damaged")
    if header[0] != 8:
        raise ValueError(f"has {header[0]} bits a sample, and crops have 8")
    height, width = header[1] << 8 | header[2], header[3] << 8 | header[4]
    return Frame(width, height, header[5])
