"""Quantize weights to int8 or int4: from the order of a file to a QuantizedMatrix (quantized.py).

A block is QUANT_BLOCK rows of one column. Sixteen columns are the lanes of vectors, so sixteen
blocks are fitted at once, each by itself.

int8: the scale maps the maximum |w| of a block to 127.

int4: the minimum and the maximum give a first scale and offset. As extreme weights are rare, a
narrower range often has the smaller error, so several ranges are tried. For each, weights are
rounded to integers q; then the scale s and the offset o that fit these integers best are computed,
and both steps are repeated. The best fit minimizes Σ i · (w − s·q − o)², where the importance i of
a row is 1, or the mean square of the activations that multiply it (calibration). With all sums
weighted by i,

    s = (Σ1 · Σwq − Σw · Σq) / (Σ1 · Σqq − Σq · Σq)        o = (Σw − s · Σq) / Σ1

is the weighted linear regression of w on q.
"""

from __future__ import annotations

import numpy as np

from ..jit import entry, inline, jit
from ..layout import LANES, QUANT_BLOCK
from ..simd import (
    as_bfloat16,
    fma,
    get,
    k_per_line,
    load,
    load_strided,
    scales_per_block,
    select_less,
    splat,
    store,
    store_bytes,
    store_exact,
    vabs,
    vmax,
    vmin,
    vround,
)
from ..team import barrier, next_task

QUANTIZE_SCRATCH = QUANT_BLOCK * LANES  # float32 elements of scratch that a thread needs

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_MAX_INT8, _MAX_INT4, _HIGH_HALF = np.float32(127), np.float32(15), np.float32(16)
_STEPS_PER_HALF_RANGE = np.float32(2 / 15)  # half a range · this = a step of int4
_TINY = np.float32(1e-6)
_INFINITY = np.float32(np.inf)
_RANGES = 8  # the full range, then each 5 % narrower
_NARROWER = np.float32(0.05)
_REFITS = 2


@entry
def quantize(
    team, qweight, scales, w, importance, first_k, first_n, K, N, blocks, k_stride, n_stride
):
    """Quantize a part [K, N] of a matrix. The scale of a block with a NaN or ±∞ is NaN.

    qweight, scales  of the full matrix, with `blocks` blocks of rows, flat; int8 or (int4) uint8
    w                the part, float32 or bfloat16, flat: element (k, n) at k · k_stride +
                     n · n_stride; one of the strides is 1
    importance       float32, for each row of the matrix; int8 ignores it
    first_k, first_n  the position of the part in the matrix: multiples of QUANT_BLOCK and LANES, as
                     are K and N, except at the end of the matrix
    """
    block = team.scratch
    columns = (N + LANES - 1) // LANES
    tasks = columns * ((K + QUANT_BLOCK - 1) // QUANT_BLOCK)
    step = scales_per_block(qweight)
    lines = QUANT_BLOCK // k_per_line(qweight)
    task = next_task(team)
    while task < tasks:
        k, n = task // columns * QUANT_BLOCK, task % columns * LANES
        rows = min(QUANT_BLOCK, K - k)
        _read_block(
            block, w, k * k_stride + n * n_stride, rows, min(LANES, N - n), k_stride, n_stride
        )
        number = (first_n + n) // LANES * blocks + (first_k + k) // QUANT_BLOCK
        if step == LANES:
            _quantize_int8(qweight, number * lines * 4 * LANES, scales, number * step, block, rows)
        else:
            _quantize_int4(
                qweight, number * lines * 4 * LANES, scales, number * step,
                block, rows, importance, first_k + k,
            )  # fmt: skip
        task = next_task(team)
    barrier(team)


@jit
def _read_block(block, w, start, rows, columns, k_stride, n_stride):
    """Copy rows × columns of w to float32 [QUANT_BLOCK, 16], padded with zeros."""
    for r in range(QUANT_BLOCK):
        store(splat(_ZERO), block, r * LANES)
    for r in range(rows):
        i = start + r * k_stride
        if columns < LANES:
            for c in range(columns):
                block[r * LANES + c] = get(w, i + c * n_stride)
        elif n_stride == 1:
            store(load(w, i), block, r * LANES)
        else:
            store(load_strided(w, i, n_stride), block, r * LANES)


@inline
def _quantized(value, scale, low, high):
    """value / scale, rounded and clipped to [low, high]; 0 if the scale is 0 or value is NaN."""
    zero = splat(_ZERO)
    q = vround(select_less(zero, vabs(scale), value / scale, zero))
    return vmax(vmin(q, splat(high)), splat(low))


@jit
def _nan_if_not_finite(block, rows):
    """0 in each lane; NaN where the column contains NaN or ±∞."""
    result = splat(_ZERO)
    for r in range(rows):
        result = fma(load(block, r * LANES), splat(_ZERO), result)
    return result


@jit
def _quantize_int8(qweight, i, scales, isc, block, rows):
    """Quantize a block: its integers to element i, its scales to isc."""
    absmax = splat(_ZERO)
    for r in range(rows):
        absmax = vmax(absmax, vabs(load(block, r * LANES)))
    scale = as_bfloat16(absmax / splat(_MAX_INT8) + _nan_if_not_finite(block, rows))
    store_exact(scale, scales, isc)
    for r in range(0, QUANT_BLOCK, 4):
        store_bytes(
            _int8(block, r, scale), _int8(block, r + 1, scale),
            _int8(block, r + 2, scale), _int8(block, r + 3, scale),
            qweight, i + r * LANES,
        )  # fmt: skip


@inline
def _int8(block, r, scale):
    return _quantized(load(block, r * LANES), scale, -_MAX_INT8, _MAX_INT8)


@jit
def _quantize_int4(qweight, i, scales, isc, block, rows, importance, k):
    """Quantize a block: its integers to element i, its scales and offsets to isc.

    k  the first row of the block in the matrix
    """
    # pass 1: the range
    low = high = load(block, 0)
    for r in range(1, rows):
        value = load(block, r * LANES)
        low, high = vmin(low, value), vmax(high, value)
    middle, half_range = (high + low) * splat(_HALF), (high - low) * splat(_HALF)
    nan_if_not_finite = _nan_if_not_finite(block, rows)

    # pass 2: the best scale and offset; those of the full range where squared errors overflow
    scale, offset = as_bfloat16(half_range * splat(_STEPS_PER_HALF_RANGE)), as_bfloat16(low)
    best_error = splat(_INFINITY)
    for trial in range(_RANGES):
        half = half_range * splat(_ONE - _NARROWER * np.float32(trial))
        s, o = half * splat(_STEPS_PER_HALF_RANGE), middle - half
        for _ in range(_REFITS):
            s, o = _fit_line(block, rows, importance, k, s, o)
        s, o = as_bfloat16(s), as_bfloat16(o)
        error = _weighted_error(block, rows, importance, k, s, o)
        scale = select_less(error, best_error, s, scale)
        offset = select_less(error, best_error, o, offset)
        best_error = select_less(error, best_error, error, best_error)

    # pass 3: the integers, two rows in a byte
    store_exact(scale + nan_if_not_finite, scales, isc)
    store_exact(offset, scales, isc + LANES)
    for r in range(0, QUANT_BLOCK, 8):
        store_bytes(
            _int4_pair(block, r, scale, offset), _int4_pair(block, r + 1, scale, offset),
            _int4_pair(block, r + 2, scale, offset), _int4_pair(block, r + 3, scale, offset),
            qweight, i + r * LANES // 2,
        )  # fmt: skip


@inline
def _int4(block, r, scale, offset):
    return _quantized(load(block, r * LANES) - offset, scale, _ZERO, _MAX_INT4)


@inline
def _int4_pair(block, r, scale, offset):
    """Rows r and r + 4 in the low and the high half of a byte."""
    low, high = _int4(block, r, scale, offset), _int4(block, r + 4, scale, offset)
    return fma(high, splat(_HIGH_HALF), low)


@jit
def _fit_line(block, rows, importance, k, scale, offset):
    """The scale and offset that fit best the integers that a given scale and offset yield."""
    ones, qs, qqs, ws, wqs = splat(_ZERO), splat(_ZERO), splat(_ZERO), splat(_ZERO), splat(_ZERO)
    for r in range(rows):
        i = splat(importance[k + r])
        w = load(block, r * LANES)
        q = _int4(block, r, scale, offset)
        iq, iw = i * q, i * w
        ones, qs, ws = ones + i, qs + iq, ws + iw
        qqs, wqs = fma(iq, q, qqs), fma(iw, q, wqs)
    spread = ones * qqs - qs * qs
    s = (ones * wqs - ws * qs) / spread
    o = (ws - s * qs) / ones
    # without a spread (all integers equal) there is no line to fit
    bound = splat(_TINY) * ones * qqs
    return select_less(bound, spread, s, scale), select_less(bound, spread, o, offset)


@jit
def _weighted_error(block, rows, importance, k, scale, offset):
    """Σ i · (w − s·q − o)²"""
    error = splat(_ZERO)
    for r in range(rows):
        q = _int4(block, r, scale, offset)
        difference = load(block, r * LANES) - fma(q, scale, offset)
        error = fma(splat(importance[k + r]) * difference, difference, error)
    return error
