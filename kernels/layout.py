"""How numbers lie in memory; free of Numba, which reading a header need not load.

The right factor of a product, [K, N], is held in panels: sixteen columns each, row below row, so
that a product reads it from front to back, whatever the number of rows of the left factor.

    float32   [N / 16, K, 16]
    bfloat16  [N / 16, K / 2, 16, 2]     rows 2i and 2i + 1 side by side

K is rounded up to a multiple of PAD and N to one of GROUP; what is added is zero. Rows of
activations, [M, C], lie row_stride(C) elements apart; what is between them is zero, too.
"""

from __future__ import annotations

import numpy as np

LANES = 16  # float32 in a vector, on every processor; columns of a panel
PAD = 32  # the rows of a panel are a multiple of it
GROUP = 64  # columns of a matrix that are computed together: four panels
KEYS = 256  # keys that attention takes at a time: a cache's capacity is a multiple of it


# How weights, keys and values are held; bfloat16 as its bits.
HELD = {"f32": np.dtype(np.float32), "bf16": np.dtype(np.uint16)}


def padded(n: int, multiple: int = PAD) -> int:
    """n, rounded up."""
    return -(-n // multiple) * multiple


def row_stride(n: int) -> int:
    """From row to row of [M, n]: an odd multiple of PAD, so that the rows of a tile, read side by
    side, do not all fall into the same few sets of a cache."""
    return padded(n) | PAD


def panels_size(K: int, N: int) -> int:
    """The elements of the panels of a matrix [K, N]."""
    return padded(K) * padded(N, GROUP)


def unpacked(panels: np.ndarray, K: int, N: int) -> np.ndarray:
    """Panels, flat, as the matrix [K, N] in the same type."""
    rows = padded(K)
    if panels.dtype == np.uint16:
        blocks = panels.reshape(-1, rows // 2, LANES, 2).transpose(1, 3, 0, 2)
    else:
        blocks = panels.reshape(-1, rows, LANES).transpose(1, 0, 2)
    return blocks.reshape(rows, -1)[:K, :N]
