"""The loop of the statistics: pixels added to sums per pixel and to sums of products.

Compiled by numba; NumPy takes eight times as long per image. LLVM vectorises it because every
sum is of 32 bits: two channels of 16 bits side by side, or one product.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

PRODUCTS = ("rr", "rg", "rb", "gg", "gb", "bb")
MAX_PIXELS = 1 << 16
"""Pixels of one call: 2^16 * 255 * 255 < 2^32."""

Words = NDArray[np.uint32]
AddPixels = Callable[[Words, Words, Words, NDArray[np.uint64]], None]
"""``add(pixels, red_blue, green, products)``, the first three of the same length.

``pixels`` are words of the bytes red, green, blue and one that is ignored. ``red_blue`` and
``green`` hold pairs of 16-bit sums, of (red, blue) and of (green, the fourth byte), so they are
exact for 257 images. ``products`` are six uint64 in the order of PRODUCTS.
"""


@functools.cache
def add_pixels() -> AddPixels:
    """The compiled loop, from numba's cache where that can be written."""
    import numba

    words, sums = numba.uint32[::1], numba.uint64[::1]
    compiled: Any
    try:
        compiled = numba.njit(numba.void(words, words, words, sums), nogil=True, cache=True)(_add)
    except RuntimeError:  # no folder for the cache can be written
        compiled = numba.njit(numba.void(words, words, words, sums), nogil=True)(_add)
    found: AddPixels = compiled
    return found


def _add(pixels: Any, red_blue: Any, green: Any, products: Any) -> None:
    rr = rg = rb = gg = gb = bb = np.uint32(0)
    for i in range(len(pixels)):
        pixel = pixels[i]
        even = pixel & np.uint32(0x00FF00FF)
        odd = (pixel >> np.uint32(8)) & np.uint32(0x00FF00FF)
        red_blue[i] += even
        green[i] += odd
        r, g, b = pixel & np.uint32(255), odd & np.uint32(255), even >> np.uint32(16)
        # numba widens sums to 64 bits; cut back to 32, LLVM adds eight at a time.
        rr = np.uint32(rr + r * r)
        rg = np.uint32(rg + r * g)
        rb = np.uint32(rb + r * b)
        gg = np.uint32(gg + g * g)
        gb = np.uint32(gb + g * b)
        bb = np.uint32(bb + b * b)
    for k, total in enumerate((rr, rg, rb, gg, gb, bb)):
        products[k] += total
