"""Cross-entropy of logits and target tokens, and its gradient.

The logits of a batch are its largest array. Training computes a block of columns at a time, and
keeps e^(logits − max), rounded like an operand of products, with the maximum and the sum of each
row in the block: a softmax state, as attention has it. The states of all blocks give the loss, and
the factors that make probabilities of the exponentials. So logits are read while they are in the
caches, and each exponential is computed once.

    crossentropy_block     for each block of columns
    crossentropy_forward   losses, from the states of all blocks
    crossentropy_backward  the gradient of a block of columns
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .activation import exp_bounded
from .jit import jit
from .layout import IGNORED, K_ALIGN, LANES, padded
from .simd import (
    lane_ids,
    load,
    load_first,
    put,
    reduce_max,
    reduce_sum,
    select_less,
    splat,
    store,
    store_first,
    transpose_16x16,
    vmax,
)
from .team import barrier, next_task

_MINUS_INFINITY, _ZERO = np.float32(-np.inf), np.float32(0)


class SoftmaxStates(NamedTuple):
    """What crossentropy_forward needs of the logits, float32, flat.

    maxima, sums   [blocks, M]: max z and Σ e^(z − max) of each row of logits z in each block
    target_logits  [M]: the logit of each row's target
    lse            [M]: log Σ_v e^z_v of the row, by crossentropy_forward
    """

    maxima: np.ndarray
    sums: np.ndarray
    target_logits: np.ndarray
    lse: np.ndarray


@jit
def crossentropy_block(team, e, states, logits, targets, block, first):
    """e[m, v] = e^(logits[m, v] − max), with the maximum of row m of the block; fills `states`.

    e        View [M, n], float32 or bfloat16
    states   SoftmaxStates
    logits   View [M, n], float32: columns first … first + n − 1
    targets  int64 [M]: 0 … V − 1, or IGNORED
    block    the number of the block
    """
    M, n = logits.M, logits.N
    m = next_task(team)
    while m < M:
        row, to = m * logits.ld, m * e.ld
        maximum = _max(logits.data, row, n)
        states.maxima[block * M + m] = maximum
        states.sums[block * M + m] = _exp_and_sum(e.data, to, logits.data, row, n, maximum)
        if first <= targets[m] < first + n:
            states.target_logits[m] = logits.data[row + targets[m] - first]
        m = next_task(team)
    barrier(team)


@jit
def _max(x, i, n):
    """The maximum of the n elements from i on."""
    full = n - n % LANES
    lane_max = splat(_MINUS_INFINITY)
    for v in range(0, full, LANES):
        lane_max = vmax(lane_max, load(x, i + v))
    if full < n:
        lane_max = vmax(lane_max, _first_or_minus_infinity(x, i + full, n - full))
    return reduce_max(lane_max)


@jit
def _exp_and_sum(e, to, x, i, n, maximum):
    """e^(x − maximum) of the n elements from i on, to `to` of e; returns their sum."""
    full = n - n % LANES
    total = splat(_ZERO)
    for v in range(0, full, LANES):
        value = exp_bounded(load(x, i + v) - splat(maximum))
        store(value, e, to + v)
        total = total + value
    if full < n:
        rest = n - full
        value = exp_bounded(_first_or_minus_infinity(x, i + full, rest) - splat(maximum))
        store_first(value, e, to + full, rest)
        total = total + value
    return reduce_sum(total)


@jit
def _first_or_minus_infinity(x, i, count):
    """The first `count` of the sixteen elements from i on, −∞ in the other lanes."""
    values = load_first(x, i, count)
    return select_less(lane_ids(), splat(np.float32(count)), values, splat(_MINUS_INFINITY))


@jit
def crossentropy_forward(team, losses, states, targets, M, blocks):
    """losses[m] = lse[m] − the logit of targets[m], in nats; 0 where targets[m] is IGNORED.

    losses   float32 [M]
    states   SoftmaxStates, which crossentropy_block has filled for all `blocks`; lse is set here
    targets  int64 [M]
    """
    m = next_task(team)
    while m < M:
        lse = _log_sum_exp(states, m, M, blocks)
        states.lse[m] = lse
        losses[m] = 0
        if targets[m] != IGNORED:
            losses[m] = lse - states.target_logits[m]
        m = next_task(team)
    barrier(team)


@jit
def _log_sum_exp(states, m, M, blocks):
    """log Σ_v e^z_v of row m, from its states; subtracting the maximum keeps e^z finite."""
    maximum = _MINUS_INFINITY
    for i in range(m, blocks * M, M):
        maximum = max(maximum, states.maxima[i])
    total = _ZERO
    for i in range(m, blocks * M, M):
        total += states.sums[i] * np.exp(states.maxima[i] - maximum)
    return maximum + np.log(total)


@jit
def crossentropy_backward(
    team, dlogits, dlogits_t, e, states, losses, targets, block, first, loss_scale
):
    """dlogits[m, v] = loss_scale · (p[m, first + v] − [first + v = targets[m]]),
    with p = softmax(logits) = e · e^(max − lse); and the same transposed.

    dlogits     View [M, n]: an A operand, with memory for M up to a multiple of K_ALIGN
    dlogits_t   View [n, M]: an A operand, with memory for n up to a multiple of LANES
    e           View [M, n]: what crossentropy_block left of the block `block`, whose columns begin
                at `first`
    states      SoftmaxStates
    losses      float32 [M], from crossentropy_forward
    targets     int64 [M]; rows whose target is IGNORED are zero
    loss_scale  the factor of each row's loss in the total loss

    A task is K_ALIGN rows of dlogits, cache lines of dlogits_t.
    """
    M, n = e.M, e.N
    task = next_task(team)
    while task * K_ALIGN < M:
        first_row = task * K_ALIGN
        for m in range(first_row, first_row + K_ALIGN):
            row = m * dlogits.ld
            if m < M and targets[m] != IGNORED:
                factor = np.exp(states.maxima[block * M + m] - states.lse[m]) * loss_scale
                _scale_row(dlogits.data, row, e.data, m * e.ld, n, factor)
                if first <= targets[m] < first + n:
                    # p − 1 from the loss, −log p: e may be rounded
                    value = (np.exp(-losses[m]) - np.float32(1)) * loss_scale
                    put(value, dlogits.data, row + targets[m] - first)
            else:
                _clear_row(dlogits.data, row, n)
        for m in range(first_row, first_row + K_ALIGN, LANES):
            for v in range(0, n, LANES):
                transpose_16x16(
                    dlogits.data, m * dlogits.ld + v, dlogits.ld,
                    dlogits_t.data, v * dlogits_t.ld + m, dlogits_t.ld,
                )  # fmt: skip
        task = next_task(team)
    barrier(team)


@jit
def _scale_row(d, to, e, i, n, factor):
    """factor · the n elements of e from i on, to `to` of d; zeros after them up to K_ALIGN."""
    full = n - n % LANES
    for v in range(0, full, LANES):
        store(load(e, i + v) * splat(factor), d, to + v)
    if full < n:
        store(load_first(e, i + full, n - full) * splat(factor), d, to + full)
    for v in range(padded(n, LANES), padded(n), LANES):
        store(splat(_ZERO), d, to + v)


@jit
def _clear_row(d, to, n):
    """Zeros for n elements, up to a multiple of K_ALIGN."""
    for v in range(0, padded(n), LANES):
        store(splat(_ZERO), d, to + v)
