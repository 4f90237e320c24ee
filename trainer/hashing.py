"""Counter-based hash: (seed, epoch, index, number) -> 64 random bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MASK = (1 << 64) - 1
# splitmix64 (Steele, Lea, Flood 2014): the increment and the two multipliers of its mixer.
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's mixer on an array: a bijection of 64-bit words."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    return z ^ (z >> np.uint64(31))


def words(seed: int, epoch: int, indices: NDArray[Any], number: int) -> NDArray[np.uint64]:
    """Draw ``number`` of the samples ``indices`` (B,) in an epoch -> B random 64-bit words."""
    golden = np.uint64(_GOLDEN)
    key = _mixed(np.full(1, seed & MASK, np.uint64) + golden)
    key = _mixed((key ^ np.uint64(epoch)) + golden)
    keys = _mixed((key ^ np.asarray(indices, np.uint64)) + golden)
    return _mixed(keys + np.uint64(((number + 1) * _GOLDEN) & MASK))
