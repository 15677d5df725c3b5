"""Weights from the order of a file to panels (see layout.py), rounded to bfloat16 on the way."""

from __future__ import annotations

import numpy as np

from .jit import entry, inline
from .layout import LANES
from .simd import get, load, load_strided, place, put, splat, store_two
from .team import barrier, claim

_ROWS = 64  # rows of a task


@entry
def pack(team, panels, w, first_k, first_n, K, N, depth, k_stride, n_stride):
    """A piece of a matrix into its panels.

    panels  the whole matrix's panels, of `depth` rows, flat: float32 or bfloat16
    w       the piece [K, N], float32 or bfloat16, flat: element (k, n) at k · k_stride +
            n · n_stride. One of the strides is 1: as Conv1D stores a matrix, or transposed.
    first_k, first_n  where in the matrix the piece begins: even; a multiple of LANES
    """
    task = claim(team)
    while task * _ROWS < K:
        begin = task * _ROWS
        end = min(K, begin + _ROWS)
        for n in range(0, N - N % LANES, LANES):
            panel = (first_n + n) * depth
            for k in range(begin, end, 2):
                here = k * k_stride + n * n_stride
                first, second = _row(w, here, n_stride), splat(np.float32(0))
                if k + 1 < end:
                    second = _row(w, here + k_stride, n_stride)
                store_two(first, second, panels, panel + (first_k + k) * LANES)
        for n in range(N - N % LANES, N):
            panel, lane = (first_n + n) // LANES * LANES * depth, n % LANES
            for k in range(begin, end):
                value = get(w, k * k_stride + n * n_stride)
                put(value, panels, panel + place(panels, first_k + k, lane))
        task = claim(team)
    barrier(team)


@inline
def _row(w, index, n_stride):
    return load(w, index) if n_stride == 1 else load_strided(w, index, n_stride)
