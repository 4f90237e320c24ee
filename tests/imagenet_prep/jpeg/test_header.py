"""The frame header of a JPEG, as PIL reads it too; what is none is a reason."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagenet_prep.jpeg.header import Frame, jpeg_frame


def encoded(mode: str, size: tuple[int, int], **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 77).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("mode", "components"), [("L", 1), ("RGB", 3), ("CMYK", 4)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"\xff\xc0" * 99}])
def test_frame_is_what_pil_reads(mode: str, components: int, options: dict[str, Any]) -> None:
    data = encoded(mode, (37, 300), **options)
    assert jpeg_frame(data) == Frame(37, 300, components)
    assert jpeg_frame(memoryview(bytearray(data))) == Frame(37, 300, components)


def test_filling_bytes_before_a_marker_are_passed_over() -> None:
    data = encoded("RGB", (8, 9))
    at = data.index(b"\xff\xc0")
    assert jpeg_frame(data[:at] + b"\xff\xff" + data[at:]) == Frame(8, 9, 3)


def changed(at: int, byte: int) -> bytes:
    data = bytearray(encoded("RGB", (8, 9)))
    data[data.index(b"\xff\xc0") + at] = byte
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is not a JPEG"),
        (b"GIF89a", "is not a JPEG"),
        (encoded("RGB", (8, 9))[:-1], "is not a whole JPEG: it has no end"),
        (encoded("RGB", (8, 9))[:20] + b"\xff\xd9", "has no frame header"),
        (b"\xff\xd8\xff\xd9", "has no frame header"),
        (changed(1, 0xC3), "lossless"),
        (changed(1, 0xC9), "arithmetic"),
        (changed(1, 0xDA), "has no frame header"),
        (changed(4, 12), "has 12 bits"),
        (changed(9, 2), "its frame header is damaged"),
        (changed(3, 7), "its frame header is damaged"),
        (changed(2, 255), "its frame header is damaged"),
    ],
)
def test_what_is_no_image_for_every_decoder_is_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        jpeg_frame(data)


@given(st.binary(max_size=60))
def test_no_bytes_are_more_than_a_reason(middle: bytes) -> None:
    data = b"\xff\xd8\xff" + middle + b"\xff\xd9"
    try:
        frame = jpeg_frame(data)
    except ValueError:
        return
    assert 0 <= frame.components < 256 and max(frame.width, frame.height) < 1 << 16
