"""The sizes that arrays in memory agree on; free of Numba, which reading a header need not load."""

from __future__ import annotations

LANES = 16  # float32 in a vector, on every processor
KEYS = 64  # keys that attention takes at a time: a cache's capacity is a multiple of it


def padded(HS: int) -> int:
    """HSP: the head size, rounded up to whole vectors."""
    return -(-HS // LANES) * LANES
