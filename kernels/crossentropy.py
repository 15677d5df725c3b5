"""Cross-entropy of logits and target tokens, and its gradient.

Training computes the logits of some hundred rows at a time and their gradient some thousand columns
at a time: neither exists for a whole batch.
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
def crossentropy_forward(team, losses, lse, logits, targets):
    """losses[m] = lse[m] − logits[m, targets[m]], in nats; 0 where targets[m] is IGNORED.

    losses   float32 [M]
    lse      float32 [M]: log Σ_v e^logits[m, v], which crossentropy_backward reads
    logits   View [M, V], float32
    targets  int64 [M]: 0 … V − 1, or IGNORED
    """
    m = next_task(team)
    while m < logits.M:
        row = m * logits.ld
        lse[m] = _log_sum_exp(logits.data, row, logits.N)
        losses[m] = 0
        if targets[m] != IGNORED:
            losses[m] = lse[m] - logits.data[row + targets[m]]
        m = next_task(team)
    barrier(team)


@jit
def _log_sum_exp(x, i, n):
    """log Σ e^x over the n elements from i on; subtracting the maximum keeps e^x finite."""
    lane_max = splat(_MINUS_INFINITY)
    for v in range(0, n, LANES):
        lane_max = vmax(lane_max, _or_minus_infinity(x, i, v, n))
    maximum = reduce_max(lane_max)
    total = splat(np.float32(0))
    for v in range(0, n, LANES):
        total = total + exp_bounded(_or_minus_infinity(x, i, v, n) - splat(maximum))
    return maximum + np.log(reduce_sum(total))


@jit
def _or_minus_infinity(x, i, v, n):
    """Elements v … v + 15 of the n from i on, and −∞ beyond the end."""
    values = load_first(x, i + v, min(LANES, n - v))
    return select_less(lane_ids(), splat(np.float32(n - v)), values, splat(_MINUS_INFINITY))


@jit
def crossentropy_backward(team, dlogits, logits, lse, targets, first, loss_scale):
    """dlogits[m, v] = loss_scale · (p[m, first + v] − [first + v = targets[m]]),
    with p = softmax(logits) = e^(logits − lse).

    dlogits     View [M, n]: the gradient of logits[:, first : first + n]; zeros are written after
                each row up to a multiple of K_ALIGN; rows whose target is IGNORED are zero
    logits      View [M, V], float32
    lse         float32 [M], from crossentropy_forward
    targets     int64 [M]
    loss_scale  the factor of each row's loss in the total loss
    """
    count = dlogits.N
    m = next_task(team)
    while m < logits.M:
        scale = np.float32(0) if targets[m] == IGNORED else loss_scale
        row, drow, target = m * logits.ld + first, m * dlogits.ld, targets[m] - first
        for v in range(0, count, LANES):
            p = _softmax(logits.data, row, v, count, lse[m])
            store(p * splat(scale), dlogits.data, drow + v)
        for v in range(padded(count, LANES), padded(count), LANES):
            store(splat(np.float32(0)), dlogits.data, drow + v)
        if 0 <= target < count:  # once more the vector with the target
            v = target - target % LANES
            p = _softmax(logits.data, row, v, count, lse[m])
            p = _minus_one_at(p, np.float32(target - v))
            store(p * splat(scale), dlogits.data, drow + v)
        m = next_task(team)
    barrier(team)


@jit
def _softmax(logits, i, v, n, lse):
    """e^(logits − lse) of elements v … v + 15 of the n from i on, and 0 beyond the end."""
    return exp(_or_minus_infinity(logits, i, v, n) - splat(lse))


@jit
def _minus_one_at(p, lane):
    """p − 1 in one of the sixteen lanes, p in the others."""
    lanes, zero, one = lane_ids(), splat(np.float32(0)), splat(np.float32(1))
    at_lane = select_less(lanes, splat(lane), zero, one)
    return p - select_less(lanes, splat(lane + np.float32(1)), at_lane, zero)
