"""Cross-entropy: how badly the next token was foretold, and the gradient of that.

The rows of logits come some hundred at a time, and their gradient some thousand columns at a time,
so that neither is ever there for a whole batch.
"""

from __future__ import annotations

import numpy as np

from .activation import exp, exp_bounded
from .jit import jit
from .layout import IGNORED, LANES, padded
from .simd import lane_ids, load_first, reduce_max, reduce_sum, select_less, splat, store, vmax
from .team import barrier, next_task

_MINUS_INFINITY = np.float32(-np.inf)


@jit
def crossentropy_forward(team, losses, norms, logits, ld, targets, M, V):
    """losses[m] = log Σ_v e^logits[m, v] − logits[m, targets[m]]; 0 where it does not count.

    losses, norms  float32 [M]; norms[m] = log Σ_v e^logits[m, v], for crossentropy_backward
    logits         float32 [M, V], rows `ld` apart
    targets        int64 [M], from 0 to V − 1, or IGNORED
    """
    m = next_task(team)
    while m < M:
        norms[m] = _log_sum_exp(logits, m * ld, V)
        losses[m] = 0
        if targets[m] != IGNORED:
            losses[m] = norms[m] - logits[m * ld + targets[m]]
        m = next_task(team)
    barrier(team)


@jit
def _log_sum_exp(x, i, n):
    """log Σ e^x over n elements from i on, less their greatest before and with it after."""
    most = splat(_MINUS_INFINITY)
    for v in range(0, n, LANES):
        most = vmax(most, _or_minus_infinity(x, i, v, n))
    greatest = reduce_max(most)
    total = splat(np.float32(0))
    for v in range(0, n, LANES):
        total = total + exp_bounded(_or_minus_infinity(x, i, v, n) - splat(greatest))
    return greatest + np.log(reduce_sum(total))


@jit
def _or_minus_infinity(x, i, v, n):
    """Elements v … v + 15 of n from i on, and −∞ beyond the end."""
    here = load_first(x, i + v, min(LANES, n - v))
    return select_less(lane_ids(), splat(np.float32(n - v)), here, splat(_MINUS_INFINITY))


@jit
def crossentropy_backward(team, dlogits, ldd, logits, ld, norms, targets, M, first, count, share):
    """dlogits[m, v] = share · (e^(logits[m, v] − norms[m]) − [v = targets[m]]) of some columns.

    dlogits  [M, count], rows `ldd` apart: the columns from `first` on; zeros follow up to a
             multiple of K_ALIGN; rows that do not count are zero
    share    the weight of each row in the loss
    """
    m = next_task(team)
    while m < M:
        weight = np.float32(0) if targets[m] == IGNORED else share
        row, norm, target = m * ld + first, norms[m], targets[m] - first
        for v in range(0, count, LANES):
            p = _softmax(logits, row, v, count, norm)
            store(p * splat(weight), dlogits, m * ldd + v)
        for v in range(padded(count, LANES), padded(count), LANES):
            store(splat(np.float32(0)), dlogits, m * ldd + v)
        if 0 <= target < count:  # once more the vector that it is in
            v = target - target % LANES
            p = _less_at(_softmax(logits, row, v, count, norm), np.float32(target - v))
            store(p * splat(weight), dlogits, m * ldd + v)
        m = next_task(team)
    barrier(team)


@jit
def _softmax(logits, i, v, n, norm):
    """e^(logits − norm) of elements v … v + 15 of n from i on, and 0 beyond the end."""
    return exp(_or_minus_infinity(logits, i, v, n) - splat(norm))


@jit
def _less_at(p, lane):
    """p − 1 in one of the sixteen lanes."""
    lanes, zero, one = lane_ids(), splat(np.float32(0)), splat(np.float32(1))
    here = select_less(lanes, splat(lane), zero, one)
    return p - select_less(lanes, splat(lane + np.float32(1)), here, zero)
