"""Quantize weights from the order of a file to a QuantizedMatrix (quantized.py).

A block is QUANT_BLOCK rows of sixteen columns; the sixteen are the lanes of vectors, so that each
is
fitted by itself and all at once.

int8: the scale makes the largest of a column 127.

int4: least and greatest give a first scale and offset. Numbers at the far ends are rare, so a
narrower range often does better: some ranges are tried. For each, weights are rounded to numbers
q, the scale s and offset o are computed that are the best for these numbers, and this is done
again. "Best" is the least Σ i · (w − s·q − o)², where i is the importance of a row: 1, or the mean
square of what the row is multiplied with in real use. With sums weighted by i,

    s = (Σ1 · Σwq − Σw · Σq) / (Σ1 · Σqq − Σq · Σq)        o = (Σw − s · Σq) / Σ1

is the line through the points (q, w) with the least squares.
"""

from __future__ import annotations

import numpy as np

from ..jit import entry, inline, jit
from ..layout import LANES, QUANT_BLOCK
from ..simd import (
    as_bfloat16,
    fma,
    get,
    load,
    load_strided,
    rows_of_line,
    scales_of_block,
    select_less,
    splat,
    store,
    store_bytes,
    vabs,
    vmax,
    vmin,
    vround,
)
from ..team import barrier, next_task

QUANTIZE_SCRATCH = QUANT_BLOCK * LANES  # float32 that a thread needs

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_LARGEST_8, _LARGEST_4, _SHIFT = np.float32(127), np.float32(15), np.float32(16)
_HALF_STEPS = np.float32(2 / 15)  # of half a range, to a step
_TINY = np.float32(1e-6)
_INFINITY = np.float32(np.inf)
_RANGES = 8  # that are tried: all of it, then 5 % less each
_LESS = np.float32(0.05)
_REFITS = 2


@entry
def quantize(
    team, numbers, scales, w, importance, first_k, first_n, K, N, blocks, k_stride, n_stride
):
    """A piece of a matrix into its QuantizedMatrix. A column with a NaN or ±∞ gets NaN as scale.

    numbers, scales  the whole matrix's, of `blocks` blocks of rows
    w                the piece [K, N], float32 or bfloat16, flat: element (k, n) at k · k_stride +
                     n · n_stride; one of the strides is 1
    importance       float32, of each row of the matrix; int8 does not ask for it
    first_k, first_n  where in the matrix the piece begins: multiples of QUANT_BLOCK and LANES. It
    ends
                     at such, or with the matrix.
    """
    block = team.scratch
    columns = (N + LANES - 1) // LANES
    tasks = columns * ((K + QUANT_BLOCK - 1) // QUANT_BLOCK)
    step = scales_of_block(numbers)
    lines = QUANT_BLOCK // rows_of_line(numbers)
    task = next_task(team)
    while task < tasks:
        k, n = task // columns * QUANT_BLOCK, task % columns * LANES
        rows = min(QUANT_BLOCK, K - k)
        _read(block, w, k * k_stride + n * n_stride, rows, min(LANES, N - n), k_stride, n_stride)
        number = (first_n + n) // LANES * blocks + (first_k + k) // QUANT_BLOCK
        if step == LANES:
            _quantize_8(numbers, number * lines * 4 * LANES, scales, number * step, block, rows)
        else:
            _quantize_4(
                numbers, number * lines * 4 * LANES, scales, number * step,
                block, rows, importance, first_k + k,
            )  # fmt: skip
        task = next_task(team)
    barrier(team)


@jit
def _read(block, w, start, rows, columns, k_stride, n_stride):
    """A block of the piece to float32 [QUANT_BLOCK, 16], with zeros beyond its rows and columns."""
    for r in range(QUANT_BLOCK):
        store(splat(_ZERO), block, r * LANES)
    for r in range(rows):
        here = start + r * k_stride
        if columns < LANES:
            for c in range(columns):
                block[r * LANES + c] = get(w, here + c * n_stride)
        elif n_stride == 1:
            store(load(w, here), block, r * LANES)
        else:
            store(load_strided(w, here, n_stride), block, r * LANES)


@inline
def _nearest(value, scale, least, most):
    """value / scale to whole numbers from least to most; to 0 where the scale is 0, and a NaN."""
    zero = splat(_ZERO)
    number = vround(select_less(zero, vabs(scale), value / scale, zero))
    return vmax(vmin(number, splat(most)), splat(least))


@jit
def _flaw(block, rows):
    """0 in each lane; NaN where a number is no finite one."""
    flaw = splat(_ZERO)
    for r in range(rows):
        flaw = fma(load(block, r * LANES), splat(_ZERO), flaw)
    return flaw


@jit
def _quantize_8(numbers, i, scales, isc, block, rows):
    """A block to int8 at i and its scale at isc."""
    greatest = splat(_ZERO)
    for r in range(rows):
        greatest = vmax(greatest, vabs(load(block, r * LANES)))
    scale = as_bfloat16(greatest / splat(_LARGEST_8) + _flaw(block, rows))
    store(scale, scales, isc)
    for r in range(0, QUANT_BLOCK, 4):
        store_bytes(
            _number_8(block, r, scale), _number_8(block, r + 1, scale),
            _number_8(block, r + 2, scale), _number_8(block, r + 3, scale),
            numbers, i + r * LANES,
        )  # fmt: skip


@inline
def _number_8(block, r, scale):
    return _nearest(load(block, r * LANES), scale, -_LARGEST_8, _LARGEST_8)


@jit
def _quantize_4(numbers, i, scales, isc, block, rows, importance, k):
    """A block to int4 at i, its scale and offset at isc; k: its first row in the matrix."""
    # pass 1: least and greatest
    least = greatest = load(block, 0)
    for r in range(1, rows):
        value = load(block, r * LANES)
        least, greatest = vmin(least, value), vmax(greatest, value)
    middle, reach = (greatest + least) * splat(_HALF), (greatest - least) * splat(_HALF)
    flaw = _flaw(block, rows)

    # pass 2: the best scale and offset; all of the range where errors are too large to be squared
    scale, offset = as_bfloat16(reach * splat(_HALF_STEPS)), as_bfloat16(least)
    error = splat(_INFINITY)
    for number in range(_RANGES):
        half = reach * splat(_ONE - _LESS * np.float32(number))
        s, o = half * splat(_HALF_STEPS), middle - half
        for _ in range(_REFITS):
            s, o = _line(block, rows, importance, k, s, o)
        s, o = as_bfloat16(s), as_bfloat16(o)
        here = _error(block, rows, importance, k, s, o)
        scale = select_less(here, error, s, scale)
        offset = select_less(here, error, o, offset)
        error = select_less(here, error, here, error)

    # pass 3: numbers, two rows in a byte
    store(scale + flaw, scales, isc)
    store(offset, scales, isc + LANES)
    for r in range(0, QUANT_BLOCK, 8):
        store_bytes(
            _pair_4(block, r, scale, offset), _pair_4(block, r + 1, scale, offset),
            _pair_4(block, r + 2, scale, offset), _pair_4(block, r + 3, scale, offset),
            numbers, i + r * LANES // 2,
        )  # fmt: skip


@inline
def _number_4(block, r, scale, offset):
    return _nearest(load(block, r * LANES) - offset, scale, _ZERO, _LARGEST_4)


@inline
def _pair_4(block, r, scale, offset):
    low, high = _number_4(block, r, scale, offset), _number_4(block, r + 4, scale, offset)
    return fma(high, splat(_SHIFT), low)


@jit
def _line(block, rows, importance, k, scale, offset):
    """The scale and offset that are best for the numbers that a scale and an offset yield."""
    ones, qs, qqs, ws, wqs = splat(_ZERO), splat(_ZERO), splat(_ZERO), splat(_ZERO), splat(_ZERO)
    for r in range(rows):
        i = splat(importance[k + r])
        w = load(block, r * LANES)
        q = _number_4(block, r, scale, offset)
        iq, iw = i * q, i * w
        ones, qs, ws = ones + i, qs + iq, ws + iw
        qqs, wqs = fma(iq, q, qqs), fma(iw, q, wqs)
    spread = ones * qqs - qs * qs
    s = (ones * wqs - ws * qs) / spread
    o = (ws - s * qs) / ones
    # all numbers the same: nothing to be fitted
    bound = splat(_TINY) * ones * qqs
    return select_less(bound, spread, s, scale), select_less(bound, spread, o, offset)


@jit
def _error(block, rows, importance, k, scale, offset):
    """Σ i · (w − s·q − o)²"""
    error = splat(_ZERO)
    for r in range(rows):
        q = _number_4(block, r, scale, offset)
        difference = load(block, r * LANES) - fma(q, scale, offset)
        error = fma(splat(importance[k + r]) * difference, difference, error)
    return error
