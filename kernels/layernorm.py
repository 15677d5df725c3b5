"""Layer normalisation (Ba, Kiros, Hinton 2016)."""

from __future__ import annotations

import numpy as np

from .jit import jit
from .layout import LANES
from .simd import (
    fma,
    lane_numbers,
    load,
    load_first,
    select_less,
    splat,
    store,
    store_first,
    vsum,
)
from .team import barrier, claim

_ROWS_PER_TASK = 8


@jit
def layernorm_forward(team, y, x, ld, weight, bias, M, C, eps):
    """y[m, :] = (x[m, :] − mean) / √(variance + eps) · weight + bias, over each row by itself.

    y             [M, C], rows `ld` apart
    x             float32, as y
    weight, bias  [C]
    The variance is the mean of squared differences (not of squares less the mean's square,
    which cancels).
    """
    tasks = (M + _ROWS_PER_TASK - 1) // _ROWS_PER_TASK
    task = claim(team)
    while task < tasks:
        first = task * _ROWS_PER_TASK
        for m in range(first, min(M, first + _ROWS_PER_TASK)):
            _normalise(y, x, m * ld, weight, bias, C, eps)
        task = claim(team)
    barrier(team)


@jit
def _normalise(y, x, i, weight, bias, C, eps):
    """One row, at element i of x and of y."""
    whole = C - C % LANES
    rest = C - whole
    zero = splat(np.float32(0))

    # pass 1: mean
    total = zero
    for c in range(0, whole, LANES):
        total = total + load(x, i + c)
    if rest:
        total = total + load_first(x, i + whole, rest)
    mean = splat(np.float32(vsum(total) / np.float32(C)))

    # pass 2: variance; the lanes beyond the row's end count as no difference
    total = zero
    for c in range(0, whole, LANES):
        d = load(x, i + c) - mean
        total = fma(d, d, total)
    if rest:
        d = load_first(x, i + whole, rest) - mean
        d = select_less(lane_numbers(), splat(np.float32(rest)), d, zero)
        total = fma(d, d, total)
    rstd = splat(np.float32(1) / np.sqrt(vsum(total) / np.float32(C) + eps))

    # pass 3: scale and shift
    for c in range(0, whole, LANES):
        n = (load(x, i + c) - mean) * rstd
        store(fma(n, load(weight, c), load(bias, c)), y, i + c)
    if rest:
        n = (load_first(x, i + whole, rest) - mean) * rstd
        n = fma(n, load_first(weight, whole, rest), load_first(bias, whole, rest))
        store_first(n, y, i + whole, rest)
