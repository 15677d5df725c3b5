"""Layer normalization (Ba, Kiros, Hinton 2016), forward and backward."""

from __future__ import annotations

from typing import NamedTuple

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
_ROWS_PER_SUM = 32  # backward sums dweight and dbias over so many rows, then over these sums


class LayerNorm(NamedTuple):
    """The parameters of a layernorm, or their gradients: float32 [C] each."""

    weight: np.ndarray
    bias: np.ndarray


@jit
def layernorm_forward(team, y, x, norm, eps):
    """y[m, :] = (x[m, :] − mean) / √(variance + eps) · weight + bias, with the mean and variance
    of each row.

    y     View [M, C], float32 or bfloat16
    x     View [M, C], float32
    norm  LayerNorm
    eps   float32

    The variance is the mean of squared differences. The mean of squares minus the square of the
    mean would cancel where the mean is large.
    """
    tasks = (x.M + _ROWS_PER_TASK - 1) // _ROWS_PER_TASK
    task = next_task(team)
    while task < tasks:
        first = task * _ROWS_PER_TASK
        for m in range(first, min(x.M, first + _ROWS_PER_TASK)):
            _normalize_row(y.data, m * y.ld, x.data, m * x.ld, norm, x.N, eps)
        task = next_task(team)
    barrier(team)


@jit
def layernorm_rows(team, y, x, rows, norm, eps):
    """As layernorm_forward for some rows of x, in any order: y[i, :] from x[rows[i], :].

    y     View [n, C], float32 or bfloat16
    rows  int64 [n], each below M
    """
    i = next_task(team)
    while i < rows.size:
        _normalize_row(y.data, i * y.ld, x.data, rows[i] * x.ld, norm, x.N, eps)
        i = next_task(team)
    barrier(team)


@jit
def _normalize_row(y, iy, x, ix, norm, C, eps):
    """One row: from x at element ix to y at element iy."""
    whole = C - C % LANES
    rest = C - whole
    mean, rstd = _mean_and_rstd(x, ix, C, eps)
    for c in range(0, whole, LANES):
        n = (load(x, ix + c) - mean) * rstd
        store(fma(n, load(norm.weight, c), load(norm.bias, c)), y, iy + c)
    if rest:
        n = (load_first(x, ix + whole, rest) - mean) * rstd
        weight = load_first(norm.weight, whole, rest)
        n = fma(n, weight, load_first(norm.bias, whole, rest))
        store_first(n, y, iy + whole, rest)


@jit
def _mean_and_rstd(x, i, C, eps):
    """The mean of the row at element i and 1 / √(variance + eps), each in all lanes."""
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

    # pass 2: variance; lanes beyond the end of the row add nothing
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
    """The float32 elements that layernorm_backward needs in `partials`."""
    return -(-M // _ROWS_PER_SUM) * 2 * C


@jit
def layernorm_backward(team, dx, dnorm, dy, x, norm, partials, eps):
    """Add the gradients to dx, dnorm.weight and dnorm.bias.

    With n = (x − mean) · rstd and dn = dy · weight, each mean over a row (docs/training.md):

        dbias   += Σ_m dy[m]
        dweight += Σ_m dy[m] · n[m]
        dx      += rstd · (dn − mean(dn) − n · mean(dn · n))

    dx, dy, x  View [M, C], float32
    dnorm      LayerNorm: the gradients of norm's weight and bias
    partials   float32 [layernorm_partials(M, C)]: sums of dweight and dbias over _ROWS_PER_SUM
               rows each, which are added up in their order
    """
    M, C = x.M, x.N
    task = next_task(team)
    while task * _ROWS_PER_SUM < M:
        offset = task * 2 * C
        partials[offset : offset + 2 * C] = 0
        first = task * _ROWS_PER_SUM
        for m in range(first, min(M, first + _ROWS_PER_SUM)):
            _backward_row(dx, partials, offset, dy, x, m, norm.weight, eps)
        task = next_task(team)
    barrier(team)
    c = next_task(team) * LANES
    while c < C:
        lanes = min(LANES, C - c)
        dweight, dbias = load_first(dnorm.weight, c, lanes), load_first(dnorm.bias, c, lanes)
        for i in range((M + _ROWS_PER_SUM - 1) // _ROWS_PER_SUM):
            offset = i * 2 * C
            dweight = dweight + load_first(partials, offset + c, lanes)
            dbias = dbias + load_first(partials, offset + C + c, lanes)
        store_first(dweight, dnorm.weight, c, lanes)
        store_first(dbias, dnorm.bias, c, lanes)
        c = next_task(team) * LANES
    barrier(team)


@jit
def _backward_row(dx, partials, offset, dy, x, m, weight, eps):
    """Row m: add to dx, and to the sums of dweight and dbias at `offset` of `partials`."""
    C, i, idx, idy = x.N, m * x.ld, m * dx.ld, m * dy.ld
    mean, rstd = _mean_and_rstd(x.data, i, C, eps)
    sum_dn, sum_dn_n = splat(np.float32(0)), splat(np.float32(0))
    for c in range(0, C, LANES):
        lanes = min(LANES, C - c)
        dyc = load_first(dy.data, idy + c, lanes)
        n = (load_first(x.data, i + c, lanes) - mean) * rstd
        dn = dyc * load_first(weight, c, lanes)
        sum_dn = sum_dn + dn
        sum_dn_n = fma(dn, n, sum_dn_n)
        dweight = fma(dyc, n, load_first(partials, offset + c, lanes))
        dbias = load_first(partials, offset + C + c, lanes) + dyc
        store_first(dweight, partials, offset + c, lanes)
        store_first(dbias, partials, offset + C + c, lanes)
    mean_dn = splat(reduce_sum(sum_dn) / np.float32(C))
    mean_dn_n = splat(reduce_sum(sum_dn_n) / np.float32(C))
    for c in range(0, C, LANES):
        lanes = min(LANES, C - c)
        n = (load_first(x.data, i + c, lanes) - mean) * rstd
        dn = load_first(dy.data, idy + c, lanes) * load_first(weight, c, lanes)
        d = (dn - mean_dn - n * mean_dn_n) * rstd
        store_first(load_first(dx.data, idx + c, lanes) + d, dx.data, idx + c, lanes)
