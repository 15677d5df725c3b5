"""Layer normalisation (Ba, Kiros, Hinton 2016)."""

from __future__ import annotations

import numpy as np

from .jit import jit
from .layout import LANES
from .simd import (
    fma,
    lane_ids,
    load,
    load_first,
    reduce_sum,
    select_less,
    splat,
    store,
    store_first,
)
from .team import barrier, next_task

_ROWS_PER_TASK = 8
_ROWS_PER_SUM = 32


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
    task = next_task(team)
    while task < tasks:
        first = task * _ROWS_PER_TASK
        for m in range(first, min(M, first + _ROWS_PER_TASK)):
            _normalise(y, x, m * ld, weight, bias, C, eps)
        task = next_task(team)
    barrier(team)


@jit
def _normalise(y, x, i, weight, bias, C, eps):
    """One row, at element i of x and of y."""
    whole = C - C % LANES
    rest = C - whole
    mean, rstd = _mean_and_rstd(x, i, C, eps)
    for c in range(0, whole, LANES):
        n = (load(x, i + c) - mean) * rstd
        store(fma(n, load(weight, c), load(bias, c)), y, i + c)
    if rest:
        n = (load_first(x, i + whole, rest) - mean) * rstd
        n = fma(n, load_first(weight, whole, rest), load_first(bias, whole, rest))
        store_first(n, y, i + whole, rest)


@jit
def _mean_and_rstd(x, i, C, eps):
    """The mean of a row and 1 / √(variance + eps), each in all lanes."""
    whole = C - C % LANES
    rest = C - whole
    zero = splat(np.float32(0))

    # pass 1: mean
    total = zero
    for c in range(0, whole, LANES):
        total = total + load(x, i + c)
    if rest:
        total = total + load_first(x, i + whole, rest)
    mean = splat(np.float32(reduce_sum(total) / np.float32(C)))

    # pass 2: variance; the lanes beyond the row's end count as no difference
    total = zero
    for c in range(0, whole, LANES):
        d = load(x, i + c) - mean
        total = fma(d, d, total)
    if rest:
        d = load_first(x, i + whole, rest) - mean
        d = select_less(lane_ids(), splat(np.float32(rest)), d, zero)
        total = fma(d, d, total)
    return mean, splat(np.float32(1) / np.sqrt(reduce_sum(total) / np.float32(C) + eps))


def layernorm_partials(M: int, C: int) -> int:
    """float32 elements of `partials` that layernorm_backward needs."""
    return -(-M // _ROWS_PER_SUM) * 2 * C


@jit
def layernorm_backward(team, dx, dweight, dbias, dy, x, ld, weight, partials, M, C, eps):
    """From dy = ∂loss/∂y: what is to be added to dx, dweight and dbias.

    With n = (x − mean) · rstd, and each mean over a row (docs/training.md):

        dbias   += Σ_m dy[m]
        dweight += Σ_m dy[m] · n[m]
        dx      += rstd · (dn − mean(dn) − n · mean(dn · n)),    dn = dy · weight

    dx, dy, x              float32 [M, C], rows `ld` apart
    dweight, dbias, weight [C]
    partials               float32, of layernorm_partials: the sums of _ROWS_PER_SUM rows each,
                           which are added up in their order
    """
    task = next_task(team)
    while task * _ROWS_PER_SUM < M:
        offset = task * 2 * C
        partials[offset : offset + 2 * C] = 0
        first = task * _ROWS_PER_SUM
        for m in range(first, min(M, first + _ROWS_PER_SUM)):
            _denormalise(dx, partials, offset, dy, x, m * ld, weight, C, eps)
        task = next_task(team)
    barrier(team)
    c = next_task(team) * LANES
    while c < C:
        lanes = min(LANES, C - c)
        scale, shift = load_first(dweight, c, lanes), load_first(dbias, c, lanes)
        for block in range((M + _ROWS_PER_SUM - 1) // _ROWS_PER_SUM):
            offset = block * 2 * C
            scale = scale + load_first(partials, offset + c, lanes)
            shift = shift + load_first(partials, offset + C + c, lanes)
        store_first(scale, dweight, c, lanes)
        store_first(shift, dbias, c, lanes)
        c = next_task(team) * LANES
    barrier(team)


@jit
def _denormalise(dx, partials, offset, dy, x, i, weight, C, eps):
    """One row, at element i, to dx and to the sums of dweight and dbias at `place`."""
    mean, rstd = _mean_and_rstd(x, i, C, eps)
    sum_dn, sum_dn_n = splat(np.float32(0)), splat(np.float32(0))
    for c in range(0, C, LANES):
        lanes = min(LANES, C - c)
        dyc = load_first(dy, i + c, lanes)
        n = (load_first(x, i + c, lanes) - mean) * rstd
        dn = dyc * load_first(weight, c, lanes)
        sum_dn = sum_dn + dn
        sum_dn_n = fma(dn, n, sum_dn_n)
        dweight = fma(dyc, n, load_first(partials, offset + c, lanes))
        store_first(dweight, partials, offset + c, lanes)
        store_first(
            load_first(partials, offset + C + c, lanes) + dyc, partials, offset + C + c, lanes
        )
    mean_dn = splat(reduce_sum(sum_dn) / np.float32(C))
    mean_dn_n = splat(reduce_sum(sum_dn_n) / np.float32(C))
    for c in range(0, C, LANES):
        lanes = min(LANES, C - c)
        n = (load_first(x, i + c, lanes) - mean) * rstd
        dn = load_first(dy, i + c, lanes) * load_first(weight, c, lanes)
        d = (dn - mean_dn - n * mean_dn_n) * rstd
        store_first(load_first(dx, i + c, lanes) + d, dx, i + c, lanes)
