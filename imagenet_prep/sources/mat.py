"""A MATLAB file of level 5 -> its struct arrays as plain values, as far as a devkit needs it.

Source of the format: "MAT-File Format", The MathWorks, sections on level 5. Pure, and safe
with any bytes: sizes are checked before anything is taken, and ValueError is all it raises.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER_BYTES = 128
_MAX_BYTES = 16 << 20
_MAX_DEPTH = 8
_MATRIX, _COMPRESSED = 14, 15
_STRUCT, _CHAR = 2, 4
_NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
_TEXTS = {1: "latin-1", 2: "latin-1", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_NUMERIC_CLASSES = range(6, 16)

Value = str | list[float] | list[dict[str, "Value"]] | None
"""Text, numbers in MATLAB's order, the elements of a struct array; None for other arrays."""


@dataclass(frozen=True)
class _Reader:
    order: str  # of struct: "<" or ">"

    def elements(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(type, its bytes) of each data element, one after the other."""
        at = 0
        while at + 8 <= len(data):
            word, size = struct.unpack_from(f"{self.order}II", data, at)
            if word >> 16:  # a small element: size, type and up to four bytes in eight
                kind, size, start, step = word & 0xFFFF, word >> 16, at + 4, 8
                if size > 4:
                    raise ValueError("a small element of more than four bytes")
            else:
                kind, start = word, at + 8
                step = 8 + size + (0 if kind == _COMPRESSED else -size % 8)
            if start + size > len(data):
                raise ValueError("an element is cut off")
            yield kind, data[start : start + size]
            at += step

    def matrix(self, data: bytes, depth: int = 0) -> tuple[str, Value]:
        """The bytes of an array -> its name and value."""
        if not data:
            return "", []  # an empty array may have nothing in it
        if depth > _MAX_DEPTH:
            raise ValueError("arrays within arrays too deep")
        parts = self.elements(data)
        (_, flags), (_, shape), (_, name) = (next(parts, (0, b"")) for _ in range(3))
        if len(flags) < 8:
            raise ValueError("an array without flags")
        kind = struct.unpack_from(f"{self.order}I", flags)[0] & 0xFF
        title = name.decode("latin-1")
        if kind == _STRUCT:
            return title, self._struct(parts, shape, depth)
        if kind == _CHAR:
            return title, self._text(*next(parts, (1, b"")))
        if kind in _NUMERIC_CLASSES:
            return title, self._numbers(*next(parts, (1, b"")))
        return title, None

    def _struct(
        self, parts: Iterator[tuple[int, bytes]], shape: bytes, depth: int
    ) -> list[dict[str, Value]]:
        _, width_data = next(parts, (0, b""))
        _, names_data = next(parts, (0, b""))
        width = int(self._numbers(5, width_data)[0]) if len(width_data) == 4 else 0
        if width < 1 or len(names_data) % width:
            raise ValueError("a struct without field names")
        names = [
            names_data[at : at + width].partition(b"\0")[0].decode("latin-1")
            for at in range(0, len(names_data), width)
        ]
        rows: list[dict[str, Value]] = []
        row: dict[str, Value] = {}
        for kind, data in parts:
            if kind != _MATRIX:
                raise ValueError("a field that is no array")
            row[names[len(row)]] = self.matrix(data, depth + 1)[1]
            if len(row) == len(names):
                rows.append(row)
                row = {}
        count = 1
        for number in self._numbers(5, shape):
            count *= int(number)
        if row or count != len(rows) or len(set(names)) != len(names):
            raise ValueError("a struct array with fields missing")
        return rows

    def _text(self, kind: int, data: bytes) -> str:
        if kind == 4:  # one unit of UTF-16 each
            return data.decode("utf-16-le" if self.order == "<" else "utf-16-be", "replace")
        return data.decode(_TEXTS.get(kind, "latin-1"), "replace")

    def _numbers(self, kind: int, data: bytes) -> list[float]:
        if kind not in _NUMBERS:
            raise ValueError(f"numbers of the unknown type {kind}")
        code = _NUMBERS[kind]
        count = len(data) // struct.calcsize(f"={code}")
        return list(struct.unpack_from(f"{self.order}{count}{code}", data))


def read_mat(data: bytes) -> dict[str, Value]:
    """The bytes of a MATLAB file -> its variables by name. Raises ValueError for others."""
    orders = {b"IM": "<", b"MI": ">"}
    if len(data) < _HEADER_BYTES or data[126:128] not in orders:
        raise ValueError("not a MATLAB file of level 5")
    reader = _Reader(orders[data[126:128]])
    found: dict[str, Value] = {}
    for kind, content in reader.elements(data[_HEADER_BYTES:]):
        if kind == _COMPRESSED:
            ((kind, content),) = list(reader.elements(_inflate(content)))[:1] or [(0, b"")]
        if kind == _MATRIX:
            name, value = reader.matrix(content)
            found[name] = value
    return found


def _inflate(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(data, _MAX_BYTES)
    except zlib.error as error:
        raise ValueError(f"damaged compression ({error})") from None
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise ValueError("a compressed element is cut off or too large")
    return content
